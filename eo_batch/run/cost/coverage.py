"""What a run touches: which chunks may hold data, and how many windows, pixels and scenes they take. Reads no pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.grid import Grid, Span
from eo_batch.core.records import TimeStep
from eo_batch.core.region import RegionOnGrid
from eo_batch.run.manifest import RunInputs
from eo_batch.run.order import Piece
from eo_batch.run.shared_windows import pieces_of
from eo_batch.sources.stack import item_bounds_px


@dataclass(frozen=True)
class Coverage:
    """Counts over all time steps.

    Parameters
    ----------
    chunks_with_data : chunks that meet the region and that a scene may touch.
    windows : windows of these chunks; one that two chunks share counts twice.
    windows_distinct : the same, each counted once.
    windows_computed : the same, where chunks that one process computes in one go share theirs.
    pixels : padded pixels of every pair of such a chunk and a scene.
    deepest : most scenes that one chunk composes.
    largest_px : padded pixels of the largest chunk.
    """

    chunks_with_data: int
    windows: int
    windows_distinct: int
    windows_computed: int
    pixels: int
    deepest: int
    largest_px: int


def coverage_of(inputs: RunInputs, *, processes: int = 1) -> Coverage:
    """What the chunks of a run touch.

    Parameters
    ----------
    processes : that compute.
    """
    grid = inputs.grid
    busy = _busy(inputs)
    per_chunk = np.outer(_windows_along(grid, grid.rows), _windows_along(grid, grid.cols))
    padded = np.outer(_padded_along(grid, grid.rows), _padded_along(grid, grid.cols))
    distinct = _Distinct(grid)
    return Coverage(
        chunks_with_data=int(sum(np.count_nonzero(hits) for hits in busy)),
        windows=int(sum(per_chunk[hits > 0].sum() for hits in busy)),
        windows_distinct=int(sum(distinct(hits > 0) for hits in busy)),
        windows_computed=sum(distinct(busy[piece.t] > 0, piece) for piece in pieces_of(inputs, processes=processes)),
        pixels=int(sum((padded * hits).sum() for hits in busy)),
        deepest=max((int(hits.max(initial=0)) for hits in busy), default=0),
        largest_px=int(padded.max()),
    )


def loads_of(inputs: RunInputs) -> NDArray[np.float32]:
    """Planned work of each chunk, in windows: those that it needs, and as many as the pixels to read would fill.

    Returns
    -------
    float32 (step, chunk row, chunk column); 0 where no scene may touch the chunk, or it lies outside the region.
    """
    grid = inputs.grid
    per_chunk = np.outer(_windows_along(grid, grid.rows), _windows_along(grid, grid.cols))
    padded = np.outer(_padded_along(grid, grid.rows), _padded_along(grid, grid.cols)) / grid.window_px**2
    return np.stack([((per_chunk + padded * hits) * (hits > 0)).astype(np.float32) for hits in _busy(inputs)])


def _busy(inputs: RunInputs) -> list[NDArray[np.uint16]]:
    """For each step, how many scenes may touch each chunk that meets the region: uint16 (chunk row, chunk column)."""
    grid = inputs.grid
    wanted = _chunks_in_region(grid, inputs.region)
    bounds = item_bounds_px(inputs.items, grid)
    return [_hits(grid, bounds, step) * wanted for step in inputs.steps]


def _hits(grid: Grid, bounds: NDArray[np.float64], step: TimeStep) -> NDArray[np.uint16]:
    ny, nx = grid.chunks_yx
    hits = np.zeros((ny + 1, nx + 1), np.int32)  # a two-dimensional difference array: one add per scene corner
    reach = grid.window_px
    for index in step.items:
        west, north, east, south = bounds[index]
        y0, y1 = _chunk_range(north - reach, south + reach, grid.rows, grid.chunk_px, ny)
        x0, x1 = _chunk_range(west - reach, east + reach, grid.cols, grid.chunk_px, nx)
        if y0 < y1 and x0 < x1:
            hits[y0, x0] += 1
            hits[y1, x0] -= 1
            hits[y0, x1] -= 1
            hits[y1, x1] += 1
    return hits.cumsum(axis=0).cumsum(axis=1)[:ny, :nx].astype(np.uint16)


def _chunk_range(low: float, high: float, whole: Span, chunk_px: int, count: int) -> tuple[int, int]:
    first = int(np.clip(np.floor((low - whole.start) / chunk_px), 0, count))
    last = int(np.clip(np.floor((high - whole.start) / chunk_px) + 1, 0, count))
    return first, last


def _chunks_in_region(grid: Grid, region: RegionOnGrid) -> NDArray[np.bool_]:
    """Chunks whose box meets the region, bool (chunk row, chunk column)."""
    from shapely import box, intersects, prepare

    ny, nx = grid.chunks_yx
    prepare(region.polygons)
    tops = grid.rows.start + np.arange(ny) * grid.chunk_px
    lefts = grid.cols.start + np.arange(nx) * grid.chunk_px
    bottoms = np.minimum(tops + grid.chunk_px, grid.rows.stop)
    rights = np.minimum(lefts + grid.chunk_px, grid.cols.stop)
    return np.stack(
        [intersects(region.polygons, box(lefts, top, rights, bottom)) for top, bottom in zip(tops, bottoms, strict=True)]
    )


def _windows_along(grid: Grid, whole: Span) -> NDArray[np.int64]:
    return np.array([len(grid.touching(span)) for span in grid.interiors(whole)])


def _padded_along(grid: Grid, whole: Span) -> NDArray[np.int64]:
    return np.array([len(grid.padded(span)) for span in grid.interiors(whole)])


class _Distinct:
    """Counts the lattice windows that touch at least one busy chunk."""

    def __init__(self, grid: Grid) -> None:
        self.rows, self.cols = _first_and_end(grid, grid.rows), _first_and_end(grid, grid.cols)

    def __call__(self, busy: NDArray[np.bool_], piece: Piece | None = None) -> int:
        """Of `busy` (chunk row, chunk column), or of a piece of it."""
        rows, cols = self.rows, self.cols
        if piece is not None:
            top, bottom = piece.start // piece.width, -(-piece.stop // piece.width)
            rows, cols = rows[top:bottom], cols[piece.first : piece.last]
            busy = busy[top:bottom, piece.first : piece.last].copy()
            busy.reshape(-1)[: piece.start - top * piece.width] = False
            busy.reshape(-1)[piece.stop - top * piece.width :] = False
        rows, cols = rows - rows[0, 0], cols - cols[0, 0]
        touched = np.zeros((rows[-1, 1] + 1, cols[-1, 1] + 1), np.int32)  # a two-dimensional difference array
        iy, ix = np.nonzero(busy)
        for end_y in (0, 1):
            for end_x in (0, 1):
                np.add.at(touched, (rows[iy, end_y], cols[ix, end_x]), 1 if end_y == end_x else -1)
        return int((touched.cumsum(axis=0).cumsum(axis=1) > 0).sum())


def _first_and_end(grid: Grid, whole: Span) -> NDArray[np.int64]:
    """First window that touches each chunk along `whole`, and the one after its last, int64 (chunk, 2)."""
    return np.array([(span[0], span[-1] + 1) for span in map(grid.touching, grid.interiors(whole))])
