"""What a run will take, before it starts: chunks, windows, bytes, memory, disk, time; and a refusal if it cannot fit."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.region import Region, RegionOnGrid
from eo_batch.core.spec import CacheSpec
from eo_batch.models.inference import inference_bytes
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter
from eo_batch.outputs.store import Store
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.coverage import Coverage, coverage_of
from eo_batch.run.events import Event, Listener, silent
from eo_batch.run.features import FOLDER, check_keeps, kept_features
from eo_batch.run.manifest import RANK_PROPERTY, RunInputs, make_inputs
from eo_batch.run.price import Price, measure_price
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
SAFE_SHARE = 0.8
"""Share of free memory and disk that a plan may use."""


@dataclass(frozen=True)
class Plan:
    """Figures of a run. Bytes are bytes, times are seconds, areas are square kilometres.

    Parameters
    ----------
    seconds_per_window : of one worker, all prompts together.
    seconds_per_prompt : the part of it that is one prompt's.
    prompts : those that are answered: of an extension, the added ones alone.
    prompt_share : what one prompt more adds to `seconds_per_window`, as a share of it.
    features : bytes of image features that will be written beside the result; they are in `disk`.
    features_kept : windows whose features are there already.
    """

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
    seconds_per_prompt: float
    prompts: int
    prompt_share: float
    features: int
    features_kept: int
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
                fix=f"Free space, choose another --out, or set {' or '.join(self._optional)} = false.",
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
            ("prompts", f"{self.prompts}", f"each further prompt adds {_percent(self.prompt_share)} (measured)"),
            ("chunks", f"{self.chunks:,}", f"{self.chunks_with_data:,} may hold data; {self.chunk_px} px"),
            (
                "windows",
                f"{self.windows:,}",
                f"{self.recomputed:.2f}x: windows that two chunks share are {self._shared_work} by both",
            ),
            ("to read", _gb(self.bytes_to_read), "decoded pixels"),
            (
                "memory",
                f"{_gb(self.memory_per_worker)} per worker",
                f"{_gb(self.memory)} for {self.workers} workers and the process; {_gb(self.memory_limit)} may be used",
            ),
            *self._feature_rows(),
            ("disk", _gb(self.disk), f"{self.files:,} files; {_gb(self.disk_free)} free"),
            (
                "time",
                _duration(self.seconds),
                f"{self.seconds_per_window * 1000:.0f} ms a window measured here, {READ_MB_S:.0f} MB/s assumed",
            ),
            ("licence", self.licence or "not stated by the catalog file", ""),
        ]

    def _feature_rows(self) -> list[tuple[str, str, str]]:
        if not (self.features or self.features_kept):
            return []
        there = f"; {self.features_kept:,} windows are there already" if self.features_kept else ""
        return [("feature cache", _gb(self.features), f"in {FOLDER}/, so that windows are encoded once{there}")]

    @property
    def _shared_work(self) -> str:
        return "decoded" if self.features or self.features_kept else "computed"

    @property
    def _optional(self) -> list[str]:
        return ["output.scores", *(["cache.features"] if self.features else [])]

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
    return make_plan(inputs, segmenter, cluster=choose_cluster(spec.cluster, executor, workers), out=out)


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
    prompts: PromptSet | None = None,
    cluster: ClusterSpec | None = None,
    out: Path | None = None,
) -> Plan:
    """Figures of a run; probes the segmenter for its speed, reads no pixels.

    Parameters
    ----------
    prompts : those that a finished run in `out` is extended by: the plan is that of the extension alone. None: all of them.
    cluster : who will compute; None: as the pipeline says.
    out : folder of the run, for what is free on its disk and for features that are kept there.

    Raises
    ------
    ConfigError : `config-invalid`: features of this segmenter cannot be kept.
    """
    spec, grid = inputs.request.spec, inputs.grid
    cluster = cluster or spec.cluster
    keeper = check_keeps(segmenter, spec.cache)
    asked = prompts or spec.prompt_set
    count = 1 if cluster.kind == "serial" else cluster.workers or os.cpu_count() or 1
    scoring = count if segmenter.info.device == "cpu" else 1  # a GPU scores one batch at a time
    covered = coverage_of(inputs)
    bytes_to_read = covered.pixels * (2 * len(spec.source.bands) + 1)
    price = measure_price(segmenter, asked, spec.source.bands, window_px=grid.window_px, batch=spec.model.batch, keeper=keeper)
    kept = _kept(price, covered, spec.cache, segmenter.info.digest, out)
    scoring_s = price.windows_s(covered.windows, prompts=len(asked), loaded=kept.loaded)
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
        memory_per_worker=_memory_per_worker(inputs, segmenter, covered, prompts=len(asked)),
        memory_shared=segmenter.info.fixed_bytes,
        memory_limit=int(limit * 1e9) if limit else int(psutil.virtual_memory().available * SAFE_SHARE),
        disk=_result_bytes(inputs, prompts=len(asked)) + kept.bytes_to_write,
        disk_free=min(free, int(disk_limit * 1e9)) if disk_limit else free,
        files=inputs.chunk_count * (2 + len(asked) * (1 + spec.output.scores) + (spec.output.scores and prompts is None)),
        workers=count,
        seconds=price.run_s + scoring_s / scoring + bytes_to_read / (READ_MB_S * 1e6) / count,
        seconds_per_window=price.window_s + len(asked) * price.prompt_s,
        seconds_per_prompt=price.prompt_s,
        prompts=len(asked),
        prompt_share=price.prompt_share(len(asked)),
        features=kept.bytes_to_write,
        features_kept=kept.windows,
        licence=inputs.request.catalog.licence,
    )


@dataclass(frozen=True)
class _Kept:
    """Features on disk: windows that are there, bytes that will be added, windows that will be read and not encoded."""

    windows: int = 0
    bytes_to_write: int = 0
    loaded: int = 0


def _kept(price: Price, covered: Coverage, cache: CacheSpec, segmenter: str, out: Path | None) -> _Kept:
    if not price.feature_bytes:
        return _Kept()
    here = kept_features(Store(out), segmenter=segmenter)[0] if out is not None else 0
    most = covered.windows_distinct
    if cache.features_gb is not None:
        most = min(most, int(cache.features_gb * 1e9) // price.feature_bytes)
    here = min(here, covered.windows_distinct)
    twice = covered.windows - covered.windows_distinct  # the second chunk finds them, where there was room for them
    loaded = here + (twice * max(most, here) // covered.windows_distinct if twice else 0)
    return _Kept(here, max(most - here, 0) * price.feature_bytes, loaded)


def _result_bytes(inputs: RunInputs, *, prompts: int) -> int:
    """Bytes of shards, parts and receipts: an estimate of how far masks and scores can be compressed."""
    ny, nx = inputs.grid.shape
    layers = prompts * len(inputs.steps)
    return int(layers * ny * nx * (0.05 + 0.5 * inputs.request.spec.output.scores)) + inputs.chunk_count * 20_000


def _memory_per_worker(inputs: RunInputs, segmenter: Segmenter, covered: Coverage, *, prompts: int) -> int:
    """Estimate of the peak of one chunk task in bytes, the largest chunk of the run taken; weights, which are shared, apart."""
    spec, grid = inputs.request.spec, inputs.grid
    padded, deepest = covered.largest_px, covered.deepest
    interior = min(grid.chunk_px, grid.shape[0]) * min(grid.chunk_px, grid.shape[1])
    bands = len(spec.source.bands)
    scene = padded * (4 * bands + 2 + 3 * deepest)  # the composite, its validity, and who gave each pixel
    reading = padded * (4 * (bands + 1) + 8 + 4)  # one scene on its way in, float32, with its source block
    if spec.time.composite == "median":
        held = min(MEDIAN_BYTES, deepest * padded * 4 * (bands + 1))
        reading += held + held // bands
    keeps = spec.cache.features
    scoring = inference_bytes(segmenter.info, grid, bands=bands, prompts=prompts, batch=spec.model.batch, keeps_features=keeps)
    blending = interior * (2 * prompts + deepest) + scoring - segmenter.info.fixed_bytes
    return int(scene + max(reading, blending))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _percent(share: float) -> str:
    return f"{100 * share:,.1f} %" if share >= 0.0005 else "less than 0.1 %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
