"""Everything that can be told of a run, from its folder alone: what `eo-batch report` draws, and prints with --json.

Works while a run works, on one that was stopped, and on runs of older versions, which tell less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Grid
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.store import Store
from eo_batch.run.cost.compare import Compared, compare
from eo_batch.run.cost.measured import ChunkWork, work_of
from eo_batch.run.generations import Generation, newest
from eo_batch.run.ledger import get_receipt, receipt_keys
from eo_batch.run.manifest import read_manifest, read_request
from eo_batch.run.request import Request
from eo_batch.run.told.journal import Line, epochs, moment, read_journal
from eo_batch.run.told.pace import number
from eo_batch.run.told.seam_check import SeamFigures, check_seams
from eo_batch.run.told.status import Status, pixel_km2, status_of

MISSING, DONE, EMPTY, FAILED = 0, 1, 2, 3
"""States of chunks."""
STATES = ("to do", "done", "no observation", "failed")
READERS = 16
"""Receipts that are read at once: on object storage each takes a while."""
SIZED = 400
"""Files of a folder whose size is asked for; the others are taken to be alike."""
LISTED = 20
"""Rows of the tables of slow and failed chunks in JSON."""

Say = Callable[[int, int], None]
"""Told how many of how many chunks are read."""


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """One finished chunk: its indices, state, area and telemetry."""

    index: tuple[int, int, int]
    status: str
    inside_px: int
    skipped: tuple[str, ...]
    stages: dict[str, float]
    device: str
    peak_memory: int
    work: ChunkWork


@dataclass(frozen=True)
class Sitting:
    """One driver that worked on the run: what its journal says."""

    epoch: int
    host: str
    pid: int
    version: str
    began: float
    ended: float
    how: str


@dataclass(frozen=True)
class Folder:
    """What a folder of the run takes: exact where `is_exact`, else taken from some of its files."""

    name: str
    files: int
    size: int
    is_exact: bool


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A run, to be drawn.

    Parameters
    ----------
    states : uint8 (time, iy, ix) of `STATES`; empty where the run has no manifest yet.
    chunks : finished chunks; `damaged`: keys of receipts that cannot be read.
    lost : (POSIX time, worker) of workers that were lost.
    warnings : what the run said of itself, each text once with how often.
    """

    request: Request
    grid: Grid
    manifest: dict[str, Any]
    status: Status
    states: NDArray[np.uint8]
    chunks: tuple[ChunkRow, ...]
    damaged: tuple[str, ...]
    sittings: tuple[Sitting, ...]
    lost: tuple[tuple[float, str], ...]
    warnings: dict[str, int]
    compared: tuple[Compared, ...]
    seams: tuple[SeamFigures, ...]
    folders: tuple[Folder, ...]
    made: datetime

    @cached_property
    def pixel_km2(self) -> float:
        """Area of a pixel in the middle of the region."""
        return pixel_km2(self.grid)

    @property
    def counts(self) -> dict[str, int]:
        """Chunks of each state."""
        found = np.bincount(self.states.ravel(), minlength=len(STATES)).tolist()
        return dict(zip(STATES, found, strict=True))

    @property
    def slowest(self) -> list[ChunkRow]:
        """The chunks that took longest."""
        timed = (row for row in self.chunks if row.work.seconds > 0)
        return sorted(timed, key=lambda row: (-row.work.seconds, row.index))[:LISTED]

    @property
    def skipped(self) -> dict[str, int]:
        """Items that were left out because a file of theirs is not there, with how many chunks lack them."""
        return dict(Counter(item for row in self.chunks for item in row.skipped).most_common())

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds of each stage, all chunks together, the longest first."""
        total: Counter[str] = Counter()
        for row in self.chunks:
            total.update(row.stages)
        return dict(total.most_common())

    def header(self) -> list[tuple[str, str]]:
        """Label and value of what the run is."""
        spec, grid = self.request.spec, self.grid
        bounds = self.request.region.geometry.bounds
        west, south, east, north = (f"{value:.4f}" for value in bounds)
        prompts = ", ".join(f'"{prompt.text}" from {prompt.threshold:g}' for prompt in spec.prompt_set)
        model = f"{self.manifest.get('segmenter_name', spec.model.name)} {str(self.manifest.get('segmenter', ''))[:12]}".strip()
        steps = self.manifest.get("steps", [])
        return [
            ("region", f"{west}, {south} to {east}, {north} (degrees)"),
            ("period", f"{spec.region.start} to {spec.region.end} (not included)"),
            ("scenes", f"{self.manifest.get('item_count', 0):,} of {spec.source.catalog}: {', '.join(spec.source.collections)}"),
            ("time steps", f"{len(steps):,}: {', '.join(steps[:4])}{', ...' if len(steps) > 4 else ''}"),
            ("prompts", prompts),
            ("model", model),
            ("grid", f"{grid.shape[1]:,} x {grid.shape[0]:,} px of {grid.resolution:g}, {grid.crs}"),
            (
                "chunks",
                f"{grid.chunks_yx[1]:,} x {grid.chunks_yx[0]:,} of {grid.chunk_px:,} px; windows of {grid.window_px:,} px",
            ),
            ("licence", self.request.catalog.licence or "not stated by the catalog file"),
            ("made with", f"eo-batch {self.manifest.get('version', '?')}"),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The facts as JSON values; lists of chunks are cut."""
        return {
            "run": self.status.as_dict(),
            "header": dict(self.header()),
            "counts": self.counts,
            "damaged": list(self.damaged[:LISTED]),
            "sittings": [asdict(sitting) for sitting in self.sittings],
            "lost_workers": [{"time": at, "worker": name} for at, name in self.lost[:LISTED]],
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stage_seconds.items()},
            "planned_and_measured": [asdict(row) for row in self.compared],
            "slowest": [{"key": row.work.key, "seconds": row.work.seconds, "stages": row.stages} for row in self.slowest],
            "items_left_out": self.skipped,
            "warnings": self.warnings,
            "seams": [asdict(figures) for figures in self.seams],
            "folders": [asdict(folder) for folder in self.folders],
            "made": self.made.isoformat(timespec="seconds"),
        }


def report_facts(where: str | Path, *, say: Say = lambda done, total: None) -> RunFacts:
    """Facts of the run at `where`.

    Raises
    ------
    ConfigError : there is no run there.
    """
    store = newest(where)
    request = read_request(store)
    manifest = read_manifest(store) or {}
    grid, _ = request.grid()
    status = status_of(store)
    chunks, damaged = _chunks(store, say)
    states = _states(grid, len(manifest.get("steps", ())), chunks, status)
    sittings, lost, warnings = _told(store)
    scores = request.spec.output.scores
    return RunFacts(
        request=request,
        grid=grid,
        manifest=manifest,
        status=status,
        states=states,
        chunks=chunks,
        damaged=damaged,
        sittings=sittings,
        lost=lost,
        warnings=warnings,
        compared=tuple(compare(store, [row.work for row in chunks])),
        seams=tuple(check_seams(store, grid, request.spec.prompt_set.texts, states == DONE, scores=scores)),
        folders=tuple(_folders(store)),
        made=datetime.now(UTC),
    )


def _chunks(store: Generation, say: Say) -> tuple[tuple[ChunkRow, ...], tuple[str, ...]]:
    keys = list(receipt_keys(store))

    def read(key: str) -> ChunkRow | str:
        try:
            return _row(get_receipt(store, key))
        except (IntegrityError, FileNotFoundError):  # damaged, or queued again meanwhile
            return key

    rows, damaged = [], []
    with ThreadPoolExecutor(READERS) as pool:
        for done, found in enumerate(pool.map(read, keys, chunksize=64), 1):
            if isinstance(found, str):
                damaged.append(found)
            else:
                rows.append(found)
            if done % 500 == 0 or done == len(keys):
                say(done, len(keys))
    return tuple(rows), tuple(damaged)


def _row(receipt: ChunkReceipt) -> ChunkRow:
    told = receipt.telemetry
    seconds = told.get("seconds")
    stages = {str(stage): number(value) for stage, value in seconds.items()} if isinstance(seconds, dict) else {}
    index = index_of(receipt.key)
    if index is None:
        raise IntegrityError("receipt-mismatch", "the receipt names no chunk", where=receipt.key)
    memory = int(number(told.get("peak_memory")))
    status, device = receipt.status, str(told.get("device", ""))
    return ChunkRow(index, status, receipt.inside_px, receipt.skipped, stages, device, memory, work_of(receipt))


def index_of(key: str) -> tuple[int, int, int] | None:
    """(time, iy, ix) of a chunk's key; None where it is none."""
    match = re.fullmatch(r"t([0-9]{4,})/y([0-9]{4,})_x([0-9]{4,})", key)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _states(grid: Grid, steps: int, chunks: Sequence[ChunkRow], status: Status) -> NDArray[np.uint8]:
    states = np.full((steps, *grid.chunks_yx), MISSING, np.uint8)
    failed = ((index_of(failure.key), FAILED) for failure in status.failures)
    finished = ((row.index, EMPTY if row.status == "empty" else DONE) for row in chunks)
    for index, state in (*failed, *finished):
        if index is not None and all(0 <= i < n for i, n in zip(index, states.shape, strict=True)):
            states[index] = state
    return states


def _told(store: Store) -> tuple[tuple[Sitting, ...], tuple[tuple[float, str], ...], dict[str, int]]:
    """Sittings, lost workers and warnings, as the journals tell them."""
    sittings: list[Sitting] = []
    lost: list[tuple[float, str]] = []
    warnings: Counter[str] = Counter()
    for epoch in epochs(store):
        first: Line | None = None
        began = ended = 0.0
        how = "was cut off"
        for line in read_journal(store, epoch):
            at = moment(line["time"])
            assert at is not None, "lines without a time are left out when they are read"
            ended = at.timestamp()
            if first is None:
                first, began = line, ended
            if line["event"] == "worker" and line.get("state") == "lost":
                lost.append((ended, str(line.get("worker", ""))))
            elif line["event"] == "warning" and len(warnings) < 10 * LISTED:
                warnings[str(line.get("text", ""))] += 1
            elif line["event"] == "stop":
                how = str(line.get("how", ""))
        if first is not None:
            who = str(first.get("host", "")), int(number(first.get("pid"))), str(first.get("version", ""))
            sittings.append(Sitting(epoch, *who, began, ended, how))
    return tuple(sittings), tuple(lost), dict(warnings.most_common(LISTED))


def _folders(store: Store) -> Iterator[Folder]:
    """What stands in the run directory, the largest first."""
    names: dict[str, list[str]] = {}
    for path in store.list():
        names.setdefault(path.split("/", 1)[0], []).append(path)
    folders = []
    for name, paths in names.items():
        some = paths[:: -(-len(paths) // SIZED)]
        sizes = [size for path in some if (size := _size(store, path)) is not None]
        mean = sum(sizes) / len(sizes) if sizes else 0.0
        folders.append(Folder(name, len(paths), round(mean * len(paths)), len(some) == len(paths)))
    yield from sorted(folders, key=lambda folder: (-folder.size, folder.name))


def _size(store: Store, path: str) -> int | None:
    try:
        return store.size(path)
    except FileNotFoundError:
        return None
