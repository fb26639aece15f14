"""What the prompts found in one image, and what it means by the rules of each task. Plain values, computed when asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION
from eo_batch.core.prompts import PromptSet
from eo_batch.products.caption import caption
from eo_batch.products.rules import Box, TaskRules
from eo_batch.products.tasks import Labels, count, detect, ground, multi_class, multi_label
from eo_batch.sources.picture import Picture

TASKS = ("masks", "detect", "ground", "classify", "count", "caption")
"""What can be asked of an answer, in the order in which it is told."""


@dataclass(frozen=True, eq=False)
class ImageAnswer:
    """Scores and masks of one image, and the tasks they serve.

    Parameters
    ----------
    picture : the image.
    prompts : what was asked, in the order of the prompt axis.
    scores : float32 (prompt, y, x), P(prompt) in [0, 1]; NaN where not observed.
    masks : bool (prompt, y, x): score above the prompt's threshold; False where not observed.
    rules : how masks become boxes, labels and sentences.
    contour : float (y, x), how likely an outline runs through each pixel; None: touching objects stay one.
    fit : "whole" or "windows": how the image was shown to the segmenter.
    window_px : side of the windows; None where it was shown whole.
    model, model_digest : name and identity of the segmenter.
    explanations, warnings : how the prompts were answered, and what their author may not expect; lines for people.
    """

    picture: Picture
    prompts: PromptSet
    scores: NDArray[np.float32]
    masks: NDArray[np.bool_]
    rules: TaskRules = field(default_factory=TaskRules)
    contour: NDArray[np.floating] | None = None
    fit: str = "whole"
    window_px: int | None = None
    model: str = ""
    model_digest: str = ""
    explanations: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the image to get here, for people."""
        return self.picture.notes

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Masks as a run stores them: uint8 (prompt, y, x) of 0 no, 1 yes, 254 not observed."""
        return np.where(self.picture.valid, self.masks.astype(np.uint8), np.uint8(NO_OBSERVATION))

    @cached_property
    def boxes(self) -> dict[str, list[Box]]:
        """Objects of each prompt, best first, in pixels: x to the right, y down, from the outer corner of the first pixel."""
        return detect(self._masks, self._scores, rules=self.rules, contour=self.contour)

    @property
    def counts(self) -> dict[str, int]:
        """Number of objects of each prompt."""
        return count(self.boxes)

    @cached_property
    def places(self) -> dict[str, Box | None]:
        """The one box that each prompt means: around everything it finds; None where that is nothing."""
        return {name: ground(mask, self._scores[name], rules=self.rules) for name, mask in self._masks.items()}

    @cached_property
    def labels(self) -> Labels:
        """Every prompt that the image shows, and the score of each."""
        return multi_label(self._scores, valid=self.picture.valid, rules=self.rules)

    @cached_property
    def best_class(self) -> Labels:
        """The one prompt that fits the image best, if any fits."""
        return multi_class(self._scores, valid=self.picture.valid, rules=self.rules)

    def caption(self, *, regions: int = 4, seed: int | None = None) -> str:
        """Sentences about the objects: what the image holds, and where.

        Parameters
        ----------
        regions : 4 (2 x 2), 9 (3 x 3), or 0 for no places.
        seed : draws the wording; None: always the same plain one.
        """
        words = None if seed is None else random.Random(seed)
        return caption(self.boxes, self.picture.shape, regions=regions, random=words, rules=self.rules.captions)

    def found_share(self, index: int) -> float | None:
        """Found share of the observed pixels of prompt `index`; None where nothing is observed."""
        observed = int(self.picture.valid.sum())
        return float(self.masks[index].sum()) / observed if observed else None

    def as_dict(self, tasks: Sequence[str] = TASKS, *, regions: int = 4, seed: int | None = None) -> dict[str, Any]:
        """The answer as JSON values: numbers are those of Python, boxes are in pixels.

        Parameters
        ----------
        tasks : which of `TASKS` to tell.
        regions, seed : of the caption.
        """
        height, width = self.picture.shape
        prompts: list[dict[str, Any]] = [{"text": prompt.text, "id": prompt.id} for prompt in self.prompts]
        for index, told in enumerate(prompts):
            text = told["text"]
            if "masks" in tasks:
                told |= {"threshold": self.prompts.prompts[index].threshold, "pixels": int(self.masks[index].sum())}
                told |= {"found_share": self.found_share(index)}
            if "count" in tasks:
                told["count"] = self.counts[text]
            if "detect" in tasks:
                told["boxes"] = [box_dict(box) for box in self.boxes[text]]
            if "ground" in tasks:
                place = self.places[text]
                told["place"] = None if place is None else box_dict(place)
            if "classify" in tasks:
                told |= {"is_present": text in self.labels.names, "label_score": float(self.labels.scores[text])}
                told |= {"class_score": float(self.best_class.scores[text])}
        answer: dict[str, Any] = {
            "image": self.picture.name,
            "width": width,
            "height": height,
            "crs": self.picture.crs,
            "bands": list(self.picture.bands),
            "model": {"name": self.model, "digest": self.model_digest},
            "fit": self.fit,
            "window_px": self.window_px,
            "notes": list(self.notes),
            "explanations": list(self.explanations),
            "warnings": list(self.warnings),
            "prompts": prompts,
        }
        if "classify" in tasks:
            answer["class"] = self.best_class.names[0] if self.best_class.names else None
        if "caption" in tasks:
            answer["caption"] = self.caption(regions=regions, seed=seed)
        return answer

    @property
    def _masks(self) -> Mapping[str, NDArray[np.bool_]]:
        return dict(zip(self.prompts.texts, self.masks, strict=True))

    @property
    def _scores(self) -> Mapping[str, NDArray[np.float32]]:
        return dict(zip(self.prompts.texts, self.scores, strict=True))


def box_dict(box: Box) -> dict[str, Any]:
    """A box as JSON values, in pixels."""
    told: dict[str, Any] = {
        "x0": float(box.x0),
        "y0": float(box.y0),
        "x1": float(box.x1),
        "y1": float(box.y1),
        "score": float(box.score),
        "pixels": int(box.pixels),
    }
    if box.corners is not None:
        told["corners"] = [[float(x), float(y)] for x, y in box.corners]
    return told
