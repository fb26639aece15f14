"""The lattice, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_batch.core.grid import Grid, Span, chunk_key, stride_of

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 12)).map(lambda pair: (pair[0], min(pair)))


def grid_of(rows: Span, cols: Span, chunk_px: int, window_px: int, stride_px: int) -> Grid:
    return Grid("EPSG:32631", 10.0, rows, cols, chunk_px, window_px, stride_px)


@st.composite
def grids(draw) -> Grid:
    rows, cols = (Span(start, start + draw(st.integers(1, 60))) for start in draw(st.tuples(*[st.integers(-70, 70)] * 2)))
    window_px, stride_px = draw(SIZES)
    return grid_of(rows, cols, draw(st.integers(3, 40)), window_px, stride_px)


def touching(interior: Span, window_px: int, stride_px: int) -> list[int]:
    """Lattice indices whose window shares a pixel with `interior`, by looking at all of them."""
    pixels = set(range(interior.start, interior.stop))
    return [i for i in range(-300, 300) if pixels & set(range(i * stride_px, i * stride_px + window_px))]


@settings(max_examples=60, deadline=None)
@given(grids())
def test_windows_of_a_chunk_are_exactly_those_that_touch_its_interior_row_by_row(grid):
    chunk = grid.chunk(0, grid.chunks_yx[0] - 1, grid.chunks_yx[1] - 1)
    rows = touching(chunk.rows, grid.window_px, grid.stride_px)
    cols = touching(chunk.cols, grid.window_px, grid.stride_px)
    assert [(w.row, w.col) for w in grid.windows(chunk)] == [(row, col) for row in rows for col in cols]


@settings(max_examples=60, deadline=None)
@given(grids())
def test_padded_chunk_is_the_union_of_its_windows(grid):
    for chunk in grid.chunks(0):
        windows = grid.windows(chunk)
        assert chunk.padded_rows == Span(min(w.rows.start for w in windows), max(w.rows.stop for w in windows))
        assert chunk.padded_cols == Span(min(w.cols.start for w in windows), max(w.cols.stop for w in windows))


@settings(max_examples=60, deadline=None)
@given(grids())
def test_chunks_cover_every_pixel_exactly_once(grid):
    seen = np.zeros(grid.shape, int)
    for chunk in grid.chunks(0):
        seen[chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)] += 1
        assert seen[chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)].shape == chunk.shape
    assert (seen == 1).all()


@settings(max_examples=60, deadline=None)
@given(grids())
def test_window_counts_are_those_of_listing_them_all(grid):
    listed = [(w.row, w.col) for chunk in grid.chunks(0) for w in grid.windows(chunk)]
    assert grid.window_counts == (len(listed), len(set(listed)))


@settings(max_examples=40, deadline=None)
@given(grids(), st.integers(3, 40))
def test_windows_over_a_pixel_do_not_depend_on_the_chunk_size(grid, other_px):
    other = grid_of(grid.rows, grid.cols, other_px, grid.window_px, grid.stride_px)

    def over(some: Grid, row: int, col: int) -> list[tuple[int, int]]:
        iy, ix = (row - some.rows.start) // some.chunk_px, (col - some.cols.start) // some.chunk_px
        windows = some.windows(some.chunk(0, iy, ix))
        return [(w.row, w.col) for w in windows if w.rows.start <= row < w.rows.stop and w.cols.start <= col < w.cols.stop]

    for row, col in [(grid.rows.start, grid.cols.start), (grid.rows.stop - 1, grid.cols.stop - 1)]:
        assert over(grid, row, col) == over(other, row, col)
        assert over(grid, row, col)


@given(grids(), st.integers(-5, 5), st.integers(-5, 5))
def test_lattice_does_not_move_with_the_region(grid, down, right):
    moved = grid_of(
        Span(grid.rows.start + down, grid.rows.stop + down),
        Span(grid.cols.start + right, grid.cols.stop + right),
        grid.chunk_px,
        grid.window_px,
        grid.stride_px,
    )
    spans = {(w.row, w.col): (w.rows, w.cols) for w in grid.windows(grid.chunk(0, 0, 0))}
    for window in moved.windows(moved.chunk(0, 0, 0)):
        assert spans.get((window.row, window.col), (window.rows, window.cols)) == (window.rows, window.cols)


@pytest.mark.parametrize("place", [(0, -1, 0), (0, 0, 2), (0, 3, 0), (-1, 0, 0)])
def test_chunk_outside_the_grid_is_an_index_error(place):
    with pytest.raises(IndexError, match="outside a grid of 3 x 2 chunks"):
        grid_of(Span(0, 25), Span(0, 20), 10, 4, 3).chunk(*place)


def test_chunk_key_is_made_of_integers():
    assert chunk_key(3, 12, 44) == "t0003/y0012_x0044"
    assert chunk_key(0, 123456, 7) == "t0000/y123456_x0007"


def test_transform_and_bounds_follow_the_definition_of_absolute_pixels():
    grid = grid_of(Span(-468_000, -467_900), Span(48_000, 48_050), 64, 64, 48)
    assert grid.bounds == (480_000.0, 4_679_000.0, 480_500.0, 4_680_000.0)
    assert grid.transform * (0, 0) == (480_000.0, 4_680_000.0)
    assert grid.transform * (50, 100) == (480_500.0, 4_679_000.0)


def test_geobox_has_the_grids_shape_transform_and_crs():
    grid = grid_of(Span(-468_000, -467_900), Span(48_000, 48_050), 64, 64, 48)
    box = grid.geobox_of(grid.rows, grid.cols)
    assert tuple(box.shape) == grid.shape
    assert box.transform == grid.transform
    assert box.crs.to_epsg() == 32631


def test_digest_forgets_the_chunk_size_and_nothing_else():
    base = ("EPSG:32631", 10.0, Span(0, 9), Span(0, 9), 64, 8, 6)
    changed = [("EPSG:32630",), (10.5,), (Span(0, 8),), (Span(1, 9),), (128,), (9,), (5,)]
    digests = [Grid(*base[:i], *new, *base[i + 1 :]).digest for i, new in enumerate(changed)]
    same = [digest == Grid(*base).digest for digest in digests]
    assert same == [False, False, False, False, True, False, False]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("window_px", "overlap", "stride_px"), [(512, 0.25, 384), (512, 0, 512), (16, 0.99, 1), (100, 0.333, 67)]
)
def test_stride_is_the_share_of_a_window_that_is_new(window_px, overlap, stride_px):
    assert stride_of(window_px, overlap) == stride_px


@given(st.integers(16, 4096), st.floats(0, 1, exclude_max=True))
def test_stride_never_leaves_a_gap_and_always_moves(window_px, overlap):
    assert 1 <= stride_of(window_px, overlap) <= window_px


@given(*[st.tuples(st.integers(-9, 9), st.integers(0, 9)).map(lambda p: Span(p[0], p[0] + p[1]))] * 2)
def test_intersection_of_spans_is_that_of_their_pixels(a, b):
    both = a.intersect(b)
    assert set(range(both.start, both.stop)) == set(range(a.start, a.stop)) & set(range(b.start, b.stop))
    assert len(both) >= 0
