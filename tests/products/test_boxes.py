"""Boxes of a mask: against flood fill and exact fractions, and what must hold for every mask."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from floods import bounds_of, flood, least_turned_area
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from eo_batch.products.boxes import Box, BoxRules, find_boxes
from eo_batch.products.rectangles import smallest_rectangle

ALL = BoxRules()
TURNED = BoxRules(oriented=True)
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def scored(mask: NDArray[np.bool_], seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(mask.shape, np.float32)


def drawing(text: str) -> NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def sides_of(box: Box) -> tuple[float, float]:
    assert box.corners is not None
    a, b, c, _ = np.array(box.corners)
    return float(np.hypot(*(b - a))), float(np.hypot(*(c - b)))


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_boxes_are_those_of_a_flood_fill(mask: NDArray[np.bool_]) -> None:
    score = scored(mask)
    expected = flood(mask)
    found = find_boxes(mask, score, rules=ALL)
    assert [box.bounds for box in found] == [bounds_of(pixels) for pixels in expected]
    assert [box.pixels for box in found] == [len(pixels) for pixels in expected]
    means = [sum(float(score[pixel]) for pixel in pixels) / len(pixels) for pixels in expected]
    assert [box.score for box in found] == pytest.approx(means, abs=1e-12)


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_oriented_boxes_hold_every_pixel_and_are_no_larger_than_horizontal_ones(mask: NDArray[np.bool_]) -> None:
    boxes = find_boxes(mask, scored(mask), rules=TURNED)
    for box, pixels in zip(boxes, flood(mask), strict=True):
        corners = np.array(box.corners)
        sides = np.roll(corners, -1, axis=0) - corners
        for y, x in pixels:
            for point in ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)):
                reach = np.array(point) - corners
                assert (sides[:, 0] * reach[:, 1] - sides[:, 1] * reach[:, 0] >= -1e-9).all()
        assert np.prod(sides_of(box)) <= (box.x1 - box.x0) * (box.y1 - box.y0) + 1e-9


@given(hnp.arrays(np.bool_, (7, 7)))
@settings(max_examples=40, deadline=None)
def test_no_direction_gives_a_smaller_rectangle(mask: NDArray[np.bool_]) -> None:
    for box, pixels in zip(find_boxes(mask, scored(mask), rules=TURNED), flood(mask), strict=True):
        corners = [(x + i, y + j) for y, x in pixels for i in (0, 1) for j in (0, 1)]
        assert np.prod(sides_of(box)) == pytest.approx(float(least_turned_area(corners)), abs=1e-9)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_smallest_rectangle_of_points_has_the_exact_least_area(points: list[tuple[int, int]]) -> None:
    a, b, c, _ = smallest_rectangle(np.array(points))
    assert np.hypot(*(b - a)) * np.hypot(*(c - b)) == pytest.approx(float(least_turned_area(points)), abs=1e-9)


@given(MASKS, st.integers(0, 9), st.integers(0, 9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_boxes_move_with_the_mask(mask: NDArray[np.bool_], down: int, right: int, oriented: bool) -> None:
    rules = BoxRules(oriented=oriented)
    larger = np.pad(mask, ((down, 3), (right, 2)))
    score = scored(mask)
    here = find_boxes(mask, score, rules=rules)
    there = find_boxes(larger, np.pad(score, ((down, 3), (right, 2))), rules=rules)
    assert [box.bounds for box in there] == [(b.x0 + right, b.y0 + down, b.x1 + right, b.y1 + down) for b in here]
    assert [box.score for box in there] == pytest.approx([box.score for box in here], abs=1e-12)
    if oriented and here:
        moved = np.add([box.corners for box in here], (right, down))
        np.testing.assert_allclose([box.corners for box in there], moved, atol=1e-9)


@given(MASKS)
@settings(max_examples=40, deadline=None)
def test_boxes_of_a_mirrored_mask_are_mirrored(mask: NDArray[np.bool_]) -> None:
    score, width = scored(mask), mask.shape[1]

    def described(boxes: list[Box], mirror: bool) -> Counter[tuple[float, ...]]:
        ends = [(width - box.x1, width - box.x0) if mirror else (box.x0, box.x1) for box in boxes]
        return Counter(
            (*end, box.y0, box.y1, box.pixels, round(box.score, 9), round(float(np.prod(sides_of(box))), 6))
            for end, box in zip(ends, boxes, strict=True)
        )

    plain = find_boxes(mask, score, rules=TURNED)
    mirrored = find_boxes(mask[:, ::-1], score[:, ::-1], rules=TURNED)
    assert described(mirrored, True) == described(plain, False)


def test_pixels_that_meet_at_a_corner_are_one_object() -> None:
    mask = drawing("#.. .#. ..#")
    assert [box.bounds for box in find_boxes(mask, scored(mask))] == [(0, 0, 3, 3)]


def test_an_empty_mask_has_no_boxes() -> None:
    mask = np.zeros((5, 4), np.bool_)
    assert find_boxes(mask, scored(mask), rules=BoxRules(oriented=True)) == []


def test_a_slanted_bar_gets_a_box_along_itself() -> None:
    mask = np.eye(20, dtype=np.bool_)
    (box,) = find_boxes(mask, scored(mask), rules=BoxRules(oriented=True))
    assert sorted(sides_of(box)) == pytest.approx([np.sqrt(2), 20 * np.sqrt(2)])
    assert box.corners is not None
    assert box.corners[0] == pytest.approx((0.5, -0.5))
    (thin,) = find_boxes(mask, scored(mask), rules=BoxRules.upstream(oriented=True))
    assert set(thin.corners or ()) == {(0.0, 0.0), (19.0, 19.0)}


def test_upstreams_corners_hold_pixel_centres_and_are_cut_to_integers() -> None:
    mask = drawing("#...... ###.... #####.. ..#####")
    (exact,) = find_boxes(mask, scored(mask), rules=BoxRules(oriented=True))
    (box,) = find_boxes(mask, scored(mask), rules=BoxRules.upstream(oriented=True))
    np.testing.assert_allclose(smallest_rectangle(np.argwhere(mask)[:, ::-1]), [(0, 0), (6, 3), (5.2, 4.6), (-0.8, 1.6)])
    assert box.corners == ((0, 0), (6, 3), (5, 4), (0, 1))
    assert np.prod(sides_of(exact)) > np.prod(sides_of(box))


def test_small_and_faint_objects_are_left_out_where_rules_say_so() -> None:
    mask = drawing("##... ##..# .....")
    score = np.where(np.arange(5) == 4, 0.004, 0.9) * np.ones((3, 1))
    assert len(find_boxes(mask, score)) == 2
    assert [box.pixels for box in find_boxes(mask, score, rules=BoxRules(min_pixels=2))] == [4]
    assert [box.pixels for box in find_boxes(mask, score, rules=BoxRules.upstream())] == [4]


def test_a_contour_parts_touching_objects_and_crumbs_are_swept() -> None:
    mask = drawing("######### ######### ######### ..#......")
    contour = np.zeros(mask.shape, np.float32)
    contour[:, 4] = contour[2, 1:4] = 0.3
    contour[2, 0] = 0.2
    found = find_boxes(mask, scored(mask), contour=contour, rules=ALL)
    assert [(box.bounds, box.pixels) for box in found] == [((0, 0, 4, 3), 9), ((5, 0, 9, 3), 12)]
    assert len(find_boxes(mask, scored(mask), contour=contour, rules=BoxRules(contour_threshold=0.3))) == 1


def test_a_piece_of_exactly_the_least_share_goes() -> None:
    mask = drawing("#####.#")
    mask[0, 5] = True
    contour = (np.arange(7) == 5).astype(np.float32)[None]
    assert [box.pixels for box in find_boxes(mask, scored(mask), contour=contour)] == [5]
    assert [box.pixels for box in find_boxes(mask, scored(mask), contour=contour, rules=BoxRules(min_piece=0.19))] == [5, 1]


def test_an_object_under_the_contour_stays_unless_upstream_is_asked_for() -> None:
    mask = drawing("###.#")
    contour = np.array([[0, 0, 0, 0, 0.9]], np.float32)
    assert [box.x0 for box in find_boxes(mask, scored(mask), contour=contour)] == [0, 4]
    assert [box.x0 for box in find_boxes(mask, scored(mask), contour=contour, rules=BoxRules.upstream())] == [0]


def test_scores_outside_the_mask_are_not_looked_at() -> None:
    mask = drawing("##.. ....")
    score = np.where(mask, 0.7, np.nan)
    assert [box.score for box in find_boxes(mask, score)] == pytest.approx([0.7])


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
def test_a_score_that_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not within"):
        find_boxes(np.ones((2, 2), np.bool_), np.array([[0.5, 0.5], [value, 0.5]]))


@pytest.mark.parametrize(
    ("mask", "score"),
    [
        (np.ones((2, 2), np.uint8), np.ones((2, 2))),
        (np.ones((1, 2, 2), np.bool_), np.ones((1, 2, 2))),
        (np.ones((2, 2), np.bool_), np.ones((2, 3))),
        (np.ones((2, 2), np.bool_), np.ones((2, 2), np.uint8)),
    ],
)
def test_arrays_of_another_kind_are_refused(mask: NDArray[np.bool_], score: NDArray[np.floating]) -> None:
    with pytest.raises(ValueError, match=r"mask|score"):
        find_boxes(mask, score)


@pytest.mark.parametrize("contour", [np.zeros((2, 3), np.float32), np.full((2, 2), np.nan), np.zeros((2, 2), np.uint8)])
def test_a_contour_of_another_kind_is_refused(contour: NDArray[np.floating]) -> None:
    with pytest.raises(ValueError, match="contour"):
        find_boxes(np.ones((2, 2), np.bool_), np.ones((2, 2)), contour=contour)


def test_rows_of_a_mask_may_be_read_backwards_or_across() -> None:
    mask = drawing("##.. ...# ...#")
    score = scored(mask)
    for turn in (lambda a: a[::-1], lambda a: a.T, lambda a: a[:, ::2]):
        plain = find_boxes(turn(mask).copy(), turn(score).copy())
        assert find_boxes(turn(mask), turn(score)) == plain


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_a_mask_without_pixels_has_no_boxes(shape: tuple[int, int]) -> None:
    mask, score = np.zeros(shape, np.bool_), np.zeros(shape, np.float32)
    for contour in (None, score):
        assert find_boxes(mask, score, rules=TURNED, contour=contour) == []
