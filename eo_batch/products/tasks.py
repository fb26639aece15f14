"""One answer per task from masks and scores of prompts: masks, boxes, counts, a place, labels.

Masks are bool (y, x), scores float (y, x), P(foreground) in [0, 1]; mappings go from class to array, and their order is the
order of classes. Nothing here knows a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.products.boxes import find_boxes
from eo_batch.products.components import check_mask
from eo_batch.products.rules import Box, TaskRules
from eo_batch.products.suppress import suppress

Masks = Mapping[str, NDArray[np.bool_]]
Scores = Mapping[str, NDArray[np.floating]]

_RULES = TaskRules()


@dataclass(frozen=True)
class Labels:
    """Which classes an image shows.

    Parameters
    ----------
    names : the classes that are there, in the order asked; at most one where one was to be chosen.
    scores : the score of every class asked for.
    """

    names: tuple[str, ...]
    scores: Mapping[str, float]


def segment(score: NDArray[np.floating], *, threshold: float = 0.5) -> NDArray[np.bool_]:
    """Mask of a score: bool (y, x), true above `threshold`.

    At 0.5 the same as the greater of two logits, ties to background, as far as they differ enough for the score to show it
    (1.2e-7 for float32).
    """
    return np.asarray(score) > threshold


def label_map(masks: Masks, scores: Scores, *, rules: TaskRules = _RULES) -> NDArray[np.int16]:
    """Position of the class of each pixel, int16 (y, x), -1 where no mask claims it.

    With `rules.overlap` "last" the last class that claims a pixel has it, else the claiming one with the greatest score, ties
    to the first.
    """
    pairs = _pairs(masks, scores)
    if len(pairs) > np.iinfo(np.int16).max:
        raise ValueError(f"a label map holds at most {np.iinfo(np.int16).max:,} classes, not {len(pairs):,}")
    shape = next(iter(pairs.values()))[0].shape
    labels = np.full(shape, -1, np.int16)
    best = np.full(shape, -np.inf)
    for index, (mask, score) in enumerate(pairs.values()):
        wins = mask if rules.overlap == "last" else mask & (score > best)
        labels[wins] = index
        best[wins] = score[wins]
    return labels


def semantic(masks: Masks, scores: Scores, *, rules: TaskRules = _RULES) -> dict[str, NDArray[np.bool_]]:
    """One mask per class: as they are with `rules.overlap` "independent", else parted so that no pixel has two classes."""
    pairs = _pairs(masks, scores)
    if rules.overlap == "independent":
        return {name: mask for name, (mask, _) in pairs.items()}
    labels = label_map(masks, scores, rules=rules)
    return {name: labels == index for index, name in enumerate(pairs)}


def detect(
    masks: Masks,
    scores: Scores,
    *,
    rules: TaskRules = _RULES,
    contour: NDArray[np.floating] | None = None,
) -> dict[str, list[Box]]:
    """Boxes of each class, best first (ties by first pixel), those that overlap a better one of the class left out.

    Without suppression (`rules.nms_iou` None) boxes come in the order of their first pixels.

    Parameters
    ----------
    contour : float (y, x), parts touching objects, see `find_boxes`; the same for all classes.
    """
    found = {}
    for name, (mask, score) in _pairs(masks, scores).items():
        boxes = find_boxes(mask, score, rules=rules.boxes, contour=contour)
        found[name] = boxes if rules.nms_iou is None else suppress(boxes, rules.nms_iou)
    return found


def count(boxes: Mapping[str, Sequence[Box]]) -> dict[str, int]:
    """Number of boxes of each class."""
    return {name: len(found) for name, found in boxes.items()}


def ground(mask: NDArray[np.bool_], score: NDArray[np.floating], *, rules: TaskRules = _RULES) -> Box | None:
    """The one box that a phrase means: around all boxes of its mask; None where there is none.

    Never cut by a contour and nothing suppressed. Its score is the mean over the pixels of the boxes it holds.
    """
    boxes = find_boxes(mask, score, rules=rules.boxes)
    if not boxes:
        return None
    low = np.array([box.bounds[:2] for box in boxes]).min(axis=0)
    high = np.array([box.bounds[2:] for box in boxes]).max(axis=0)
    pixels = sum(box.pixels for box in boxes)
    score_sum = sum(box.score * box.pixels for box in boxes)
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]), score_sum / pixels, pixels)


def presence(greatest: float, mean: float, *, balance: float = 0.5, balance_weighs: str = "max") -> float:
    """Score of a class in an image or zone: `balance` x greatest + (1 - `balance`) x mean score, or the weights swapped."""
    weight = balance if balance_weighs == "max" else 1 - balance
    return weight * greatest + (1 - weight) * mean


def multi_label(scores: Scores, *, valid: NDArray[np.bool_] | None = None, rules: TaskRules = _RULES) -> Labels:
    """Every class whose score is above `rules.label_threshold`.

    Parameters
    ----------
    scores : float (y, x) per class.
    valid : bool (y, x), pixels that count; all without it. Where it is false everywhere no class is there, at score 0.
    """
    found = {
        name: presence(*_sums(name, score, valid), balance=rules.label_balance, balance_weighs=rules.balance_weighs)
        for name, score in scores.items()
    }
    return Labels(tuple(name for name, score in found.items() if score > rules.label_threshold), found)


def multi_class(scores: Scores, *, valid: NDArray[np.bool_] | None = None, rules: TaskRules = _RULES) -> Labels:
    """The class with the best score, ties to the first; none if that is below `rules.class_threshold`. See `multi_label`."""
    found = {name: presence(*_sums(name, score, valid), balance=rules.class_balance) for name, score in scores.items()}
    best = max(found, key=found.__getitem__, default=None)
    return Labels((best,) if best is not None and found[best] >= rules.class_threshold else (), found)


def _pairs(masks: Masks, scores: Scores) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.floating]]]:
    if not masks or list(masks) != list(scores):
        raise ValueError(
            f"masks and scores are of the same classes in the same order, at least one: {list(masks)}, {list(scores)}"
        )
    pairs = {name: check_mask(mask, scores[name]) for name, mask in masks.items()}
    shapes = {mask.shape for mask, _ in pairs.values()}
    if len(shapes) > 1:
        raise ValueError(f"masks of one image have one shape, not {sorted(shapes)}")
    return pairs


def _sums(name: str, score: NDArray[np.floating], valid: NDArray[np.bool_] | None) -> tuple[float, float]:
    """Greatest and mean score of the pixels that count, (0, 0) without one."""
    score = np.asarray(score)
    if valid is not None and (valid.shape != score.shape or valid.dtype != np.bool_):
        raise ValueError(f"valid pixels of a score {score.shape} are bool of the same shape, not {valid.dtype} {valid.shape}")
    values = score.ravel() if valid is None else score[valid]
    if not values.size:
        return 0.0, 0.0
    greatest, least = float(values.max()), float(values.min())
    if not (least >= 0 and greatest <= 1):
        raise ValueError(f'a score of "{name}" is not within [0, 1]; scores are P(foreground)')
    return greatest, float(values.mean(dtype=np.float64))
