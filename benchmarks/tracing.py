"""Tracing and merging in chunks against rasterio.features.shapes on the whole mask: CPU seconds and equality.

    python benchmarks/tracing.py --size 8192 --chunk 2048

Both sides make the same GeoParquet geometries; ours also sums pixels, areas, scores and items, and writes files.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import geopandas
import numpy as np
import rasterio.features
import shapely
import shapely.geometry
from numpy.typing import NDArray

from eo_batch.core.grid import Grid, Span
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.records import Item, ItemTable, TimeStep
from eo_batch.outputs.footprints import FOOTPRINTS, merge_parts, part_path
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import part_bytes, trace_chunk

START = datetime(2020, 6, 1, tzinfo=UTC)
PROMPTS = PromptSet((Prompt("thing"),))
ITEMS = ItemTable((Item("c", "a", START, START, START, (0, 0, 1, 1), {}, {}),), ({},))
STEPS = (TimeStep(0, "2020-06-01", START, START, (0,)),)


def smooth_noise(size: int, cell: int, seed: int) -> NDArray[np.float32]:
    """Bilinearly interpolated noise with features of about `cell` pixels, float32 (y, x)."""
    rng = np.random.default_rng(seed)
    nodes = rng.normal(size=(size // cell + 2,) * 2).astype(np.float32)
    at = np.arange(size, dtype=np.float32) / cell
    low = at.astype(int)
    share = (at - low)[:, None]
    rows = nodes[low] * (1 - share) + nodes[low + 1] * share
    return rows[:, low] * (1 - share.T) + rows[:, low + 1] * share.T


def make_mask(kind: str, size: int) -> NDArray[np.uint8]:
    """blobs: tens of thousands of ragged objects; regions: few large ones; noise: one object that spans everything."""
    if kind == "noise":
        return (np.random.default_rng(0).random((size, size)) < 0.62).astype(np.uint8)
    if kind == "regions":
        return (smooth_noise(size, 200, 1) + 0.15 * smooth_noise(size, 6, 2) > 0.6).astype(np.uint8)
    return (smooth_noise(size, 20, 1) + 0.15 * smooth_noise(size, 3, 2) > 1.0).astype(np.uint8)


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what `action` gives."""
    start = time.process_time()
    value = action()
    return time.process_time() - start, value


def ours(store: Store, mask: NDArray[np.uint8], grid: Grid) -> tuple[float, float]:
    """CPU seconds of tracing (with parts on disk) and of merging (with the file on disk)."""
    scores = np.where(mask == 1, 200, 10).astype(np.uint8)

    def trace() -> None:
        for chunk in grid.chunks(0):
            rows, cols = chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)
            table = trace_chunk(
                mask[None, rows, cols],
                scores[None, rows, cols],
                chunk=chunk,
                grid=grid,
                prompts=PROMPTS,
                items=(0,),
                contributed=np.ones((1, *chunk.shape), bool),
                inside_ring=np.ones((chunk.shape[0] + 2, chunk.shape[1] + 2), bool),
            )
            store.put(part_path(chunk), part_bytes(table))

    def merge() -> None:
        merge_parts(store, chunks=grid.chunks(0), grid=grid, prompts=PROMPTS, steps=STEPS, items=ITEMS)

    return timed(trace)[0], timed(merge)[0]


def whole(mask: NDArray[np.uint8], grid: Grid) -> NDArray[Any]:
    """The usual way: rasterio on the whole mask, one shapely polygon each."""
    found = rasterio.features.shapes(mask, mask=mask == 1, connectivity=4, transform=grid.transform)
    return np.array([shapely.geometry.shape(geometry) for geometry, _ in found], object)


def main() -> None:
    """Print one line per kind of mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8192, help="side of the mask in pixels")
    parser.add_argument("--chunk", type=int, default=2048, help="side of a chunk in pixels")
    parser.add_argument("--kinds", nargs="+", default=["blobs", "regions"], choices=["blobs", "regions", "noise"])
    args = parser.parse_args()
    warm = Grid("EPSG:32631", 10.0, Span(-99, 0), Span(0, 99), 50, 50, 50)
    with tempfile.TemporaryDirectory() as folder:
        ours(Store(folder), make_mask("blobs", 99), warm)  # compile
    grid = Grid("EPSG:32631", 10.0, Span(-470_000, -470_000 + args.size), Span(42_000, 42_000 + args.size), args.chunk, 512, 384)
    print(f"{'mask':8} {'polygons':>9} {'vertices':>10} {'trace s':>8} {'merge s':>8} {'whole s':>8} {'ratio':>6}  equal")
    for kind in args.kinds:
        mask = make_mask(kind, args.size)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            trace_s, merge_s = ours(store, mask, grid)
            footprints = geopandas.read_parquet(store.named(FOOTPRINTS)).geometry.values
        whole_s, truth = timed(lambda mask=mask: whole(mask, grid))
        equal = sorted(shapely.to_wkb(shapely.normalize(footprints))) == sorted(shapely.to_wkb(shapely.normalize(truth)))
        vertices = int(shapely.get_num_coordinates(truth).sum())
        print(
            f"{kind:8} {len(truth):9,} {vertices:10,} {trace_s:8.2f} {merge_s:8.2f} {whole_s:8.2f} "
            f"{(trace_s + merge_s) / whole_s:6.2f}  {equal}"
        )


if __name__ == "__main__":
    main()
