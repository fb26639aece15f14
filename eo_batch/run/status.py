"""How far a run is, read from its folder alone: works while it runs, after it, and from any machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eo_batch.core.records import ChunkFailure
from eo_batch.run.features import FOLDER, kept_features
from eo_batch.run.generations import Generation, is_published, newest
from eo_batch.run.lease import holder
from eo_batch.run.ledger import failures, receipt_keys
from eo_batch.run.manifest import RunInputs, read_manifest, read_request


@dataclass(frozen=True)
class Status:
    """State of a run.

    state : "complete", "running", "stopped", or "starting" while inputs are being frozen.
    adding : prompts that an unfinished extension adds; the counts are those of the extension then, and the map of the
        prompts before them stays as it is.
    windows_kept, features_bytes : windows whose image features are kept, and what they take.
    """

    path: Path
    name: str
    state: str
    total: int
    finished: int
    failures: tuple[ChunkFailure, ...]
    driver: dict[str, Any] | None
    adding: tuple[str, ...] = ()
    windows_kept: int = 0
    features_bytes: int = 0

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
        if self.windows_kept:
            rows.append(("feature cache", f"{self.features_bytes / 1e6:,.1f} MB of {self.windows_kept:,} windows in {FOLDER}/"))
        rows += [(f"failed {failure.key}", failure.text) for failure in self.failures[:10]]
        if self.state == "stopped":
            rows.append(("next", f"eo-batch resume {self.path}"))
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
        }


def run_status(out: Path) -> Status:
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
    known = len(read_request(store.earlier).spec.prompts) if store.earlier and state != "complete" else None
    return Status(
        store.root,
        request.spec.name,
        state,
        total,
        sum(1 for _ in receipt_keys(store)),
        tuple(failures(store)),
        driver,
        () if known is None else request.spec.prompt_set.texts[known:],
        *kept_features(store),
    )


def pixel_area_km2(inputs: RunInputs) -> float:
    """Area of a pixel in the middle of the region, square kilometres (for rates and plans, not for footprints)."""
    from pyproj import Geod, Transformer

    grid = inputs.grid
    left, bottom, right, top = grid.bounds
    x, y, r = (left + right) / 2, (bottom + top) / 2, grid.resolution
    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    lon, lat = back.transform(np.array([x, x + r, x + r, x]), np.array([y, y, y + r, y + r]))
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)
    return abs(area) / 1e6
