"""From found objects, each with a mask and a confidence, to one logit per pixel of a window.

A pixel's score is that of the object that speaks for it most: the lesser of the confidence in the object and of the probability
that the pixel belongs to it (fuzzy and: the minimum; fuzzy or: the maximum). So a score is above a threshold exactly where an
object that is surer than the threshold has the pixel surer than the threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eo_batch.models.finder import LEAST

LIMIT = math.log((1 - LEAST) / LEAST)
TOUCHES = math.log(0.25 / 0.75)
"""Objects are kept apart where both have logits above this, the one of score 0.25."""
SAME = 0.5
"""Two masks whose intersection is more than this share of their union show one object."""


def join(confidences: Tensor, masks: Tensor, size_yx: tuple[int, int], *, apart: bool) -> Tensor:
    """Logits of a window, float32 (h, w), between -LIMIT and LIMIT; NaN everywhere where a confidence is not finite.

    Parameters
    ----------
    confidences : in 0..1, (n,), n may be 0.
    masks : logits of each pixel to belong to the object, (n, y, x) at the size that the network gives them; resized to `size_yx`
        bilinearly (corners not aligned), one at a time.
    apart : objects that touch get a line of -LIMIT between them, one pixel wide, taken from the less sure one; of several masks
        of one object (`SAME`) only the surest counts.
    """
    confidences = confidences.float()
    if not bool(torch.isfinite(confidences).all()):
        return torch.full(size_yx, math.nan, device=confidences.device)
    order = torch.sort(confidences, descending=True, stable=True).indices
    order = order[confidences[order] > LEAST]
    if apart:
        order = order[_distinct(masks[order] > 0)]
    sure = torch.logit(confidences[order]).clamp(max=LIMIT)
    best = torch.full(size_yx, -LIMIT, device=confidences.device)
    owner = torch.full(size_yx, len(order), dtype=torch.int32, device=confidences.device)
    for rank, number in enumerate(order.tolist()):
        logits = torch.minimum(_resized(masks[number], size_yx), sure[rank])
        owner.masked_fill_(logits > best, rank)  # equally sure: the earlier one has it
        best = torch.maximum(best, logits)
    return best.masked_fill(_borders(owner, best), -LIMIT) if apart else best


def gate(mask: Tensor, confidence: Tensor, size_yx: tuple[int, int]) -> Tensor:
    """Logits of a window, float32 (h, w), of a mask (y, x) of logits that counts as far as `confidence` () in 0..1 is sure."""
    sure = torch.logit(confidence.float()).clamp(-LIMIT, LIMIT)
    return torch.minimum(_resized(mask, size_yx), sure).clamp(min=-LIMIT)


def _resized(mask: Tensor, size_yx: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(mask.float()[None, None], size=size_yx, mode="bilinear", align_corners=False)[0, 0]


def _distinct(masks: Tensor) -> Tensor:
    """Places of the masks (n, y, x), surest first, that do not show the object of an earlier kept one, int64."""
    shown = masks.flatten(1).float()
    both = shown @ shown.T  # pixels in common: whole numbers, far below what float32 counts exactly
    areas = both.diagonal()
    is_same = (both > SAME * (areas[:, None] + areas - both)).tolist()
    kept: list[int] = []
    for place, row in enumerate(is_same):
        if not any(row[other] for other in kept):
            kept.append(place)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)


def _borders(owner: Tensor, logits: Tensor) -> Tensor:
    """Pixels, bool (h, w), beside or at the corner of a pixel whose owner is surer, both with logits above `TOUCHES`."""
    nobody = torch.iinfo(owner.dtype).max
    shown = owner.masked_fill(logits <= TOUCHES, nobody).float()  # small whole numbers are exact
    surest = -torch.nn.functional.max_pool2d(-shown[None, None], 3, stride=1, padding=1)[0, 0]
    return (surest < shown) & (logits > TOUCHES)
