"""What a run will take, before it starts: chunks, windows, bytes, memory, disk, time; and a refusal if it cannot fit."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from eo_batch.core.errors import ResourceError
from eo_batch.core.grid import Grid
from eo_batch.core.region import Region, RegionOnGrid
from eo_batch.models.inference import inference_bytes
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter
from eo_batch.run.coverage import Coverage, coverage_of
from eo_batch.run.events import Event, Listener, silent
from eo_batch.run.executors import check_kind
from eo_batch.run.manifest import RANK_PROPERTY, RunInputs, make_inputs
from eo_batch.run.request import Request
from eo_batch.run.status import pixel_area_km2
from eo_batch.sources.search import search_items
from eo_batch.sources.stack import MEDIAN_BYTES, open_source

READ_MB_S = 40.0
"""Assumed reading rate of one worker from remote storage, megabytes per second of decoded pixels."""
MAX_CHUNKS = 20_000_000
"""Chunks of one time step: more cannot be planned in a few gigabytes, and would be as many files."""
PROCESS_BYTES = 900_000_000
"""Memory of a process beside its chunks, measured at the end of a long run: libraries, compiled code, block cache."""
QUICK_S = 2.0
"""A batch that takes longer is not measured twice."""
SAFE_SHARE = 0.8
"""Share of free memory and disk that a plan may use."""


@dataclass(frozen=True)
class Plan:
    """Figures of a run. Bytes are bytes, times are seconds, areas are square kilometres."""

    name: str
    crs: str
    shape: tuple[int, int]
    chunk_px: int
    steps: int
    scenes: int
    chunks: int
    chunks_with_data: int
    windows: int
    windows_distinct: int
    area_km2: float
    bytes_to_read: int
    memory_per_worker: int
    memory_shared: int
    memory_limit: int
    disk: int
    disk_free: int
    files: int
    workers: int
    seconds: float
    seconds_per_window: float
    prompts: int
    licence: str

    @property
    def recomputed(self) -> float:
        """Windows computed over distinct windows: 1.0 when no window is computed twice."""
        return self.windows / self.windows_distinct if self.windows_distinct else 1.0

    @property
    def memory(self) -> int:
        """Bytes of the whole process: all workers at their peak, and what it needs beside them."""
        return PROCESS_BYTES + self.memory_shared + self.memory_per_worker * self.workers

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises
        ------
        ResourceError : `plan-too-big`, with the setting that would fit.
        """
        if self.memory > self.memory_limit:
            raise ResourceError(
                "plan-too-big",
                f"{self.workers} workers need {_gb(self.memory)}, {_gb(self.memory_limit)} may be used",
                where=self.name,
                fix=self._memory_advice(),
            )
        if self.disk > self.disk_free * SAFE_SHARE:
            raise ResourceError(
                "plan-too-big",
                f"the run needs about {_gb(self.disk)} on disk, {_gb(self.disk_free)} are free",
                where=self.name,
                fix="Free space, choose another --out, or set output.scores = false.",
            )

    def _memory_advice(self) -> str:
        beside = PROCESS_BYTES + self.memory_shared
        left = self.memory_limit - beside
        if self.memory_per_worker <= left:
            return f"Use --workers {left // self.memory_per_worker}."
        for chunk_px in (4096, 2048, 1024, 512, 256):
            if chunk_px < self.chunk_px:
                share = ((chunk_px + 0.3 * self.chunk_px) / (1.3 * self.chunk_px)) ** 2
                if self.memory_per_worker * share <= left:
                    return f"Set grid.chunk_px = {chunk_px} with --workers 1, or give the plan more memory (limits.memory_gb)."
        least = _gb(self.memory_per_worker + beside)
        return f"Give the plan at least {least} (limits.memory_gb), or use fewer bands or a smaller window."

    def rows(self) -> list[tuple[str, str, str]]:
        """Label, value and remark of each line of the printed plan."""
        ny, nx = self.shape
        return [
            ("grid", f"{nx:,} x {ny:,} px", self.crs),
            ("area", f"{self.area_km2:,.1f} km2", "inside the region, one time step"),
            ("time steps", f"{self.steps:,}", f"{self.scenes:,} scenes"),
            ("prompts", f"{self.prompts}", ""),
            ("chunks", f"{self.chunks:,}", f"{self.chunks_with_data:,} may hold data; {self.chunk_px} px"),
            ("windows", f"{self.windows:,}", f"{self.recomputed:.2f}x: windows that two chunks share are computed by both"),
            ("to read", _gb(self.bytes_to_read), "decoded pixels"),
            (
                "memory",
                f"{_gb(self.memory_per_worker)} per worker",
                f"{_gb(self.memory)} for {self.workers} workers and the process; {_gb(self.memory_limit)} may be used",
            ),
            ("disk", _gb(self.disk), f"{self.files:,} files; {_gb(self.disk_free)} free"),
            (
                "time",
                _duration(self.seconds),
                f"{self.seconds_per_window * 1000:.0f} ms a window measured here, {READ_MB_S:.0f} MB/s assumed",
            ),
            ("licence", self.licence or "not stated by the catalog file", ""),
        ]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {**asdict(self), "memory": self.memory, "recomputed": round(self.recomputed, 4)}


def make_inputs_of(request: Request, *, listener: Listener = silent) -> RunInputs:
    """Search, freeze and resolve the items of a request.

    Raises
    ------
    CatalogError, ConfigError : the search gave no complete or usable answer.
    ResourceError : `plan-too-big`: more chunks than a plan can hold.
    """
    grid, region = request.grid()
    _check_chunks(grid, request.spec.name)
    listener(Event("search", f"searching {request.spec.source.catalog}"))
    found = search_items(
        request.spec,
        request.catalog,
        region=halo_region(request.region, grid, region),
        progress=lambda count: listener(Event("search", f"{count:,} items found")),
    )
    notes = list(found.notes)
    inputs = make_inputs(request, found.documents, notes=notes)
    for note in notes:
        listener(Event("search", note))
    if request.spec.time.composite != "best":
        return inputs
    listener(Event("search", f"measuring valid pixels of {len(inputs.items):,} scenes"))
    source = open_source(inputs.items, inputs.grid, request.spec, request.catalog)
    measured = source.survey(inputs.steps)
    documents = [
        {**document, "properties": {**document["properties"], RANK_PROPERTY: round(item.rank, 6)}}
        for item, document in zip(measured.items, measured.documents, strict=True)
    ]
    return make_inputs(request, documents)


def plan_run(
    request: Request,
    *,
    executor: str | None = None,
    workers: int | None = None,
    out: Path | None = None,
    listener: Listener = silent,
) -> Plan:
    """Search and plan a request without starting it; errors as `make_inputs_of`, and of loading the segmenter."""
    spec = request.spec
    segmenter = load_segmenter(spec.model, spec.source.bands)
    segmenter.encode_prompts(spec.prompt_set)
    inputs = make_inputs_of(request, listener=listener)
    return make_plan(inputs, segmenter, executor=executor, workers=workers, out=out)


def halo_region(region: Region, grid: Grid, on_grid: RegionOnGrid) -> Region:
    """The region grown by one window, in longitude and latitude: scenes there can reach a window of the region."""
    from pyproj import Transformer
    from shapely import segmentize, transform
    from shapely.affinity import translate
    from shapely.geometry import box

    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    centre = region.centre_lonlat[0]

    def to_lonlat(px: NDArray[np.float64]) -> NDArray[np.float64]:
        lon, lat = back.transform(px[:, 0] * grid.resolution, -px[:, 1] * grid.resolution)
        near = (np.asarray(lon) - centre + 180.0) % 360.0 - 180.0 + centre  # continuous around the region
        return np.stack([near, np.clip(lat, -90, 90)], axis=1)

    grown = on_grid.polygons.simplify(grid.window_px / 8).buffer(grid.window_px * 1.25, join_style="mitre")
    lonlat = transform(segmentize(grown, grid.window_px), to_lonlat).buffer(0)
    pieces = []
    for shift in (-360.0, 0.0, 360.0):
        piece = translate(lonlat, shift).intersection(box(-180, -90, 180, 90))
        pieces += [part for part in getattr(piece, "geoms", [piece]) if part.geom_type == "Polygon" and not part.is_empty]
    both = [part for part in pieces if part.area > 0]
    return replace(region, parts=tuple(sorted(both, key=lambda part: part.bounds)))


def _check_chunks(grid: Grid, name: str) -> None:
    ny, nx = grid.chunks_yx
    if ny * nx > MAX_CHUNKS:
        raise ResourceError(
            "plan-too-big",
            f"{grid.shape[1]:,} x {grid.shape[0]:,} px are {ny * nx:,} chunks (limit {MAX_CHUNKS:,})",
            where=name,
            fix="Choose a coarser grid.resolution, a larger grid.chunk_px or a smaller region.",
        )


def make_plan(
    inputs: RunInputs,
    segmenter: Segmenter,
    *,
    executor: str | None = None,
    workers: int | None = None,
    out: Path | None = None,
) -> Plan:
    """Figures of a run; probes the segmenter for its speed, reads no pixels."""
    spec, grid = inputs.request.spec, inputs.grid
    kind = executor or spec.cluster.kind
    check_kind(kind)
    count = 1 if kind == "serial" else workers or spec.cluster.workers or os.cpu_count() or 1
    scoring = count if segmenter.info.device == "cpu" else 1  # a GPU scores one batch at a time
    covered = coverage_of(inputs)
    bytes_to_read = covered.pixels * (2 * len(spec.source.bands) + 1)
    seconds_per_window = _probe_seconds(segmenter, inputs)
    layers = len(spec.prompt_set) * len(inputs.steps)
    free = shutil.disk_usage(_existing(out or Path.cwd())).free
    limit, disk_limit = spec.limits.memory_gb, spec.limits.disk_gb
    return Plan(
        name=spec.name,
        crs=grid.crs,
        shape=grid.shape,
        chunk_px=grid.chunk_px,
        steps=len(inputs.steps),
        scenes=len(inputs.items),
        chunks=inputs.chunk_count,
        chunks_with_data=covered.chunks_with_data,
        windows=covered.windows,
        windows_distinct=covered.windows_distinct,
        area_km2=inputs.region.polygons.area * pixel_area_km2(inputs),
        bytes_to_read=bytes_to_read,
        memory_per_worker=_memory_per_worker(inputs, segmenter, covered),
        memory_shared=segmenter.info.fixed_bytes,
        memory_limit=int(limit * 1e9) if limit else int(psutil.virtual_memory().available * SAFE_SHARE),
        disk=int(layers * grid.shape[0] * grid.shape[1] * (0.05 + 0.5 * spec.output.scores)) + inputs.chunk_count * 20_000,
        disk_free=min(free, int(disk_limit * 1e9)) if disk_limit else free,
        files=inputs.chunk_count * (2 + len(spec.prompt_set) * (1 + spec.output.scores)),
        workers=count,
        seconds=covered.windows * seconds_per_window / scoring + bytes_to_read / (READ_MB_S * 1e6) / count,
        seconds_per_window=seconds_per_window,
        prompts=len(spec.prompt_set),
        licence=inputs.request.catalog.licence,
    )


def _memory_per_worker(inputs: RunInputs, segmenter: Segmenter, covered: Coverage) -> int:
    """Estimate of the peak of one chunk task in bytes, the largest chunk of the run taken; weights, which are shared, apart."""
    spec, grid = inputs.request.spec, inputs.grid
    padded, deepest = covered.largest_px, covered.deepest
    interior = min(grid.chunk_px, grid.shape[0]) * min(grid.chunk_px, grid.shape[1])
    bands, prompts = len(spec.source.bands), len(spec.prompt_set)
    scene = padded * (4 * bands + 2 + 3 * deepest)  # the composite, its validity, and who gave each pixel
    reading = padded * (4 * (bands + 1) + 8 + 4)  # one scene on its way in, float32, with its source block
    if spec.time.composite == "median":
        held = min(MEDIAN_BYTES, deepest * padded * 4 * (bands + 1))
        reading += held + held // bands
    scoring = inference_bytes(segmenter.info, grid, bands=bands, prompts=prompts, batch=spec.model.batch)
    blending = interior * (2 * prompts + deepest) + scoring - segmenter.info.fixed_bytes
    return int(scene + max(reading, blending))


def _probe_seconds(segmenter: Segmenter, inputs: RunInputs) -> float:
    """Seconds of one window, measured on one batch, and once more where that is quick: the first call may warm up."""
    spec = inputs.request.spec
    side, batch = inputs.grid.window_px, spec.model.batch
    shape = (batch, len(spec.source.bands), side, side)  # distinct windows: equal ones may be answered once
    images = np.random.default_rng(0).uniform(*segmenter.info.pixel_range, shape).astype(np.float32)
    prompts = segmenter.encode_prompts(spec.prompt_set)
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        segmenter.decode(segmenter.encode_images(images), prompts)
        best = min(best, time.perf_counter() - start)
        if best > QUICK_S:
            break
    return best / batch


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
