"""Objects of a very dense mask, and how they are counted in cells: seconds and memory, against scipy on the whole mask.

    python benchmarks/products.py --size 4096 --density 0.15 --cells 317

Prints one JSON object. scipy labels the whole mask at once and gives no sums; ours reads footprints from a file, joins those
that meet at corners and adds up their pixels, areas and scores.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shapely
from scipy import ndimage

from eo_batch.core.grid import Grid, Span
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.records import Item, ItemTable, TimeStep
from eo_batch.outputs.footprints import merge_parts, part_path
from eo_batch.outputs.objects import read_objects
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import part_bytes, trace_chunk
from eo_batch.products.rectangles import smallest_rectangles
from eo_batch.products.zones import zones_on_grid

START = datetime(2020, 6, 1, tzinfo=UTC)
PROMPTS = PromptSet((Prompt("thing"),))
ITEMS = ItemTable((Item("c", "a", START, START, START, (0, 0, 1, 1), {}, {}),), ({},))
STEPS = (TimeStep(0, "2020-06-01", START, START, (0,)),)


def main() -> None:
    """Make the mask and its footprints, then measure."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=4096)
    options.add_argument("--density", type=float, default=0.15)
    options.add_argument("--cells", type=int, default=317, help="cells along each side")
    asked = options.parse_args()
    mask = (np.random.default_rng(0).random((asked.size, asked.size)) < asked.density).astype(np.uint8)
    grid = Grid("EPSG:32631", 10.0, Span(-470_003, -470_003 + asked.size), Span(41_999, 41_999 + asked.size), 1024, 64, 48)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        footprints = write_footprints(store, mask, grid)
        reading, ((_, _, objects),) = timed(lambda: list(read_objects(store, grid)))
    labelling, (_, truth) = timed(lambda: ndimage.label(mask, structure=np.ones((3, 3))))
    zones = zones_on_grid(cells(grid, asked.cells), grid.resolution)
    counting, (_, counted) = timed(lambda: zones.holding(objects.centres2))
    some = objects.take(np.arange(min(len(objects), 50_000)))
    turning, _ = timed(lambda: smallest_rectangles(some.corners, some.owner, len(some)))
    figures = {
        "footprints": footprints,
        "objects": len(objects),
        "equal_to_scipy": len(objects) == truth and len(counted) == truth,
        "seconds_objects": round(reading, 2),
        "seconds_scipy_labels": round(labelling, 2),
        "cells": len(zones),
        "seconds_counting": round(counting, 2),
        "microseconds_per_rectangle": round(turning / len(some) * 1e6, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(figures))


def write_footprints(store: Store, mask: Any, grid: Grid) -> int:
    """Trace and merge the mask chunk by chunk; number of footprints."""
    scores = np.where(mask == 1, 200, 0).astype(np.uint8)
    ring = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    chunks = list(grid.chunks(0))
    for chunk in chunks:
        rows, cols = chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)
        table = trace_chunk(
            mask[None, rows, cols],
            scores[None, rows, cols],
            chunk=chunk,
            grid=grid,
            prompts=PROMPTS,
            items=[0],
            contributed=np.ones((1, *chunk.shape), bool),
            inside_ring=ring[rows.start : rows.stop + 2, cols.start : cols.stop + 2],
        )
        store.put(part_path(chunk), part_bytes(table))
    return sum(merge_parts(store, chunks=chunks, grid=grid, prompts=PROMPTS, steps=STEPS, items=ITEMS).rows.values())


def cells(grid: Grid, count: int) -> Any:
    """`count` x `count` squares that part the grid."""
    left, bottom, right, top = grid.bounds
    x, y = np.linspace(left, right, count + 1), np.linspace(top, bottom, count + 1)
    row, col = np.mgrid[:count, :count].reshape(2, -1)
    return shapely.box(x[col], y[row + 1], x[col + 1], y[row])


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `action` gives."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


if __name__ == "__main__":
    main()
