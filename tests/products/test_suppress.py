"""Boxes inside others and boxes over others: against loops over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from floods import drawn, overlap
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_batch.products.boxes import Box
from eo_batch.products.rules import Corners
from eo_batch.products.suppress import drop_contained, suppress

SPANS = st.tuples(st.integers(0, 9), st.integers(1, 9))


@st.composite
def box_lists(draw: st.DrawFn) -> list[Box]:
    places = draw(st.lists(st.tuples(SPANS, SPANS, st.integers(0, 8)), max_size=9))
    return [Box(x, y, x + w, y + h, score / 8) for (x, w), (y, h), score in places]


def turned(*corners: tuple[float, float], score: float = 0.5) -> Box:
    xs, ys = zip(*corners, strict=True)
    four: Corners = (corners[0], corners[1], corners[2], corners[3])
    return Box(min(xs), min(ys), max(xs), max(ys), score, corners=four)


def square(x: float, y: float, side: float, score: float = 0.5) -> Box:
    return Box(x, y, x + side, y + side, score)


@given(box_lists(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=120, deadline=None)
def test_suppression_is_the_greedy_one(boxes: list[Box], iou: float) -> None:
    expected: list[Box] = []
    for box in sorted(boxes, key=lambda one: -one.score):
        if all(np.float32(overlap(box.bounds, better.bounds)) <= np.float32(iou) for better in expected):
            expected.append(box)
    assert suppress(boxes, iou) == expected


def test_a_suppressed_box_suppresses_nothing() -> None:
    chain = [square(0, 0, 10, 0.9), square(3, 0, 10, 0.8), square(6, 0, 10, 0.7)]
    assert suppress(chain, 0.5) == [chain[0], chain[2]]


def test_an_overlap_of_exactly_the_limit_stays() -> None:
    pair = [Box(0, 0, 2, 1, 0.9), Box(0, 0, 1, 1, 0.8)]
    assert suppress(pair, 0.5) == pair
    assert suppress(pair, 0.49) == pair[:1]


def test_oriented_boxes_overlap_as_they_lie_not_as_their_bounds_do() -> None:
    falling = turned((1, 0), (10, 9), (9, 10), (0, 1), score=0.9)
    rising = turned((9, 0), (10, 1), (1, 10), (0, 9), score=0.8)
    assert overlap(falling.bounds, rising.bounds) == 1
    assert suppress([falling, rising], 0.5) == [falling, rising]
    assert suppress([falling, falling], 0.5) == [falling]


def test_suppression_far_from_the_origin_is_the_same() -> None:
    near = [square(0, 0, 10, 0.9), square(2, 1, 10, 0.8), square(5, 0, 10, 0.7)]
    far = [Box(b.x0 + 3e8, b.y0 + 7e8, b.x1 + 3e8, b.y1 + 7e8, b.score) for b in near]
    assert [far.index(box) for box in suppress(far, 0.5)] == [near.index(box) for box in suppress(near, 0.5)]


@pytest.mark.parametrize("iou", [-0.1, 1.1, float("nan")])
def test_a_limit_that_is_no_share_is_refused(iou: float) -> None:
    with pytest.raises(ValueError, match="within"):
        suppress([], iou)


def contains(outer: Box, inner: Box) -> bool:
    return outer.x0 <= inner.x0 and outer.y0 <= inner.y0 and outer.x1 >= inner.x1 and outer.y1 >= inner.y1


@given(box_lists())
@settings(max_examples=120, deadline=None)
def test_by_geometry_what_lies_in_another_goes_and_of_equals_the_best_stays(boxes: list[Box]) -> None:
    expected = []
    for i, box in enumerate(boxes):
        others = [(j, other) for j, other in enumerate(boxes) if j != i and contains(other, box)]
        beaten = [(j, other) for j, other in others if other.bounds != box.bounds or (-other.score, j) < (-box.score, i)]
        if not beaten:
            expected.append(box)
    assert drop_contained(boxes) == expected


@given(box_lists())
@settings(max_examples=120, deadline=None)
def test_by_drawing_what_a_pairs_canvas_shows_covered_goes(boxes: list[Box]) -> None:
    def corners(box: Box) -> list[tuple[float, float]]:
        return [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]

    def covered(inner: Box, outer: Box) -> bool:
        width, height = int(max(inner.x1, outer.x1)), int(max(inner.y1, outer.y1))
        return drawn(corners(inner), width, height) <= drawn(corners(outer), width, height)

    kept = [a for i, a in enumerate(boxes) if not any(covered(a, b) for j, b in enumerate(boxes) if j != i)]
    assert drop_contained(boxes, by="drawing") == kept


def test_equal_boxes_delete_each_other_by_drawing_only() -> None:
    twins = [square(2, 2, 5, 0.6), square(2, 2, 5, 0.7), square(20, 20, 3)]
    assert drop_contained(twins) == twins[1:]
    assert drop_contained(twins, by="drawing") == twins[2:]


def test_a_box_that_juts_out_by_one_pixel_is_inside_by_drawing_only() -> None:
    pair = [square(0, 0, 10), Box(5, 5, 11, 9, 0.9)]
    assert drop_contained(pair) == pair
    assert drop_contained(pair, by="drawing") == pair[:1]


def test_a_single_point_off_the_canvas_goes_by_drawing() -> None:
    point = turned((90, 469), (90, 469), (90, 469), (90, 469))
    above, below = square(394, 294, 40), square(362, 530, 60)
    assert drop_contained([point, above], by="drawing") == [above]
    assert drop_contained([point, below], by="drawing") == [point, below]


def test_a_pair_of_pixels_along_the_end_of_the_canvas_goes_by_drawing() -> None:
    pair = turned((9, 8), (9, 8), (8, 9), (8, 9))
    assert drop_contained([pair, square(0, 0, 5)], by="drawing") == [square(0, 0, 5)]


def test_a_box_in_the_bounds_but_not_in_the_turned_rectangle_stays() -> None:
    bar = turned((2, 0), (12, 10), (10, 12), (0, 2))
    off, on = square(8, 1, 2), square(5, 5, 2)
    for by in ("geometry", "drawing"):
        assert drop_contained([bar, off, on], by=by) == [bar, off]


def test_a_line_holds_what_lies_on_it_and_nothing_beyond_its_ends() -> None:
    line = turned((0, 5), (10, 5), (10, 5), (0, 5))
    assert drop_contained([line, turned((3, 5), (4, 5), (4, 5), (3, 5))]) == [line]
    for beyond in (turned((4, 5), (14, 5), (14, 5), (4, 5)), turned((-4, 5), (6, 5), (6, 5), (-4, 5))):
        assert drop_contained([line, beyond]) == [line, beyond]


def test_many_boxes_in_one_large_box_are_all_found() -> None:
    rng = np.random.default_rng(5)
    small = [square(float(x), float(y), 4) for x, y in rng.integers(0, 2000, (3000, 2))]
    assert drop_contained([*small, square(-1, -1, 3000)]) == [square(-1, -1, 3000)]
