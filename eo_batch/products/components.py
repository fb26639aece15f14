"""Objects of one mask: connected pixels, their sums, and the outermost pixels of each of their rows.

Pixels that meet at an edge or a corner are connected (8-connectivity), as in RemoteSAM. Objects come in the order of their
first pixel, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

_BLOCK_PIXELS = 1 << 20


@dataclass(frozen=True)
class Components:
    """Objects of one mask; object i has the label i + 1.

    Parameters
    ----------
    labels : int32 (y, x), 0 outside.
    bounds : int64 (object, 4): x0, y0, x1, y1, the last two exclusive.
    pixels : int64 (object,).
    score : float64 (object,), mean score over the pixels.
    first : int64 (object,), position of the first pixel in the flattened mask.
    """

    labels: NDArray[np.int32]
    bounds: NDArray[np.int64]
    pixels: NDArray[np.int64]
    score: NDArray[np.float64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.pixels)


def check_mask(mask: ArrayLike, score: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    """`mask` and `score` as C-ordered arrays.

    Raises
    ------
    ValueError : the mask is not bool (y, x), or the score no floating array of the same shape.
    """
    mask, score = np.ascontiguousarray(mask), np.ascontiguousarray(score)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask is bool (y, x), not {mask.dtype} {mask.shape}")
    if score.shape != mask.shape or not np.issubdtype(score.dtype, np.floating):
        raise ValueError(f"the score of a mask {mask.shape} is float of the same shape, not {score.dtype} {score.shape}")
    return mask, score


def find_components(mask: NDArray[np.bool_], score: NDArray[np.floating]) -> Components:
    """Objects of `mask` with their mean `score`.

    Raises
    ------
    ValueError : shapes or types (`check_mask`); a score under the mask that is not within [0, 1].
    """
    mask, score = check_mask(mask, score)
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), np.bool_), output=np.int32)
    pixels, sums = np.zeros(count + 1, np.int64), np.zeros(count + 1)
    first = np.full(count + 1, mask.size, np.int64)
    flat_labels, flat_score = labels.ravel(), score.ravel()
    for start in range(0, mask.size, _BLOCK_PIXELS):
        at = np.flatnonzero(flat_labels[start : start + _BLOCK_PIXELS]) + start
        owner, values = flat_labels[at], flat_score[at]
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("a score under the mask is not within [0, 1]; scores are P(foreground)")
        pixels += np.bincount(owner, minlength=count + 1)
        sums += np.bincount(owner, weights=values, minlength=count + 1)
        np.minimum.at(first, owner, at)
    slices = ndimage.find_objects(labels) if count else []
    bounds = np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], np.int64).reshape(-1, 4)
    return Components(labels, bounds, pixels[1:], sums[1:] / np.maximum(pixels[1:], 1), first[1:])


def row_ends(labels: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Leftmost and rightmost pixel of each object in each of its rows.

    The convex hull of an object depends on these pixels only.

    Returns
    -------
    (label, row, left, right) : int64, sorted by label, then row.
    """
    height, width = labels.shape
    edge = np.zeros((height, 1), np.bool_)
    changes = labels[:, 1:] != labels[:, :-1]
    starts = np.flatnonzero(np.hstack([~edge, changes]) & (labels > 0))
    stops = np.flatnonzero(np.hstack([changes, ~edge]) & (labels > 0))
    owner = labels.ravel()[starts].astype(np.int64)
    order = np.argsort(owner, kind="stable")
    owner, starts, stops = owner[order], starts[order], stops[order]
    row = starts // width
    fresh = np.ones(len(owner), np.bool_)
    fresh[1:] = (owner[1:] != owner[:-1]) | (row[1:] != row[:-1])
    last = np.roll(fresh, -1)
    return owner[fresh], row[fresh], starts[fresh] % width, stops[last] % width


def split_by_contour(
    mask: NDArray[np.bool_],
    contour: NDArray[np.floating],
    *,
    threshold: float,
    min_piece: float,
    keep_swallowed: bool,
) -> NDArray[np.bool_]:
    """`mask` without the contour between touching objects, and without the crumbs that the cut leaves.

    Parameters
    ----------
    mask : bool (y, x).
    contour : float (y, x), how likely an outline runs through the pixel, every one finite.
    threshold : pixels above this are cut out.
    min_piece : a piece stays if it has more than this share of the pixels of the largest piece of its object.
    keep_swallowed : an object of which the cut leaves nothing stays whole.

    Returns
    -------
    bool (y, x); pieces that stay are its objects.
    """
    contour = np.asarray(contour)
    if contour.shape != mask.shape or not np.issubdtype(contour.dtype, np.floating):
        raise ValueError(f"the contour of a mask {mask.shape} is float of the same shape, not {contour.dtype} {contour.shape}")
    if not np.isfinite(contour).all():
        raise ValueError("the contour map holds values that are not finite")
    neighbours = np.ones((3, 3), np.bool_)
    whole, count = ndimage.label(mask, structure=neighbours, output=np.int32)
    pieces, _ = ndimage.label(mask & (contour <= threshold), structure=neighbours, output=np.int32)
    area = np.bincount(pieces.ravel(), minlength=1)
    area[0] = 0
    parent = np.zeros(len(area), np.int32)
    parent[pieces.ravel()] = whole.ravel()
    parent[0] = 0
    largest = np.zeros(count + 1, np.int64)
    np.maximum.at(largest, parent, area)
    stays = area > min_piece * largest[parent]
    stays[0] = False
    kept: NDArray[np.bool_] = stays[pieces]
    if keep_swallowed:
        swallowed = largest == 0
        swallowed[0] = False
        kept |= swallowed[whole]
    return kept
