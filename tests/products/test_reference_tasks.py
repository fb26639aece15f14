"""Every task against the answers that RemoteSAM's published code gave for the same made-up fields of logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eo_batch.products.boxes import Box, BoxRules, find_boxes
from eo_batch.products.caption import caption
from eo_batch.products.rules import CaptionRules, TaskRules
from eo_batch.products.tasks import count, detect, ground, multi_class, multi_label, segment

pytestmark = pytest.mark.shared

SIDE = 896
SCORE = 2e-6


@dataclass(frozen=True)
class Case:
    """One made-up image: what was asked, what upstream answered, and its scores at both sizes."""

    answers: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    native: Mapping[str, NDArray[np.float32]]
    scores: Mapping[str, NDArray[np.float32]]
    masks: Mapping[str, NDArray[np.bool_]]

    @property
    def shape(self) -> tuple[int, int]:
        return self.answers["H"], self.answers["W"]


def scores_of(blobs: list[list[float]]) -> NDArray[np.float32]:
    """P(foreground) of the field of ellipses, float32 (896, 896)."""
    across, down = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    field = np.full((SIDE, SIDE), -6.0)
    for cx, cy, rx, ry, phi, height in blobs:
        dx, dy = across - cx, down - cy
        a = (dx * np.cos(phi) + dy * np.sin(phi)) / rx
        b = (-dx * np.sin(phi) + dy * np.cos(phi)) / ry
        field = np.maximum(field, height * (1 - a**2 - b**2))
    return (1 / (1 + np.exp(-field.astype(np.float32)))).astype(np.float32)


def nearest(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """`values` at `shape`: each pixel takes the one at the floor of its scaled index."""
    rows, cols = (np.floor(np.arange(n) * (SIDE / n)).astype(int) for n in shape)
    return values[rows][:, cols]


@pytest.fixture(params=["tasks_a", "tasks_b"], scope="module")
def case(request: pytest.FixtureRequest, shared: Path) -> Case:
    folder = shared.parent / "golden" / "remotesam"
    if not folder.is_dir():
        pytest.skip("no reference vectors beside the real scenes")
    answers = {a["name"]: a for a in json.loads((folder / "tasks.json").read_text())["cases"]}[request.param]
    with np.load(folder / f"{request.param}.npz") as file:
        arrays = dict(file)
    native = {name: scores_of(blobs) for name, blobs in answers["blobs"].items()}
    shape = answers["H"], answers["W"]
    scores = {name: nearest(score, shape) for name, score in native.items()}
    return Case(answers, arrays, native, scores, {name: segment(score) for name, score in scores.items()})


def contour_of(case: Case) -> NDArray[np.float32]:
    contour = np.full(case.shape, 0.05, np.float32)
    for x0, y0, x1, y1, value in case.answers["contour_rects"]:
        contour[y0:y1, x0:x1] = value
    return contour


def assert_boxes(found: Mapping[str, list[Box]], expected: Mapping[str, list[list[float]] | None]) -> None:
    for name, boxes in expected.items():
        rows = [[*box.bounds, box.score] for box in found[name]]
        np.testing.assert_allclose(np.reshape(rows, (-1, 5)), np.reshape(boxes or [], (-1, 5)), rtol=0, atol=SCORE)


def test_masks_and_their_areas_are_upstreams(case: Case) -> None:
    for index, name in enumerate(case.answers["classes"]):
        expected = np.unpackbits(case.arrays[f"mask_{index}"], axis=1)[:, : case.shape[1]].astype(bool)
        assert np.array_equal(case.masks[name], expected)
        assert np.abs(case.scores[name][::4, ::4] - case.arrays[f"prob_s4_{index}"]).max() < SCORE
        assert case.masks[name].sum() == case.answers["mask_area"][name]


def test_detection_is_upstreams(case: Case) -> None:
    found = detect(case.masks, case.scores, rules=TaskRules.upstream())
    assert_boxes(found, case.answers["detection"])
    assert count(found) == case.answers["counting"]


@pytest.mark.parametrize(("threshold", "key"), [(0.25, "detection_epoc_thr025"), (0.7, "detection_epoc_thr07")])
def test_detection_with_a_contour_is_upstreams(case: Case, threshold: float, key: str) -> None:
    rules = TaskRules.upstream(contour_threshold=threshold)
    assert_boxes(detect(case.masks, case.scores, rules=rules, contour=contour_of(case)), case.answers[key])


def test_boxes_with_inner_ones_kept_are_upstreams_in_its_order(case: Case) -> None:
    rules = BoxRules.upstream(drop_inner=False)
    found = {name: find_boxes(case.masks[name], case.scores[name], rules=rules) for name in case.masks}
    assert_boxes(found, case.answers["hbb_keep_inner_no_nms"])


def test_oriented_boxes_have_upstreams_corners(case: Case) -> None:
    for name, expected in case.answers["obb"].items():
        boxes = find_boxes(case.masks[name], case.scores[name], rules=BoxRules.upstream(oriented=True))
        assert len(boxes) == len(expected)
        for box, (*numbers, score) in zip(boxes, expected, strict=True):
            corners = np.reshape(numbers, (4, 2))
            distance = min(np.abs(np.array(box.corners)[list(order)] - corners).max() for order in permutations(range(4)))
            assert distance <= 1
            assert box.score == pytest.approx(score, abs=SCORE)


def test_grounding_is_upstreams(case: Case) -> None:
    score = nearest(scores_of(case.answers["refer_blobs"]), case.shape)
    box = ground(segment(score), score, rules=TaskRules.upstream())
    assert box is not None
    assert list(box.bounds) == case.answers["visual_grounding"]
    assert box.pixels == case.answers["refer_area"]


def test_labels_and_their_scores_are_upstreams(case: Case) -> None:
    labels = multi_label(case.native, rules=TaskRules.upstream())
    assert list(labels.names) == case.answers["multi_label"]
    assert dict(labels.scores) == pytest.approx(case.answers["multi_label_scores"], abs=SCORE)


def test_the_chosen_class_is_upstreams(case: Case) -> None:
    labels = multi_class(case.native, rules=TaskRules.upstream())
    assert labels.names == (case.answers["multi_class"],)
    assert dict(labels.scores) == pytest.approx(case.answers["multi_class_scores"], abs=SCORE)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("regions", [4, 9])
def test_captions_are_upstreams_word_for_word(case: Case, seed: int, regions: int) -> None:
    boxes = detect(case.masks, case.scores, rules=TaskRules.upstream())
    text = caption(boxes, case.shape, regions=regions, random=Random(seed), rules=CaptionRules.upstream())
    assert text == case.answers["captions"][f"seed{seed}_split{regions}"]
