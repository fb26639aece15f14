"""CPU cost of reading scenes: chunk by chunk through SceneSource, against rasterio on the same bytes.

    python benchmarks/reading.py --size 4096

Makes its own rasters (4 bands of uint16 noise over gradients, zstd COG-like tiles) in a temporary folder. Prints, for

- "aligned": the grid is the scenes' own, against plain windowed reads of the same (padded) windows, first as they are
  (numbers as stored), then made into what a scene holds (float32 physical values and validity) with numpy;
- "reprojected": the grid is the neighbouring UTM zone, against bilinear WarpedVRT reads (GDAL's defaults) of the same windows,

CPU seconds of both and their ratio, the best of `--repeats` runs of each, in turns.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling, transform_bounds
from rasterio.windows import Window

from eo_batch.core.grid import Chunk, Grid, Span
from eo_batch.core.records import BandAsset, Item, ItemTable, TimeStep
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.open_files import close_files
from eo_batch.sources.raster import GDAL_ENV
from eo_batch.sources.stack import SceneSource, open_source

BANDS = ("green", "red", "nir", "swir16")
CRS, OTHER_CRS = "EPSG:32633", "EPSG:32634"
LEFT, TOP, RESOLUTION = 600_000, 5_000_000, 10
NOW = datetime(2024, 6, 1, tzinfo=UTC)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the scene in pixels")
    parser.add_argument("--chunk", type=int, default=2048, help="side of a chunk in pixels")
    parser.add_argument("--window", type=int, default=512, help="side of a model window; decides the padding of chunks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compress", default="zstd", choices=("zstd", "deflate"))
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, GDAL {rasterio.__gdal_version__}, numpy {np.__version__}")
    print(f"scene {arguments.size} px, 4 bands uint16, {arguments.compress}")
    print(f"chunks {arguments.chunk} px, model windows {arguments.window} px")
    with tempfile.TemporaryDirectory() as folder:
        table = make_scene(Path(folder), arguments.size, arguments.compress)
        catalog = CatalogSpec(title="benchmark", url=f"{folder}/catalog.json", kind="static", local=True, root=folder)
        own = own_grid(arguments)
        compare("aligned", table, catalog, own, arguments.repeats, rasterio_windows)
        compare("aligned", table, catalog, own, arguments.repeats, rasterio_and_numpy)
        compare("reprojected", table, catalog, other_grid(own), arguments.repeats, warped_windows)


def compare(
    name: str,
    table: ItemTable,
    catalog: CatalogSpec,
    grid: Grid,
    repeats: int,
    theirs: Callable[[ItemTable, Grid, list[Chunk]], None],
) -> None:
    """Print CPU seconds of both ways and their ratio."""
    step = TimeStep(0, "2024-06-01", NOW, NOW, (0,))
    chunks = list(grid.chunks(0))
    source = open_source(table, grid, pipeline(grid), catalog)
    for chunk in chunks[:1]:
        source.read_scene(chunk, step)  # compiled code is loaded once per process, not per run
    ours_s, theirs_s = [], []
    for _ in range(repeats):
        theirs_s.append(cpu_seconds(lambda: theirs(table, grid, chunks)))
        ours_s.append(cpu_seconds(lambda: read_all(source, chunks, step)))
    pixels = sum(chunk.padded_shape[0] * chunk.padded_shape[1] for chunk in chunks) * len(BANDS)
    ours, other = min(ours_s), min(theirs_s)
    ratio = f"ratio {ours / other:5.2f}  ({pixels / 1e6:.0f} Mpx read)"
    print(f"{name:12s} eo-batch {ours:7.2f} s  {theirs.__name__:18s} {other:7.2f} s  {ratio}")


def read_all(source: SceneSource, chunks: list[Chunk], step: TimeStep) -> None:
    """Every chunk once, float32 physical values and validity."""
    for chunk in chunks:
        source.read_scene(chunk, step)
    close_files()  # and with them GDAL's cached blocks


def rasterio_windows(table: ItemTable, grid: Grid, chunks: list[Chunk]) -> None:
    """The same padded windows, numbers as stored."""
    for _ in plain_reads(table, grid, chunks):
        pass


def rasterio_and_numpy(table: ItemTable, grid: Grid, chunks: list[Chunk]) -> None:
    """The same padded windows, made into float32 physical values and validity."""
    for numbers in plain_reads(table, grid, chunks):
        valid = np.all([band != 0 for band in numbers], axis=0)
        pixels = np.stack([band.astype(np.float32) * np.float32(0.0001) + np.float32(-0.1) for band in numbers])
        pixels[:, ~valid] = np.nan


def plain_reads(table: ItemTable, grid: Grid, chunks: list[Chunk]) -> Iterator[list[NDArray[np.uint16]]]:
    """Numbers of all bands, chunk by chunk."""
    with rasterio.Env(**GDAL_ENV):
        files = [rasterio.open(asset.href) for asset in table.items[0].bands.values()]
        for chunk in chunks:
            row, col = TOP // RESOLUTION + chunk.padded_rows.start, chunk.padded_cols.start - LEFT // RESOLUTION
            window = Window(col, row, len(chunk.padded_cols), len(chunk.padded_rows))
            yield [file.read(1, window=window.intersection(Window(0, 0, file.width, file.height))) for file in files]
        for file in files:
            file.close()


def warped_windows(table: ItemTable, grid: Grid, chunks: list[Chunk]) -> None:
    """The same padded windows through WarpedVRT, bilinear, everything else at GDAL's defaults."""
    rows, cols = grid.padded_rows, grid.padded_cols
    target = {"crs": grid.crs, "transform": grid.transform_of(rows, cols), "height": len(rows), "width": len(cols)}
    with rasterio.Env(**GDAL_ENV):
        for asset in table.items[0].bands.values():
            with rasterio.open(asset.href) as file, WarpedVRT(file, resampling=Resampling.bilinear, **target) as warped:
                for chunk in chunks:
                    top, left = chunk.padded_rows.start - rows.start, chunk.padded_cols.start - cols.start
                    warped.read(1, window=Window(left, top, len(chunk.padded_cols), len(chunk.padded_rows)))


def make_scene(folder: Path, size: int, compress: str) -> ItemTable:
    """One item of four single-band files."""
    random = np.random.default_rng(7)
    bands = {}
    for number, band in enumerate(BANDS):
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        values = 1800 + 600 * np.sin(x / 70 + number) * np.cos(y / 90) + random.normal(0, 60, (size, size))
        path = folder / f"{band}.tif"
        profile = {"driver": "GTiff", "width": size, "height": size, "count": 1, "dtype": "uint16", "crs": CRS, "nodata": 0}
        profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": compress, "predictor": 2}
        with rasterio.open(path, "w", transform=from_origin(LEFT, TOP, RESOLUTION, RESOLUTION), **profile) as file:
            file.write(values.astype(np.uint16), 1)
        bands[band] = BandAsset(band, str(path), scale=0.0001, offset=-0.1)
    side = size * RESOLUTION
    bbox = transform_bounds(CRS, "EPSG:4326", LEFT, TOP - side, LEFT + side, TOP)
    return ItemTable((Item("benchmark", "scene", NOW, NOW, NOW, bbox, {}, bands),), ({"id": "scene"},))


def own_grid(arguments: argparse.Namespace) -> Grid:
    """The scene's own pixels."""
    row, col = -TOP // RESOLUTION, LEFT // RESOLUTION
    rows, cols = Span(row, row + arguments.size), Span(col, col + arguments.size)
    return Grid(CRS, float(RESOLUTION), rows, cols, arguments.chunk, arguments.window, arguments.window * 3 // 4)


def other_grid(own: Grid) -> Grid:
    """The scene's place in the neighbouring zone."""
    left, bottom, right, top = transform_bounds(CRS, OTHER_CRS, *own.bounds)
    rows = Span(int(-top // RESOLUTION), int(-bottom // RESOLUTION) + 1)
    cols = Span(int(left // RESOLUTION), int(right // RESOLUTION) + 1)
    return Grid(OTHER_CRS, own.resolution, rows, cols, own.chunk_px, own.window_px, own.stride_px)


def pipeline(grid: Grid) -> PipelineSpec:
    """Least pipeline that reads these bands."""
    return PipelineSpec.model_validate(
        {
            "name": "benchmark",
            "region": {"bbox": [0, 0, 1, 1], "start": "2024-06-01", "end": "2024-06-02"},
            "source": {"catalog": "local", "collections": ["benchmark"], "bands": list(BANDS)},
            "grid": {"crs": grid.crs, "resolution": grid.resolution},
            "prompts": [{"text": "water"}],
        }
    )


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
