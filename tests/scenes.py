"""Small rasters, items and sources for tests of reading, and two independent truths: plain rasterio and GDAL's exact warp."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from eo_batch.core.grid import Grid, Span
from eo_batch.core.records import BandAsset, CloudMask, Item, ItemTable, TimeStep
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.stack import SceneSource, open_source

START = datetime(2024, 6, 1, 10, tzinfo=UTC)
IMPATIENT = Retry(base_s=0.0, cap_s=0.0)


def write_raster(
    path: Path,
    values: NDArray[Any],
    *,
    crs: str = "EPSG:32633",
    left: float = 600_000,
    top: float = 5_000_000,
    resolution: float = 10,
    transform: Any = None,
    overviews: Sequence[int] = (),
    **profile: Any,
) -> Path:
    """A tiled GeoTIFF of `values` (y, x) or (band, y, x)."""
    stack = values if values.ndim == 3 else values[None]
    place = transform or from_origin(left, top, resolution, resolution)
    shape = {"count": stack.shape[0], "height": stack.shape[1], "width": stack.shape[2], "dtype": stack.dtype.name}
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=place, **(shape | tiles | profile)) as file:
        file.write(stack)
        if overviews:
            file.build_overviews(list(overviews), Resampling.average)
    return path


def smooth(height: int, width: int, *, seed: int = 1, dtype: str = "uint16") -> NDArray[Any]:
    """Numbers with gradients, texture and a spread as of real scenes; never 0."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    values = 1800 + 500 * np.sin(x / 23.0 + seed) * np.cos(y / 31.0) + random.normal(0, 150, (height, width))
    return np.clip(values, 1, 4000).astype(dtype) if dtype != "uint8" else np.clip(values / 16, 1, 250).astype(dtype)


def item_of(
    number: int, bands: dict[str, BandAsset], *, collection: str = "test", mask: CloudMask | None = None, days: int | None = None
) -> Item:
    """Item whose bbox is that of its first file."""
    when = START + timedelta(days=number if days is None else days)
    href = next(iter(bands.values())).href
    bbox = bbox_of(href) if not href.startswith("http") else (-180.0, -80.0, 180.0, 84.0)
    return Item(collection, f"item{number}", when, when, when, bbox, {"type": "Polygon", "coordinates": []}, bands, mask)


def bbox_of(path: str | Path) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees of a file."""
    with rasterio.open(path) as file:
        box: tuple[float, float, float, float] = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
        return box


def table_of(*items: Item) -> ItemTable:
    """Item table with token documents."""
    return ItemTable(tuple(items), tuple({"id": item.id, "hrefs": [a.href for a in item.bands.values()]} for item in items))


def pipeline(
    bands: Sequence[str], *, resampling: str = "bilinear", composite: str = "first", missing: str = "fail"
) -> PipelineSpec:
    """Least pipeline that reads `bands`."""
    source = {"catalog": "local", "collections": ["test"], "bands": list(bands), "missing_assets": missing}
    return PipelineSpec.model_validate(
        {
            "name": "test",
            "region": {"bbox": [0, 0, 1, 1], "start": "2024-06-01", "end": "2024-07-01"},
            "source": source,
            "grid": {"resolution": 10, "resampling": resampling},
            "time": {"composite": composite},
            "prompts": [{"text": "water"}],
        }
    )


def local_catalog(folder: Path) -> CatalogSpec:
    """Catalog that may name files below `folder`."""
    return CatalogSpec(title="test", url=f"{folder}/catalog.json", kind="static", local=True, root=str(folder))


def source_of(folder: Path, table: ItemTable, grid: Grid, spec: PipelineSpec) -> SceneSource:
    """Source over local files."""
    return open_source(table, grid, spec, local_catalog(folder), retry=IMPATIENT)


def grid_over(path: Path, crs: str, resolution: float, *, chunk: int = 10**6, window: int = 64, margin: int = 3) -> Grid:
    """Grid that covers a file, and a little more."""
    with rasterio.open(path) as file:
        left, bottom, right, top = transform_bounds(file.crs, crs, *file.bounds, densify_pts=101)
    rows = Span(int(np.floor(-top / resolution)) - margin, int(np.ceil(-bottom / resolution)) + margin)
    cols = Span(int(np.floor(left / resolution)) - margin, int(np.ceil(right / resolution)) + margin)
    return Grid(crs, float(resolution), rows, cols, chunk, window, window * 3 // 4)


def step_of(table: ItemTable) -> TimeStep:
    """One step of all items, in their order."""
    return TimeStep(0, "all", table.items[0].start, table.items[-1].end, tuple(range(len(table))))


def read_grid(
    source: SceneSource, *, chunk: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64]]:
    """Pixels (NaN where not valid), validity and the set of givers (as a bit mask) of the whole grid, read by chunks."""
    grid = replace(source.grid, chunk_px=chunk or source.grid.chunk_px)
    source = SceneSource(source.items, grid, source.spec, replace(source.reader, grid=grid))
    step = step_of(source.items)
    pixels = np.full((len(source.spec.source.bands), *grid.shape), np.nan, np.float32)
    valid = np.zeros(grid.shape, bool)
    givers = np.zeros(grid.shape, np.int64)
    for part in grid.chunks(0):
        scene = source.read_scene(part, step)
        to = part.rows.within(grid.rows), part.cols.within(grid.cols)
        inner = part.rows.within(part.padded_rows), part.cols.within(part.padded_cols)
        valid[to] = scene.valid[inner]
        pixels[:, to[0], to[1]] = np.where(scene.valid[inner], scene.pixels[:, inner[0], inner[1]], np.nan)
        for item, gave in zip(scene.items, scene.contributed, strict=True):
            givers[to] |= gave.astype(np.int64) << item
    return pixels, valid, givers


def gdal_exact(
    path: str | Path, grid: Grid, *, index: int = 1, nearest: bool = False, nodata: float | None = None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Numbers and validity of a file on the grid by GDAL's warper with a fixed kernel and exact coordinates."""
    target = {"crs": grid.crs, "transform": grid.transform, "height": grid.shape[0], "width": grid.shape[1]}
    method = Resampling.nearest if nearest else Resampling.bilinear
    with rasterio.open(path) as file:
        marker = file.nodata if nodata is None else nodata
        options: dict[str, Any] = {"add_alpha": True} if marker is None else {"src_nodata": marker, "nodata": marker}
        if ColorInterp.alpha in file.colorinterp:  # near infrared called alpha: GDAL would take it for a mask
            path = write_raster(Path(tempfile.mkdtemp()) / "plain.tif", file.read(index), crs=file.crs, transform=file.transform)
            return gdal_exact(path, grid, nearest=nearest)
        with WarpedVRT(file, resampling=method, tolerance=1e-7, XSCALE=1, YSCALE=1, **options, **target) as warped:
            numbers = warped.read(index)
            if marker is None:
                return numbers, warped.read(warped.count) > 0
    return numbers, ~np.isnan(numbers) if np.isnan(marker) else numbers != marker


def plain_window(path: Path, grid: Grid, *, index: int = 1) -> NDArray[Any]:
    """Numbers of the grid's pixels read by one plain window of a file on the same lattice that holds the grid."""
    with rasterio.open(path) as file:
        col, row = ~file.transform @ (grid.bounds[0], grid.bounds[3])
        window = Window(round(col), round(row), grid.shape[1], grid.shape[0])
        numbers: NDArray[Any] = file.read(index, window=window)
        return numbers
