"""Scenes of chunks: the items that touch a chunk, stacked on its pixels, composed into one.

stackstac builds the stack (items and bands to one lazy array) with our own reader plugged into its protocol. It gets plain
dicts with one asset per band, all on the chunk's own grid, so its own guesses (CRS, bounds, scale, errors as nodata) have
nothing to decide. The stack is computed item by item in this thread: memory stays bounded and a composite can stop early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import dask
import numpy as np
import pyproj
import stackstac
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Chunk, Grid, Span
from eo_batch.core.records import Item, ItemTable, Scene, TimeStep
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.access import AssetAccess
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.composite import Composite, Layer, first_valid, median, valid_of
from eo_batch.sources.reader import AssetReader, BandRead, DropRule, scratch

SURVEY_PX = 512
"""Longest side of the coarse grid on which a survey measures items."""
SURVEY_THREADS = 8
MEDIAN_BYTES = 256 * 2**20
"""Pixels of all items that a median holds at once; it goes in strips of rows."""
BOX_PX = 256
BOX_FILL = 0.7
"""Bands are read on cells of this many pixels that hold a wanted one; on one box around them if this share of it is wanted."""
MASK = "cloud mask"
BBOX_SAMPLES = 17
BBOX_MARGIN_DEG = 0.02
BBOX_MARGIN_SHARE = 0.03
"""How much larger than its stated box an item may be without being missed: footprints in catalogs are simplified."""


def open_source(
    items: ItemTable, grid: Grid, spec: PipelineSpec, catalog: CatalogSpec, *, retry: Retry | None = None
) -> SceneSource:
    """Source of the scenes of a run. Opens nothing yet.

    Parameters
    ----------
    items : the frozen search result, resolved.
    grid : of the run.
    spec : the pipeline; its bands, resampling, composite and missing_assets matter here.
    catalog : where hrefs are allowed to lead, and how they are signed.
    retry : patience with servers.
    """
    token = digest([items.digest, catalog.model_dump(mode="json"), list(spec.source.bands)])
    reader = AssetReader(token, AssetAccess(catalog), grid, catalog.requests_at_once, retry or Retry())
    return SceneSource(items, grid, spec, reader)


@dataclass(frozen=True, eq=False)
class SceneSource:
    """Reads chunks of time steps. Picklable; safe for threads."""

    items: ItemTable
    grid: Grid
    spec: PipelineSpec
    reader: AssetReader
    _boxes: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return SceneSource, (self.items, self.grid, self.spec, self.reader)

    def read_scene(self, chunk: Chunk, step: TimeStep) -> Scene:
        """Pixels of `chunk` at `step`; independent of the chunking, bit for bit.

        Raises
        ------
        AssetError, PolicyError : a file of an item that may touch the chunk cannot be read, or is not what was announced.
        """
        rows, cols = chunk.padded_rows, chunk.padded_cols
        run = _Reading(self, self.candidates(chunk, step))
        shape, bands = chunk.padded_shape, len(self.spec.source.bands)
        if self.spec.time.composite == "median":
            composite = median(run.strips(rows, cols), bands=bands, shape=shape)
        else:
            composite = first_valid(partial(run.layers, rows, cols), bands=bands, shape=shape)
        return _scene(chunk, composite, run)

    def candidates(self, chunk: Chunk, step: TimeStep) -> tuple[int, ...]:
        """Items of `step`, in its order, that may have pixels in the padded chunk; never too few."""
        if not step.items:
            return ()
        west, north, east, south = self._all_boxes[list(step.items)].T
        rows, cols = chunk.padded_rows, chunk.padded_cols
        touches = (west < cols.stop) & (east > cols.start) & (north < rows.stop) & (south > rows.start)
        return tuple(item for item, is_near in zip(step.items, touches.tolist(), strict=True) if is_near)

    def survey(self, steps: Sequence[TimeStep]) -> ItemTable:
        """The item table with `rank` = the share of the grid's pixels at which an item is valid.

        Measured on a coarse grid of at most `SURVEY_PX` pixels a side that is anchored like the grid itself, read like any
        chunk, so cloud masks count. Items of no step keep their rank.
        """
        coarse = _coarse(self.grid)
        reader = replace(self.reader, grid=coarse)
        source = SceneSource(self.items, coarse, self.spec, reader)
        wanted = sorted({item for step in steps for item in step.items})

        def share(item: int) -> float:
            layers = _Reading(source, (item,)).layers(coarse.rows, coarse.cols)
            return sum(int(layer.valid.sum()) for layer in layers) / (coarse.shape[0] * coarse.shape[1])

        with ThreadPoolExecutor(SURVEY_THREADS) as pool:
            shares = dict(zip(wanted, pool.map(share, wanted), strict=True))
        ranked = (replace(item, rank=shares.get(i, item.rank)) for i, item in enumerate(self.items.items))
        return ItemTable(tuple(ranked), self.items.documents)

    def take_notes(self) -> tuple[str, ...]:
        """What people should know of the hosts that were read from, and were not told yet."""
        return self.reader.slow_hosts.take()

    @property
    def _all_boxes(self) -> NDArray[np.float64]:
        if "px" not in self._boxes:
            self._boxes["px"] = item_bounds_px(self.items, self.grid)
        return self._boxes["px"]


def item_bounds_px(items: ItemTable, grid: Grid) -> NDArray[np.float64]:
    """Boxes on the grid that hold the items, generously: float64 (item, 4) of absolute west, north, east, south pixels.

    The stated box in degrees, grown by a margin, is sampled on a mesh and projected. Where that tells nothing certain
    (poles, the antimeridian on a geographic grid, places outside the projection) the box is infinite.
    """
    boxes = np.array([item.bbox for item in items.items], dtype=np.float64).reshape(-1, 4)
    west, south, east, north = boxes.T.copy()
    east = np.where(east < west, east + 360.0, east)
    margin_x = BBOX_MARGIN_DEG / np.maximum(np.cos(np.radians(np.minimum(np.maximum(-south, north), 89.0))), 0.02)
    margin_x, margin_y = margin_x + (east - west) * BBOX_MARGIN_SHARE, BBOX_MARGIN_DEG + (north - south) * BBOX_MARGIN_SHARE
    share = np.linspace(0.0, 1.0, BBOX_SAMPLES)
    lon = (west - margin_x)[:, None] + (east - west + 2 * margin_x)[:, None] * share
    lat = np.clip((south - margin_y)[:, None] + (north - south + 2 * margin_y)[:, None] * share, -90.0, 90.0)
    lon, lat = np.broadcast_arrays(lon[:, None, :], lat[:, :, None])
    crs = pyproj.CRS.from_user_input(grid.crs)
    to_grid = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    x, y = (np.reshape(values, (len(boxes), -1)) for values in to_grid.transform(lon.ravel(), lat.ravel()))
    with np.errstate(invalid="ignore"):
        found = np.stack([x.min(1), -y.max(1), x.max(1), -y.min(1)], axis=1) / grid.resolution
        slack = np.maximum(found[:, 2:] - found[:, :2], 0.0) / BBOX_SAMPLES + 2.0
    found += np.concatenate([-slack, slack], axis=1)
    crosses = (lon.min(axis=(1, 2)) < -180.0) | (lon.max(axis=(1, 2)) > 180.0)
    unsure = ~np.isfinite(found).all(axis=1) | (east - west > 60.0) | (np.maximum(-south, north) > 88.0) | crosses
    found[unsure] = (-np.inf, -np.inf, np.inf, np.inf)
    return found


@dataclass
class _Reading:
    """Items of one step being read for one chunk."""

    source: SceneSource
    items: tuple[int, ...]
    bytes_read: int = 0
    skipped: list[int] = field(default_factory=list)

    def __dask_tokenize__(self) -> str:
        """A name of this object: dask would hash every item of the run to name a graph that lives for one call."""
        return f"{type(self).__name__}-{id(self)}"

    def layers(self, rows: Span, cols: Span, missing: NDArray[np.bool_] | None = None) -> Iterator[Layer]:
        """The items' valid pixels in order, each item in one or several boxes; items without any here are left out.

        Parameters
        ----------
        missing : bool (y, x): pixels that still matter, looked at anew before each item; None for all. Others are not valid.
        """
        wanted = np.ones((len(rows), len(cols)), bool) if missing is None else missing
        for item in self.items:
            if item in self.skipped:
                continue
            try:
                found = list(self._layers_of(item, rows, cols, wanted))  # all of an item, or nothing
            except AssetError as error:
                if error.code != "asset-not-found" or self.source.spec.source.missing_assets != "skip":
                    raise
                self.skipped.append(item)
                continue
            yield from found

    def _layers_of(self, item: int, rows: Span, cols: Span, wanted: NDArray[np.bool_]) -> Iterator[Layer]:
        """One item where it is wanted: the cloud mask first, then the bands on the boxes that it leaves."""
        if self.source.items.items[item].cloud_mask is not None:
            kept = np.zeros(wanted.shape, bool)
            for y, x in boxes_of(wanted, rows, cols, merged=True):
                at = y.within(rows), x.within(cols)
                kept[at] = (_stack(self, item, [MASK], y, x)[0] == 1) & wanted[at]
            wanted = kept
        for y, x in boxes_of(wanted, rows, cols):
            at = y.within(rows), x.within(cols)
            pixels = _stack(self, item, self.source.spec.source.bands, y, x)
            valid = valid_of(pixels, wanted[at])
            if valid.any():
                yield Layer(item, pixels, valid, at)

    def strips(self, rows: Span, cols: Span) -> Iterator[tuple[slice, list[Layer]]]:
        """All items on strips of rows that together fit the memory of a median."""
        row_bytes = len(cols) * 4 * (len(self.source.spec.source.bands) + 1) * max(1, len(self.items))
        height = max(16, MEDIAN_BYTES // row_bytes)
        height = 2 ** int(np.log2(height))
        start = rows.start
        while start < rows.stop:
            strip = Span(start, min(rows.stop, (start // height + 1) * height))
            yield strip.within(rows), list(self.layers(strip, cols))
            start = strip.stop


class StackReader:
    """stackstac's Reader protocol over `AssetReader`: one band of one item on the pixels of one chunk."""

    def __init__(self, *, reading: _Reading, rows: Span, cols: Span, url: str, spec: Any, **_: Any) -> None:
        grid = reading.source.grid
        if spec.shape != (len(rows), len(cols)) or spec.transform != grid.transform_of(rows, cols):
            raise AssertionError(f"stackstac made other pixels than asked for: {spec}")
        self.reading, self.rows, self.cols = reading, rows, cols
        item, _slash, self.band = url.partition("/")
        self.item = int(item)

    def read(self, window: Any) -> NDArray[np.float32]:
        """Pixels of a window of the chunk, float32 (y, x), NaN where not observed."""
        (top, bottom), (left, right) = window.toranges()
        rows = Span(self.rows.start + int(top), self.rows.start + int(bottom))
        cols = Span(self.cols.start + int(left), self.cols.start + int(right))
        return _read_band(self.reading, self.item, self.band, rows, cols)

    def close(self) -> None:
        """Files are kept by `AssetReader`."""


def boxes_of(wanted: NDArray[np.bool_], rows: Span, cols: Span, *, merged: bool = False) -> list[tuple[Span, Span]]:
    """Boxes within `rows` x `cols` that together hold all wanted pixels, cut along the lattice of `BOX_PX`; none overlap.

    Parameters
    ----------
    wanted : bool (y, x) over `rows` x `cols`.
    merged : one box around all of them.
    """
    y, x = _cuts(rows), _cuts(cols)
    cells = np.logical_or.reduceat(np.logical_or.reduceat(wanted, y[:-1] - rows.start, axis=0), x[:-1] - cols.start, axis=1)
    i, j = cells.nonzero()
    if not len(i):
        return []
    around = (int(i.min()), int(i.max()) + 1, int(j.min()), int(j.max()) + 1)
    area = (around[1] - around[0]) * (around[3] - around[2])
    found = [around]
    if not merged and len(i) < BOX_FILL * area:
        found = []
        growing: dict[tuple[int, int], int] = {}
        for row in range(around[0], around[1] + 1):
            steps = np.diff(cells[row].astype(np.int8), prepend=0, append=0) if row < around[1] else np.zeros(1)
            runs = list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))
            found += [(first, row, *run) for run, first in growing.items() if run not in runs]
            growing = {run: growing.get(run, row) for run in runs}
    return [(Span(int(y[i0]), int(y[i1])), Span(int(x[j0]), int(x[j1]))) for i0, i1, j0, j1 in found]


def _cuts(span: Span) -> NDArray[np.int64]:
    """Ends of `span` and the lattice lines between them."""
    inner = np.arange(span.start // BOX_PX + 1, -(-span.stop // BOX_PX)) * BOX_PX
    return np.concatenate([[span.start], inner, [span.stop]])


def _stack(reading: _Reading, item: int, names: Sequence[str], rows: Span, cols: Span) -> NDArray[np.float32]:
    """Bands `names` of an item, float32 (band, y, x) on `rows` x `cols`."""
    grid = reading.source.grid
    epsg, bounds = _epsg(grid.crs), grid.bounds_of(rows, cols)
    if epsg is None:
        # stackstac knows a CRS by its EPSG number alone: for others its reader is called without it.
        return np.stack([_read_band(reading, item, name, rows, cols).copy() for name in names])
    stack = stackstac.stack(
        [_pseudo_item(item, names, epsg, bounds)],
        assets=list(names),
        epsg=epsg,
        resolution=grid.resolution,
        bounds=bounds,
        snap_bounds=False,
        chunksize=(1, len(names), len(rows), len(cols)),
        dtype=np.dtype(np.float32),
        fill_value=np.float32("nan"),
        rescale=False,
        sortby_date=False,
        xy_coords="center",
        properties=False,
        band_coords=False,
        errors_as_nodata=(),
        reader=partial(StackReader, reading=reading, rows=rows, cols=cols),
    )
    # One block, computed here and now by dask's synchronous scheduler: `compute()` would copy it once more.
    [[[[block]]]] = dask.get(stack.data.__dask_graph__(), stack.data.__dask_keys__())
    pixels: NDArray[np.float32] = block[0]
    return pixels


def _pseudo_item(item: int, names: Sequence[str], epsg: int, bounds: tuple[float, float, float, float]) -> dict[str, Any]:
    """One item as stackstac reads it: every band an asset of its own that covers exactly the chunk."""
    assets = {name: {"href": f"{item}/{name}"} for name in names}
    properties: dict[str, Any] = {"datetime": "2000-01-01T00:00:00Z", "proj:epsg": epsg, "proj:bbox": bounds}
    return {"type": "Feature", "id": str(item), "bbox": [0.0, 0.0, 0.0, 0.0], "properties": properties, "assets": assets}


def _read_band(reading: _Reading, item: int, band: str, rows: Span, cols: Span) -> NDArray[np.float32]:
    out = scratch("band", (len(rows), len(cols)))  # stackstac copies it before it asks for the next band
    reading.bytes_read += reading.source.reader.read(_wanted(reading.source, item, band), rows, cols, out=out)
    return out


def _wanted(source: SceneSource, position: int, band: str) -> BandRead:
    item: Item = source.items.items[position]
    if band == MASK:
        assert item.cloud_mask is not None
        rule = DropRule(item.cloud_mask.kind, item.cloud_mask.drop)
        return BandRead(item.cloud_mask.asset, f"{MASK} of item {item.key}", nearest=True, drop=rule)
    nearest = source.spec.grid.resampling == "nearest"
    return BandRead(item.bands[band], f'band "{band}" of item {item.key}', nearest=nearest, group=f"{item.collection}/{band}")


def _scene(chunk: Chunk, composite: Composite, run: _Reading) -> Scene:
    inner = (chunk.rows.within(chunk.padded_rows), chunk.cols.within(chunk.padded_cols))
    gave = composite.gave[:, inner[0], inner[1]]
    giver = {item: number for number, item in enumerate(composite.items) if gave[number].any()}
    items = tuple(item for item in run.items if item in giver)  # in the order of the step, whatever was read first
    contributed = gave[[giver[item] for item in items]]
    return Scene(chunk, composite.pixels, composite.valid, items, contributed, tuple(sorted(run.skipped)), run.bytes_read)


def _coarse(grid: Grid) -> Grid:
    factor = max(1, -(-max(grid.shape) // (SURVEY_PX - 1)))
    rows = Span(grid.rows.start // factor, -(-grid.rows.stop // factor))
    cols = Span(grid.cols.start // factor, -(-grid.cols.stop // factor))
    return replace(grid, resolution=grid.resolution * factor, rows=rows, cols=cols)


@lru_cache(maxsize=16)
def _epsg(crs: str) -> int | None:
    authority = pyproj.CRS.from_user_input(crs).to_authority(auth_name="EPSG", min_confidence=100)
    return int(authority[1]) if authority else None
