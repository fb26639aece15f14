"""A run in small: masks in, footprints out, for any chunk size; and the truth from rasterio on the whole mask."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import geopandas
import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from eo_batch.core.grid import Grid, Span
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.records import Item, ItemTable, TimeStep
from eo_batch.outputs.footprints import FOOTPRINTS, MergeSummary, merge_parts, part_path
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import part_bytes, trace_chunk


def make_grid(shape: tuple[int, int], chunk_px: int, *, row: int = -470_003, col: int = 41_999, **changes: Any) -> Grid:
    """Grid of `shape` in UTM zone 31 at 10 m, far from the origin."""
    values = {"crs": "EPSG:32631", "resolution": 10.0, "window_px": 64, "stride_px": 48, **changes}
    return Grid(rows=Span(row, row + shape[0]), cols=Span(col, col + shape[1]), chunk_px=chunk_px, **values)


def make_items(count: int) -> ItemTable:
    """Items a day apart, named so that their order by id is not their order in time."""
    start = datetime(2020, 6, 1, 10, tzinfo=UTC)
    items = []
    for i in range(count):
        time = start + timedelta(days=i)
        items.append(Item("c", f"S2_{(7 * i) % count:02d}", time, time, time + timedelta(seconds=9), (0, 0, 1, 1), {}, {}))
    return ItemTable(tuple(items), tuple({"id": item.id} for item in items))


def make_steps(count: int = 1) -> tuple[TimeStep, ...]:
    """Months of 2020."""
    months = [datetime(2020, m + 1, 1, tzinfo=UTC) for m in range(count + 1)]
    return tuple(TimeStep(i, f"2020-{i + 1:02d}", months[i], months[i + 1], ()) for i in range(count))


def make_prompts(*least: float) -> PromptSet:
    """Prompts with the minimum areas `least`."""
    return PromptSet(tuple(Prompt(f"thing {i}", 0.5, area) for i, area in enumerate(least)))


def run_footprints(
    store: Store,
    masks: NDArray[np.uint8],
    *,
    grid: Grid,
    scores: NDArray[np.uint8] | None = None,
    source: NDArray[np.int32] | None = None,
    inside: NDArray[np.bool_] | None = None,
    prompts: PromptSet | None = None,
    items: ItemTable | None = None,
    order: Sequence[int] | None = None,
    spill_bytes: int = 1 << 29,
) -> tuple[geopandas.GeoDataFrame, MergeSummary]:
    """Footprints of `masks` uint8 (prompt, time, y, x), traced chunk by chunk.

    `source` int32 (time, y, x): position of the item that gave each pixel; `inside` bool (y, x): in the region.
    """
    prompts = prompts or make_prompts(*[0.0] * len(masks))
    items = items or make_items(3)
    steps = make_steps(masks.shape[1])
    scores = np.where(masks == 1, 200, 0).astype(np.uint8) if scores is None else scores
    source = np.zeros(masks.shape[1:], np.int32) if source is None else source
    ring = np.pad(np.ones(grid.shape, bool) if inside is None else inside, 1)
    chunks = [chunk for step in steps for chunk in grid.chunks(step.index)]
    for index in order if order is not None else range(len(chunks)):
        chunk = chunks[index]
        rows, cols = chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)
        present = np.unique(source[chunk.t, rows, cols])[::-1]
        table = trace_chunk(
            masks[:, chunk.t, rows, cols],
            scores[:, chunk.t, rows, cols],
            chunk=chunk,
            grid=grid,
            prompts=prompts,
            items=[int(i) for i in present],
            contributed=source[None, chunk.t, rows, cols] == present[:, None, None],
            inside_ring=ring[rows.start : rows.stop + 2, cols.start : cols.stop + 2],
        )
        store.put(part_path(chunk), part_bytes(table))
    summary = merge_parts(store, chunks=chunks, grid=grid, prompts=prompts, steps=steps, items=items, spill_bytes=spill_bytes)
    return geopandas.read_parquet(store.named(FOOTPRINTS)), summary


def truth_polygons(mask: NDArray[np.uint8], grid: Grid) -> list[bytes]:
    """Polygons of the pixels that are 1 by rasterio on the whole mask: normalised WKB, sorted."""
    found = rasterio.features.shapes(mask, mask=mask == 1, connectivity=4, transform=grid.transform)
    return normal_form([shapely.geometry.shape(geometry) for geometry, _ in found])


def normal_form(geometries: Any) -> list[bytes]:
    """Sorted WKB that does not depend on order, first vertices or orientation."""
    return sorted(shapely.to_wkb(shapely.normalize(np.asarray(geometries, object))).tolist()) if len(geometries) else []
