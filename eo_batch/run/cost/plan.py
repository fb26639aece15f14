"""What a run will take, before it starts: chunks, windows, bytes, memory, disk, time; and a refusal if it cannot fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.region import Region, RegionOnGrid
from eo_batch.models.segmenter import Segmenter
from eo_batch.outputs.store import Store
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.cost.coverage import coverage_of
from eo_batch.run.cost.memory import SAFE_SHARE, Memory, gb, memory_of
from eo_batch.run.cost.price import Price, kept_of, measure_price
from eo_batch.run.crew import crew_of
from eo_batch.run.features import FOLDER, check_keeps
from eo_batch.run.manifest import RANK_PROPERTY, RunInputs, make_inputs
from eo_batch.run.request import Request
from eo_batch.run.settled import settle
from eo_batch.run.told.events import Event, Listener, silent
from eo_batch.run.told.status import pixel_area_km2
from eo_batch.sources.search import search_items
from eo_batch.sources.stack import open_source

READ_MB_S = 40.0
"""Assumed reading rate of one worker from remote storage, megabytes per second of decoded pixels."""
MAX_CHUNKS = 20_000_000
"""Chunks of one time step: more cannot be planned in a few gigabytes, and would be as many files."""


@dataclass(frozen=True)
class Plan:
    """Figures of a run. Bytes are bytes, times are seconds, areas are square kilometres.

    Parameters
    ----------
    cluster : kind of cluster that computes.
    price_per_hour : what one worker process costs, in `currency`; None: nobody said.
    disk : bytes of the result, features of it included. `disk_free`: None where the store has no such figure.
    windows : that are computed.
    windows_alone : the same, if chunks shared nothing.
    windows_distinct : the same, if nothing was computed twice.
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
    windows_alone: int
    windows_distinct: int
    batch: int
    area_km2: float
    bytes_to_read: int
    memory: Memory
    disk: int
    disk_free: int | None
    files: int
    cluster: str
    price_per_hour: float | None
    currency: str
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
    def workers(self) -> int:
        """Chunks computed at once."""
        return self.memory.crew.at_once

    @property
    def money(self) -> float | None:
        """Price of all worker processes for the planned time."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour * self.memory.crew.processes * self.seconds / 3600

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises
        ------
        ResourceError : `plan-too-big`, with the setting that would fit.
        """
        self.memory.check(self.name)
        if self.disk_free is not None and self.disk > self.disk_free * SAFE_SHARE:
            raise ResourceError(
                "plan-too-big",
                f"the run needs about {gb(self.disk)} on disk, {gb(self.disk_free)} are free",
                where=self.name,
                fix=f"Free space, choose another --out, or set {' or '.join(self._optional)} = false.",
            )

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
                f"{self.recomputed:.2f}x: windows that two chunks share are {self._shared_work}",
            ),
            ("batch", f"{self.batch}", "windows per call: part of what the run is"),
            ("to read", gb(self.bytes_to_read), "decoded pixels at most: scenes that are not needed are left out"),
            ("workers", self._workers, self.cluster),
            *self._memory_rows(),
            *self._feature_rows(),
            (
                "disk",
                gb(self.disk),
                f"{self.files:,} files; {'not limited' if self.disk_free is None else gb(self.disk_free) + ' free'}",
            ),
            (
                "time",
                duration(self.seconds),
                f"{self.seconds_per_window * 1000:.0f} ms a window measured here, {READ_MB_S:.0f} MB/s assumed",
            ),
            *([] if self.money is None else [("money", f"{self.money:,.2f} {self.currency}", self._price)]),
            ("licence", self.licence or "not stated by the catalog file", ""),
        ]

    @property
    def _workers(self) -> str:
        crew = self.memory.crew
        if crew.is_driver:
            return f"{crew.threads}"
        many = f"{crew.processes} x {crew.threads}"
        return many if crew.is_known else f"{many} (assumed: say --workers)"

    @property
    def _price(self) -> str:
        crew = self.memory.crew
        return f"{self.price_per_hour:g} {self.currency} an hour for each of {crew.processes} worker processes"

    def _memory_rows(self) -> list[tuple[str, str, str]]:
        memory = self.memory
        per_process = f"{gb(memory.per_process)} in each worker process"
        if memory.worker_limit is not None:
            per_process += f", which has {gb(memory.worker_limit)}"
        here = f"{gb(memory.here)} on this machine"
        if memory.here_limit is not None:
            here += f"; {gb(memory.here_limit)} may be used"
        return [("memory", f"{gb(memory.per_chunk)} per chunk", f"{per_process}; {here}")]

    def _feature_rows(self) -> list[tuple[str, str, str]]:
        if not (self.features or self.features_kept):
            return []
        there = f"; {self.features_kept:,} windows are there already" if self.features_kept else ""
        return [("feature cache", gb(self.features), f"in {FOLDER}/, so that windows are encoded once{there}")]

    @property
    def _shared_work(self) -> str:
        done = "decoded" if self.features or self.features_kept else "computed"
        if self.windows == self.windows_alone:
            return f"{done} by both"
        alone = self.windows_alone / self.windows_distinct
        return f"{done} once, where one process has both; {alone:.2f}x if by both"

    @property
    def _optional(self) -> list[str]:
        return ["output.scores", *(["cache.features"] if self.features else [])]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        memory, crew = self.memory, self.memory.crew
        return {
            **asdict(self),
            "memory": memory.here,
            "memory_per_chunk": memory.per_chunk,
            "memory_per_process": memory.per_process,
            "memory_shared": memory.shared,
            "memory_limit": memory.here_limit,
            "memory_gb": None if memory.worker_limit is None else memory.worker_limit / 1e9,
            "processes": crew.processes,
            "threads": crew.threads,
            "workers": self.workers,
            "workers_known": crew.is_known,
            "money": self.money,
            "recomputed": round(self.recomputed, 4),
        }


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
    for note in source.take_notes():
        listener(Event("search", note))
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
    out: str | Path | None = None,
    listener: Listener = silent,
) -> Plan:
    """Search and plan a request without starting it; errors as `make_inputs_of`, and of loading the segmenter."""
    cluster = choose_cluster(request.spec.cluster, executor, workers, base=request.folder)
    settled = settle(request, cluster, say=lambda text: listener(Event("wait", text)))
    settled.segmenter.encode_prompts(request.spec.prompt_set)
    inputs = make_inputs_of(settled.request, listener=listener)
    return make_plan(inputs, settled.segmenter, cluster=cluster, out=out, price=settled.price)


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
    out: str | Path | None = None,
    price: Price | None = None,
) -> Plan:
    """Figures of a run; probes the segmenter for its speed, reads no pixels.

    Parameters
    ----------
    prompts : those that a finished run in `out` is extended by: the plan is that of the extension alone. None: all of them.
    cluster : who will compute; None: as the pipeline says.
    out : folder of the run, for what is free on its disk and for features that are kept there.
    price : of the segmenter, as a worker measured it; None: it is measured here.

    Raises
    ------
    ConfigError : `config-invalid`: features of this segmenter cannot be kept.
    """
    spec, grid = inputs.request.spec, inputs.grid
    cluster = cluster or spec.cluster
    keeper = check_keeps(segmenter, spec.cache)
    asked = prompts or spec.prompt_set
    crew = crew_of(cluster)
    covered = coverage_of(inputs, processes=crew.processes)
    bytes_to_read = covered.pixels * (2 * len(spec.source.bands) + 1)
    batch = spec.model.fixed_batch
    if price is None:
        price = measure_price(segmenter, asked, spec.source.bands, window_px=grid.window_px, batch=batch, keeper=keeper)
    kept = kept_of(
        price, spec.cache, segmenter.info.digest, windows=covered.windows_computed, distinct=covered.windows_distinct, out=out
    )
    scoring_s = price.windows_s(covered.windows_computed, prompts=len(asked), loaded=kept.loaded)
    free, disk_gb = Store(out or Path.cwd()).free_bytes(), spec.limits.disk_gb
    may_use = [count for count in (free, None if disk_gb is None else int(disk_gb * 1e9)) if count is not None]
    return Plan(
        name=spec.name,
        crs=grid.crs,
        shape=grid.shape,
        chunk_px=grid.chunk_px,
        steps=len(inputs.steps),
        scenes=len(inputs.items),
        chunks=inputs.chunk_count,
        chunks_with_data=covered.chunks_with_data,
        windows=covered.windows_computed,
        windows_alone=covered.windows,
        windows_distinct=covered.windows_distinct,
        batch=batch,
        area_km2=inputs.region.polygons.area * pixel_area_km2(inputs),
        bytes_to_read=bytes_to_read,
        memory=memory_of(inputs, segmenter, covered, prompts=len(asked), cluster=cluster, crew=crew),
        disk=_result_bytes(inputs, prompts=len(asked)) + kept.bytes_to_write,
        disk_free=min(may_use, default=None),
        files=inputs.chunk_count * (2 + len(asked) * (1 + spec.output.scores) + (spec.output.scores and prompts is None)),
        cluster=cluster.kind,
        price_per_hour=cluster.price_per_hour,
        currency=cluster.currency,
        seconds=(
            price.run_s + scoring_s / crew.scoring(segmenter.info.device) + bytes_to_read / (READ_MB_S * 1e6) / crew.at_once
        ),
        seconds_per_window=price.window_s + len(asked) * price.prompt_s,
        seconds_per_prompt=price.prompt_s,
        prompts=len(asked),
        prompt_share=price.prompt_share(len(asked)),
        features=kept.bytes_to_write,
        features_kept=kept.windows,
        licence=inputs.request.catalog.licence,
    )


def _result_bytes(inputs: RunInputs, *, prompts: int) -> int:
    """Bytes of shards, parts and receipts: an estimate of how far masks and scores can be compressed."""
    ny, nx = inputs.grid.shape
    layers = prompts * len(inputs.steps)
    return int(layers * ny * nx * (0.05 + 0.5 * inputs.request.spec.output.scores)) + inputs.chunk_count * 20_000


def _percent(share: float) -> str:
    return f"{100 * share:,.1f} %" if share >= 0.0005 else "less than 0.1 %"


def duration(seconds: float) -> str:
    """Seconds for people: `about 12 min`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
