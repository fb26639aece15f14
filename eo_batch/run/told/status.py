"""How far a run is, read from its folder alone: works while it runs, after it, and from any machine."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from eo_batch.core.grid import Grid
from eo_batch.core.records import ChunkFailure
from eo_batch.run.features import FOLDER, kept_features
from eo_batch.run.generations import Generation, is_published, newest
from eo_batch.run.lease import holder
from eo_batch.run.ledger import failures, receipt_keys
from eo_batch.run.manifest import RunInputs, read_manifest, read_request
from eo_batch.run.told.journal import Line, epochs, moment, newest_lines
from eo_batch.run.told.pace import Pace, duration_text, number, pace_of, pace_texts, worker_text

NEWEST_SEGMENTS = 4
"""Segments of the journal that are read for the pace: a run of a million chunks has thousands."""
SHOWN = 10
"""Failures, items and workers that are printed."""


@dataclass(frozen=True)
class Status:
    """State of a run.

    state : "complete", "running", "stopped", or "starting" while inputs are being frozen.
    adding : prompts that an unfinished extension adds; the counts are those of the extension then, and the map of the
        prompts before them stays as it is.
    windows_kept, features_bytes : windows whose image features are kept, and what they take.
    pace : of the last minutes of the newest journal; None where there is none.
    seen : when somebody looked, UTC.
    """

    path: str
    name: str
    state: str
    total: int
    finished: int
    failures: tuple[ChunkFailure, ...]
    driver: dict[str, Any] | None
    adding: tuple[str, ...] = ()
    windows_kept: int = 0
    features_bytes: int = 0
    pace: Pace | None = None
    seen: datetime | None = None

    @property
    def failed_by_code(self) -> dict[str, int]:
        """Failed chunks of each error code, the most frequent first."""
        return dict(Counter(failure.code for failure in self.failures).most_common())

    @property
    def failing_items(self) -> dict[str, int]:
        """Failed chunks of each item that failures name, the most frequent first."""
        found = (re.search(r" of item (\S+?):(?: |$)", failure.text) for failure in self.failures)
        return dict(Counter(match[1] for match in found if match).most_common())

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last chunk at the pace of the last minutes, while a driver works."""
        if self.pace is None or self.state != "running":
            return None
        return self.pace.seconds_left(self.total - self.finished - len(self.failures))

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each printed line."""
        share = 100.0 * self.finished / self.total if self.total else 0.0
        rows = [
            ("run", f"{self.name} in {self.path}"),
            ("state", self.state),
            *(("adding", f'"{text}"') for text in self.adding),
            ("chunks", f"{self.finished:,} of {self.total:,} finished ({share:.1f} %), {len(self.failures):,} failed"),
        ]
        if self.driver:
            alive = {True: "alive", False: "gone", None: "on another machine"}[self.driver["alive"]]
            rows.append(
                ("driver", f"host {self.driver['host']}, pid {self.driver['pid']}, {alive}, epoch {self.driver['epoch']}")
            )
        rows += self._pace_rows()
        if self.windows_kept:
            rows.append(("feature cache", f"{self.features_bytes / 1e6:,.1f} MB of {self.windows_kept:,} windows in {FOLDER}/"))
        if self.failures:
            rows.append(("failed with", ", ".join(f"{code} ({count:,})" for code, count in self.failed_by_code.items())))
        rows += [("item fails", f"{item}: {count:,} chunks") for item, count in list(self.failing_items.items())[:SHOWN]]
        rows += self._failed_rows()
        if self.state == "stopped":
            rows.append(("next", f"eo-batch resume {self.path}"))
        return rows

    def _failed_rows(self) -> list[tuple[str, str]]:
        """One row for each reason, as one broken file can fail hundreds of chunks."""
        keys: dict[str, list[str]] = {}
        for failure in self.failures:
            keys.setdefault(failure.text, []).append(failure.key)
        more = {text: f" and {len(found) - 1:,} more" if len(found) > 1 else "" for text, found in keys.items()}
        return [(f"failed {found[0]}{more[text]}", text) for text, found in list(keys.items())[:SHOWN]]

    def _pace_rows(self) -> list[tuple[str, str]]:
        if self.pace is None or self.state != "running" or self.seen is None:
            return []
        figures = [*pace_texts(self.pace)]
        if self.seconds_left is not None:
            figures.append(f"{duration_text(self.seconds_left)} left")
        rows = [("pace", ", ".join(figures))] if figures else []
        for worker in self.pace.workers[: 2 * SHOWN]:
            heard = max(0.0, (self.seen - worker.last_time).total_seconds())
            what = "lost" if worker.is_lost else worker.last or "no chunk yet"
            at = f", on {worker.host}" if worker.host else ""
            chunks = "1 chunk" if worker.chunks == 1 else f"{worker.chunks:,} chunks"
            told = f"{what}, {duration_text(heard)} ago{at}; {chunks} lately"
            rows.append((f"worker {worker_text(worker.name)}", told))
        if len(self.pace.workers) > 2 * SHOWN:
            rows.append(("workers", f"{len(self.pace.workers) - 2 * SHOWN:,} more"))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The status as JSON values."""
        return {
            "run": str(self.path),
            "name": self.name,
            "state": self.state,
            "total": self.total,
            "finished": self.finished,
            "failed": len(self.failures),
            "failures": [{"key": f.key, "code": f.code, "text": f.text} for f in self.failures],
            "driver": self.driver,
            "adding": list(self.adding),
            "windows_kept": self.windows_kept,
            "features_bytes": self.features_bytes,
            "failed_by_code": self.failed_by_code,
            "failing_items": self.failing_items,
            "seconds_left": self.seconds_left,
            "pace": None if self.pace is None else self.pace.as_dict(),
        }


def run_status(out: str | Path) -> Status:
    """Status of the run in `out`.

    Raises
    ------
    ConfigError : there is no run in the folder.
    """
    return status_of(newest(out))


def status_of(store: Generation) -> Status:
    """Status of one generation of a run; errors as `run_status`."""
    request = read_request(store)
    manifest = read_manifest(store)
    driver = holder(store)
    if is_published(store):
        state = "complete"
    elif driver and driver["alive"] is not False:
        state = "running" if manifest else "starting"
    else:
        state = "stopped"
    total = manifest["chunks"] if manifest else 0
    seen = datetime.now(UTC)
    lines = _newest_lines(store)
    known = len(read_request(store.earlier).spec.prompts) if store.earlier and state != "complete" else None
    return Status(
        store.where,
        request.spec.name,
        state,
        total,
        _finished(store, lines, total) if state == "running" else _listed(store),
        tuple(failures(store)),
        driver,
        () if known is None else request.spec.prompt_set.texts[known:],
        *kept_features(store),
        pace_of(lines, until=seen if state == "running" else (moment(lines[-1]["time"]) if lines else None) or seen),
        seen,
    )


def _newest_lines(store: Generation) -> list[Line]:
    known = epochs(store)
    return newest_lines(store, known[-1], segments=NEWEST_SEGMENTS) if known else []


def _finished(store: Generation, lines: Sequence[Line], total: int) -> int:
    """Finished chunks while a driver works: as its journal says, so that a million receipts need not be listed."""
    told = next((line for line in reversed(lines) if line.get("total") == total), None)
    return _listed(store) if told is None or lines[-1]["event"] == "stop" else int(number(told.get("done")))


def _listed(store: Generation) -> int:
    return sum(1 for _ in receipt_keys(store))


def pixel_area_km2(inputs: RunInputs) -> float:
    """Area of a pixel in the middle of the region, square kilometres (for rates and plans, not for footprints)."""
    return pixel_km2(inputs.grid)


def pixel_km2(grid: Grid) -> float:
    """Area of a pixel in the middle of `grid`, square kilometres."""
    from pyproj import Geod, Transformer

    left, bottom, right, top = grid.bounds
    x, y, r = (left + right) / 2, (bottom + top) / 2, grid.resolution
    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lon, lat = back.transform(np.array([x, x + r, x + r, x]), np.array([y, y, y + r, y + r]))
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
    return abs(area) / 1e6
