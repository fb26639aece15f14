"""The order of chunks: each exactly once, neighbours together, and pieces for several processes."""

from __future__ import annotations

from itertools import product

import pytest

from eo_batch.run.order import pieces

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 4), (13, 9)]


@pytest.mark.parametrize("chunks_yx", SHAPES)
@pytest.mark.parametrize("processes", [1, 2, 5, 100])
@pytest.mark.parametrize("widest", [None, 1, 3])
def test_every_chunk_comes_exactly_once(chunks_yx, processes, widest):
    for steps in (1, 3):
        found = [index for group in pieces(steps, chunks_yx, processes=processes, widest=widest) for index in group]
        assert sorted(found) == sorted(product(range(steps), range(chunks_yx[0]), range(chunks_yx[1])))


def test_one_process_goes_row_by_row_down_strips_of_what_can_be_kept():
    cut = [list(piece) for piece in pieces(1, (3, 5), widest=3)]
    assert cut == [[(0, iy, ix) for iy in range(3) for ix in range(*strip)] for strip in ((0, 2), (2, 5))]


def test_several_processes_get_a_piece_each_that_is_about_square():
    cut = [list(piece) for piece in pieces(1, (40, 40), processes=4)]
    assert 4 <= len(cut) <= 8
    largest = max(cut, key=len)
    height = len({iy for _, iy, _ in largest})
    width = len({ix for _, _, ix in largest})
    assert 0.5 < height / width < 2


def test_no_piece_is_empty_and_none_spans_two_time_steps():
    for piece in pieces(4, (5, 4), processes=3):
        assert len({t for t, _, _ in piece}) == 1
