"""Each task on small masks whose answer can be counted by hand or by a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from floods import bounds_of, flood
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from eo_batch.products.rules import BoxRules, TaskRules
from eo_batch.products.tasks import count, detect, ground, label_map, multi_class, multi_label, presence, segment, semantic

SCORES = hnp.arrays(np.float32, (3, 7, 9), elements=st.floats(0, 1, width=32).map(lambda v: round(v * 8) / 8))
KEEP_ALL = TaskRules(nms_iou=None)


def named(scores: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return dict(zip(("ship", "dock", "water"), scores, strict=True))


def masks_of(scores: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.bool_]]:
    return {name: segment(score) for name, score in scores.items()}


@given(hnp.arrays(np.float32, (4, 5), elements=st.integers(-40, 40).map(lambda v: v / 8)))
@settings(max_examples=40, deadline=None)
def test_a_mask_is_where_the_foreground_logit_is_greater(logits: NDArray[np.float32]) -> None:
    exact = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.array_equal(segment(exact), logits > 0)


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_there_are_as_many_as_there_are_boxes_and_objects(scores: NDArray[np.float32]) -> None:
    given = named(scores)
    boxes = detect(masks_of(given), given, rules=KEEP_ALL)
    assert count(boxes) == {name: len(flood(mask)) for name, mask in masks_of(given).items()}
    assert {name: len(found) for name, found in boxes.items()} == count(boxes)


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_detected_boxes_come_best_first(scores: NDArray[np.float32]) -> None:
    given = named(scores)
    for boxes in detect(masks_of(given), given).values():
        assert [box.score for box in boxes] == sorted((box.score for box in boxes), reverse=True)


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_a_grounded_box_is_around_the_whole_mask(scores: NDArray[np.float32]) -> None:
    mask = segment(scores[0])
    box = ground(mask, scores[0])
    if not mask.any():
        assert box is None
        return
    assert box is not None
    assert box.bounds == bounds_of([pixel for found in flood(mask) for pixel in found])
    for inner in detect({"a": mask}, {"a": scores[0]}, rules=KEEP_ALL)["a"]:
        assert box.x0 <= inner.x0
        assert box.y0 <= inner.y0
        assert box.x1 >= inner.x1
        assert box.y1 >= inner.y1


def test_the_score_of_a_grounded_box_is_the_mean_over_all_its_pixels() -> None:
    score = np.array([[0.9, 0.0, 0.6, 0.6, 0.6]], np.float32)
    box = ground(segment(score), score)
    assert box is not None
    assert (box.bounds, box.pixels) == ((0, 0, 5, 1), 4)
    assert box.score == pytest.approx((0.9 + 3 * 0.6) / 4)


def test_a_box_over_a_better_one_of_its_class_goes_and_one_of_another_class_stays() -> None:
    mask = np.zeros((12, 12), np.bool_)
    mask[0:9, 0] = mask[8, 0:9] = True
    other = np.zeros_like(mask)
    other[0:9, 11] = other[0, 2:12] = True
    corner = mask.copy()
    corner[0:7, 2:11] = True
    score = np.where(corner & ~mask, 0.9, 0.6).astype(np.float32)
    assert len(detect({"a": corner}, {"a": score}, rules=TaskRules(nms_iou=None))["a"]) == 2
    boxes = detect({"a": corner, "b": mask}, {"a": score, "b": score})
    assert [(box.bounds, round(box.score, 3)) for box in boxes["a"]] == [((2, 0, 11, 7), 0.9)]
    assert [box.bounds for box in boxes["b"]] == [(0, 0, 9, 9)]


def test_what_lies_in_a_box_far_larger_stays_unless_upstreams_rule_is_asked_for() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[0, :] = mask[:, 0] = True
    mask[20:22, 20:22] = True
    score = np.full(mask.shape, 0.8, np.float32)
    assert count(detect({"a": mask}, {"a": score})) == {"a": 2}
    for rules in (TaskRules(boxes=BoxRules(drop_inner=True)), TaskRules.upstream()):
        assert count(detect({"a": mask}, {"a": score}, rules=rules)) == {"a": 1}


@given(SCORES, st.sampled_from(["best", "last"]))
@settings(max_examples=40, deadline=None)
def test_a_label_map_gives_each_pixel_to_one_class(scores: NDArray[np.float32], overlap: str) -> None:
    given = named(scores)
    masks = masks_of(given)
    rules = TaskRules(overlap=overlap)
    labels = label_map(masks, given, rules=rules)
    for y in range(7):
        for x in range(9):
            claims = [i for i, mask in enumerate(masks.values()) if mask[y, x]]
            if overlap == "best":
                best = max((float(scores[i, y, x]) for i in claims), default=0)
                claims = [i for i in claims if scores[i, y, x] == best][:1]
            assert labels[y, x] == (claims[-1] if claims else -1)
    parted = semantic(masks, given, rules=rules)
    assert all(np.array_equal(mask, labels == i) for i, mask in enumerate(parted.values()))


def test_independent_masks_are_not_touched() -> None:
    scores = named(np.full((3, 4, 4), 0.9, np.float32))
    assert all(mask.all() for mask in semantic(masks_of(scores), scores).values())


@given(SCORES)
@settings(max_examples=40, deadline=None)
def test_labels_are_the_classes_above_the_threshold(scores: NDArray[np.float32]) -> None:
    labels = multi_label(named(scores))
    for name, score in named(scores).items():
        values = [float(value) for value in score.ravel()]
        expected = 0.5 * max(values) + 0.5 * sum(values) / len(values)
        assert labels.scores[name] == pytest.approx(expected, abs=1e-12)
        assert (name in labels.names) == (labels.scores[name] > 0.5)


def test_a_score_of_exactly_one_half_is_no_label() -> None:
    assert multi_label({"a": np.full((2, 2), 0.5, np.float32)}).names == ()
    assert multi_label({"a": np.full((2, 2), 0.5, np.float32)}, rules=TaskRules(label_threshold=0.4)).names == ("a",)


def test_the_balance_weighs_the_greatest_or_the_mean_score() -> None:
    assert presence(0.9, 0.1, balance=0.75) == pytest.approx(0.7)
    assert presence(0.9, 0.1, balance=0.75, balance_weighs="mean") == pytest.approx(0.3)
    score = {"a": np.array([[0.9, 0.1, 0.1, 0.1]], np.float32)}
    code = multi_label(score, rules=TaskRules(label_balance=0.75)).scores["a"]
    paper = multi_label(score, rules=TaskRules(label_balance=0.75, balance_weighs="mean")).scores["a"]
    assert (code, paper) == pytest.approx((0.75 * 0.9 + 0.25 * 0.3, 0.25 * 0.9 + 0.75 * 0.3))


def test_the_class_with_the_greatest_score_is_chosen_and_the_first_of_equals() -> None:
    scores = named(np.zeros((3, 2, 2), np.float32))
    scores["dock"][0, 1] = scores["water"][1, 1] = 0.75
    assert multi_class(scores).names == ("dock",)
    assert multi_class(scores, rules=TaskRules(class_threshold=0.8)).names == ()
    assert multi_class(scores, rules=TaskRules(class_threshold=0.75)).names == ("dock",)
    assert multi_class({}).names == ()


def test_pixels_that_do_not_count_say_nothing() -> None:
    score = np.array([[0.9, np.nan], [0.2, 0.2]], np.float32)
    valid = np.array([[False, False], [True, True]])
    assert multi_class({"a": score}, valid=valid).scores["a"] == pytest.approx(0.2)
    assert multi_label({"a": score}, valid=np.zeros((2, 2), np.bool_)) == multi_label({"a": np.zeros((2, 2), np.float32)})


def test_a_score_that_is_no_number_is_refused_with_its_class() -> None:
    with pytest.raises(ValueError, match='"dock"'):
        multi_label({"ship": np.zeros((2, 2)), "dock": np.array([[0.1, np.nan]])})


def test_masks_and_scores_of_other_classes_are_refused() -> None:
    score = np.zeros((2, 2), np.float32)
    for masks in ({"b": segment(score)}, {}, {"a": segment(score), "b": segment(score)}):
        with pytest.raises(ValueError, match="same classes"):
            detect(masks, {"a": score})


def test_masks_of_different_shapes_are_refused() -> None:
    scores = {"a": np.zeros((2, 2), np.float32), "b": np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match="one shape"):
        label_map(masks_of(scores), scores)
