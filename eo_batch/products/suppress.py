"""Which boxes of one class say the same thing: boxes inside others, and boxes that overlap better ones.

Pairs that can matter come from a tree of bounds, so that many small boxes cost little more than their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from eo_batch.products.rules import Box

_QUERY = 256
_TOLERANCE_PX = 1e-6


def suppress(boxes: Sequence[Box], iou: float) -> list[Box]:
    """The boxes that no better box overlaps by more than `iou`, best first; of equal scores the earlier is better.

    Greedy: a box that is left out suppresses nothing. Intersection over union is computed in float32 for horizontal boxes
    and from the rotated rectangles where one of the two is oriented.

    Raises
    ------
    ValueError : `iou` is not within [0, 1].
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"the overlap from which boxes are suppressed is within [0, 1], not {iou}")
    order = np.argsort(-np.array([box.score for box in boxes], np.float32), kind="stable")
    ranked = [boxes[i] for i in order.tolist()]
    rivals = _rivals(ranked, iou)
    kept = np.ones(len(ranked), np.bool_)
    for better, worse in enumerate(rivals):
        if kept[better]:
            kept[worse] = False
    return [box for box, stays in zip(ranked, kept.tolist(), strict=True) if stays]


def drop_contained(boxes: Sequence[Box], *, by: Literal["geometry", "drawing"] = "geometry") -> list[Box]:
    """The boxes that lie in no other box, in the order given; what "in" means is told at `BoxRules.inner_by`.

    By "geometry" the better of two equal boxes stays, the earlier where their scores are equal too. By "drawing" coordinates
    are cut to integers first, as pixels can only be drawn at those.
    """
    if len(boxes) < 2:
        return list(boxes)
    dropped = _inside_by_geometry(boxes) if by == "geometry" else _inside_by_drawing(boxes)
    return [box for box, goes in zip(boxes, dropped.tolist(), strict=True) if not goes]


def _corners(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """(n, 4, 2): rotated rectangles, or bounds where a box is horizontal; clockwise on the screen."""
    return np.array(
        [
            box.corners if box.corners is not None else ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1))
            for box in boxes
        ],
        np.float64,
    ).reshape(-1, 4, 2)


def _near(corners: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs (i, j), i not j, whose bounds meet; those of a bounded number of i at a time."""
    low, high = corners.min(axis=1), corners.max(axis=1)
    tree = shapely.STRtree(shapely.box(*low.T, *high.T))
    for start in range(0, len(corners), _QUERY):
        part = slice(start, start + _QUERY)
        one, other = tree.query(shapely.box(*low[part].T, *high[part].T))
        one = one + start
        differ = one != other
        yield one[differ], other[differ]


def _rivals(ranked: Sequence[Box], iou: float) -> list[NDArray[np.intp]]:
    """For each box the worse boxes that it overlaps by more than `iou`."""
    if not ranked:
        return []
    corners = _corners(ranked)
    oriented = np.array([box.corners is not None for box in ranked])
    shapes = shapely.polygons(corners)
    near = (corners - corners.reshape(-1, 2).min(axis=0)).astype(np.float32)
    low, high = near.min(axis=1), near.max(axis=1)
    found = [np.empty((0, 2), np.intp)]
    for one, other in _near(corners):
        pairs = np.column_stack([one, other])[one < other]
        turned = oriented[pairs].any(axis=1)
        found.append(pairs[~turned][_overlap(low, high, *pairs[~turned].T) > np.float32(iou)])
        found.append(pairs[turned][_turned_overlap(shapes, *pairs[turned].T) > iou])
    pairs = np.concatenate(found)
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return np.split(pairs[:, 1], np.searchsorted(pairs[:, 0], np.arange(1, len(ranked))))


def _overlap(
    low: NDArray[np.float32], high: NDArray[np.float32], one: NDArray[np.intp], other: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Intersection over union of horizontal boxes, float32; 0 without area."""
    shared = np.prod(np.maximum(np.minimum(high[one], high[other]) - np.maximum(low[one], low[other]), 0), axis=1)
    union = np.prod(high[one] - low[one], axis=1) + np.prod(high[other] - low[other], axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _turned_overlap(shapes: NDArray[np.object_], one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.float64]:
    """Intersection over union of rotated rectangles; 0 without area."""
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    union = shapely.area(shapes[one]) + shapely.area(shapes[other]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _inside_by_geometry(boxes: Sequence[Box]) -> NDArray[np.bool_]:
    corners = _corners(boxes)
    rank = np.empty(len(boxes), np.intp)
    rank[np.argsort(-np.array([box.score for box in boxes]), kind="stable")] = np.arange(len(boxes))
    dropped = np.zeros(len(boxes), np.bool_)
    for inner, outer in _near(corners):
        held = _holds(corners[outer], corners[inner])
        inner, outer = inner[held], outer[held]
        equal = _holds(corners[inner], corners[outer])
        dropped[inner[~equal | (rank[outer] < rank[inner])]] = True
    return dropped


def _holds(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether no corner of a rectangle (n, 4, 2) lies outside the other one of its pair."""
    side = np.roll(outer, -1, axis=1) - outer
    length = np.hypot(side[..., 0], side[..., 1])
    reach = inner[:, :, None, :] - outer[:, None, :, :]
    cross = side[:, None, :, 0] * reach[..., 1] - side[:, None, :, 1] * reach[..., 0]
    within = (cross >= -_TOLERANCE_PX * np.maximum(length, 1)[:, None, :]).all(axis=(1, 2))
    low = (inner.min(axis=1) >= outer.min(axis=1) - _TOLERANCE_PX).all(axis=1)
    high = (inner.max(axis=1) <= outer.max(axis=1) + _TOLERANCE_PX).all(axis=1)
    return within & low & high


def _inside_by_drawing(boxes: Sequence[Box]) -> NDArray[np.bool_]:
    """Boxes whose drawing is covered by another's, on a canvas from 0 to before the larger far coordinates of the two."""
    corners = np.trunc(_corners(boxes)).astype(np.int64)
    low, high = corners.min(axis=1), corners.max(axis=1)
    oriented = np.array([box.corners is not None for box in boxes])
    dropped = _off_canvas(corners, low, high)
    drawings: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
    for inner, outer in _near(corners.astype(np.float64)):
        end = np.maximum(high[inner], high[outer]) - 1
        seen_low, seen_high = np.maximum(low[inner], 0), np.minimum(high[inner], end)
        covered = ((seen_low >= low[outer]) & (seen_high <= high[outer])).all(axis=1)
        juts = (high[inner] > high[outer]).any(axis=1) & (high[inner] <= high[outer] + 1).all(axis=1)
        turned = (covered | juts) & (oriented[inner] | oriented[outer])
        for k in np.flatnonzero(turned).tolist():
            i, j = int(inner[k]), int(outer[k])
            for index in (i, j):
                if index not in drawings:
                    drawings[index] = _row_spans(corners[index])
            covered[k] = _covers(low[j, 1], drawings[j], low[i, 1], drawings[i], end[k])
        dropped[inner[covered]] = True
    return dropped


def _off_canvas(corners: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Boxes of which the canvas shared with some other box shows nothing: all their pixels are in their last row or column."""
    narrow = high <= np.maximum(low, 0)
    at_end = (corners == high[:, None]).any(axis=2).all(axis=1) | narrow.any(axis=1)
    gone = np.zeros(len(corners), np.bool_)
    for i in np.flatnonzero(at_end).tolist():
        left, _ = _row_spans(corners[i])
        thin = bool((left[max(0, -low[i, 1]) : -1] >= high[i, 0]).all())
        cut = np.delete(high, i, axis=0) <= high[i]
        gone[i] = (cut & narrow[i]).any() or (thin and cut.all(axis=1).any())
    return gone


def _row_spans(corners: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last pixel of each row of a filled convex outline, border included, from its topmost row down.

    The border is the digital line of Bresenham ("Algorithm for computer control of a digital plotter", 1965), drawn from its left
    end; halfway it stays where it is, as OpenCV does.
    """
    top = corners[:, 1].min()
    left = np.full(corners[:, 1].max() - top + 1, np.iinfo(np.int64).max)
    right = np.full(len(left), np.iinfo(np.int64).min)
    for one, other in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        start, stop = (one, other) if one[0] <= other[0] else (other, one)
        way = stop - start
        steps = max(int(np.abs(way).max()), 1)
        moved = (2 * np.arange(steps + 1)[:, None] * np.abs(way) + steps - 1) // (2 * steps)
        x, y = (start + np.sign(way) * moved).T
        np.minimum.at(left, y - top, x)
        np.maximum.at(right, y - top, x)
    return left, right


def _covers(
    outer_top: int,
    outer: tuple[NDArray[np.int64], NDArray[np.int64]],
    inner_top: int,
    inner: tuple[NDArray[np.int64], NDArray[np.int64]],
    end: NDArray[np.int64],
) -> bool:
    """Whether the visible part of the inner drawing, x and y from 0 to `end`, lies in the outer one."""
    rows = np.arange(max(inner_top, 0), min(inner_top + len(inner[0]) - 1, int(end[1])) + 1)
    left = np.maximum(inner[0][rows - inner_top], 0)
    right = np.minimum(inner[1][rows - inner_top], int(end[0]))
    visible = left <= right
    rows, left, right = rows[visible], left[visible], right[visible]
    at = rows - outer_top
    if not ((at >= 0) & (at < len(outer[0]))).all():
        return False
    return bool(((outer[0][at] <= left) & (right <= outer[1][at])).all())
