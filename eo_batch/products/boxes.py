"""A mask and its scores become boxes: one per object, horizontal or rotated, touching objects parted by a contour map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eo_batch.products.components import Components, check_mask, find_components, row_ends, split_by_contour
from eo_batch.products.rectangles import smallest_rectangles
from eo_batch.products.rules import Box, BoxRules, Corners
from eo_batch.products.suppress import drop_contained

__all__ = ["Box", "BoxRules", "find_boxes"]

_RULES = BoxRules()


def find_boxes(
    mask: NDArray[np.bool_],
    score: NDArray[np.floating],
    *,
    rules: BoxRules = _RULES,
    contour: NDArray[np.floating] | None = None,
) -> list[Box]:
    """Boxes of the objects of one mask, in the order of their first pixels, row by row.

    Parameters
    ----------
    mask : bool (y, x).
    score : float (y, x), P(foreground); looked at under the mask only.
    contour : float (y, x), how likely an outline runs through each pixel; objects are cut where it is above
        `rules.contour_threshold`.

    Raises
    ------
    ValueError : an array of another shape or type; a score under the mask outside [0, 1]; a contour that is not finite.
    """
    mask, score = check_mask(mask, score)
    if contour is not None:
        mask = split_by_contour(
            mask,
            contour,
            threshold=rules.contour_threshold,
            min_piece=rules.min_piece,
            keep_swallowed=rules.keep_swallowed,
        )
    found = find_components(mask, score)
    corners = _corners(found, rules) if rules.oriented else [None] * len(found)
    chosen = np.flatnonzero((found.pixels >= rules.min_pixels) & (found.score >= rules.min_score))
    chosen = chosen[np.argsort(found.first[chosen], kind="stable")]
    bounds, score_of, pixels = found.bounds.tolist(), found.score.tolist(), found.pixels.tolist()
    boxes = []
    for i in chosen.tolist():
        x0, y0, x1, y1 = map(float, bounds[i])
        boxes.append(Box(x0, y0, x1, y1, score_of[i], pixels[i], corners[i]))
    return drop_contained(boxes, by=rules.inner_by) if rules.drop_inner else boxes


def _corners(found: Components, rules: BoxRules) -> list[Corners | None]:
    """Corners of the rotated rectangle of each object."""
    label, row, left, right = row_ends(found.labels)
    if rules.corners_from == "edges":
        label, row, left, right = _line_ends(label, row, left, right + 1)
    points = np.stack([left, row, right, row], axis=1).reshape(-1, 2)
    rectangles = smallest_rectangles(points, np.repeat(label - 1, 2), len(found))
    if rules.corners_from == "centres":
        rectangles = np.trunc(rectangles)
    return [((a[0], a[1]), (b[0], b[1]), (c[0], c[1]), (d[0], d[1])) for a, b, c, d in rectangles.tolist()]


def _line_ends(
    label: NDArray[np.int64], row: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ends of each object on the lines above and below its rows, from its ends in the rows; a line has the wider of two rows."""
    below = np.flatnonzero(np.append(label[1:] != label[:-1], len(label) > 0))
    left_above, right_above = left.copy(), right.copy()
    same = np.flatnonzero(label[1:] == label[:-1]) + 1
    left_above[same] = np.minimum(left[same], left[same - 1])
    right_above[same] = np.maximum(right[same], right[same - 1])
    at = below + 1
    return (
        np.insert(label, at, label[below]),
        np.insert(row, at, row[below] + 1),
        np.insert(left_above, at, left[below]),
        np.insert(right_above, at, right[below]),
    )
