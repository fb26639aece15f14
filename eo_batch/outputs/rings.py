"""Objects of a mask and their outlines on the pixel lattice, in integers: the one canonical form of a polygon.

An object is a set of pixels connected through edges (4-connectivity). Its outline is a list of rings of lattice vertices
(x = column, y = row; vertex (x, y) is the upper left corner of that pixel):

* the object lies on the left hand in map view (y up): shells run counterclockwise, holes clockwise;
* vertices only where the outline turns; the first vertex of a ring is its topmost, then leftmost one;
* the shell comes first, then holes by first vertex;
* where two pixels of one object touch at a corner only, the outline turns to the right. So every ring passes each vertex
  once and the polygon is valid: two such pixels are joined elsewhere, the joining path and the corner make a closed curve,
  so the background on both sides of the corner belongs to different rings.

So an object has exactly one outline, and equality of outlines is equality of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

_SOUTH, _EAST, _NORTH, _WEST = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of n objects, flat.

    Parameters
    ----------
    xy : int64 (vertex, 2), rings not closed (the first vertex is not repeated).
    rings : int64 (ring + 1,), ring i is `xy[rings[i]:rings[i + 1]]`.
    objects : int64 (n + 1,), object j has the rings `objects[j]:objects[j + 1]`, shell first.
    """

    xy: NDArray[np.int64]
    rings: NDArray[np.int64]
    objects: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.objects) - 1

    @staticmethod
    def empty() -> Outlines:
        """No objects."""
        return Outlines(np.empty((0, 2), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))

    @staticmethod
    def concat(outlines: list[Outlines]) -> Outlines:
        """All objects, in order."""
        if not outlines:
            return Outlines.empty()
        return Outlines(
            np.concatenate([o.xy for o in outlines]),
            _concat_offsets([o.rings for o in outlines]),
            _concat_offsets([o.objects for o in outlines]),
        )

    def take(self, index: NDArray[np.int64]) -> Outlines:
        """The objects at the positions `index`, in that order."""
        rings, objects = take_ragged(self.objects, index)
        vertices, ring_offsets = take_ragged(self.rings, rings)
        return Outlines(self.xy[vertices], ring_offsets, objects)

    @property
    def first(self) -> NDArray[np.int64]:
        """int64 (n, 2): first vertex (x, y) of each object, which is its topmost, then leftmost pixel (column, row)."""
        return self.xy[self.rings[self.objects[:-1]]]

    @property
    def bounds(self) -> NDArray[np.int64]:
        """int64 (n, 4): least x, least y, greatest x, greatest y of each object's vertices."""
        if not len(self):
            return np.empty((0, 4), np.int64)
        starts = self.rings[self.objects[:-1]]
        return np.concatenate([np.minimum.reduceat(self.xy, starts), np.maximum.reduceat(self.xy, starts)], axis=1)


def label_objects(mask: NDArray[np.uint8], *, value: int = 1) -> tuple[NDArray[np.int32], int]:
    """Objects of the pixels that hold `value`, numbered from 1 by their first pixel row by row.

    Parameters
    ----------
    mask : uint8 (y, x).

    Returns
    -------
    int32 (y + 2, x + 2) with a border of 0 around, and the number of objects.
    """
    labels = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.int32)
    return labels, int(_label(mask, np.uint8(value), labels))


def trace_objects(labels: NDArray[np.int32], count: int, *, row: int, col: int) -> Outlines:
    """Outlines of all objects of `label_objects`, in the order of their numbers.

    Parameters
    ----------
    row, col : absolute index of the first row and column of the mask.
    """
    xy, starts, owners = _trace(labels)
    # Shells are found first, one per object in order; holes by first vertex: a stable sort puts them behind their shell.
    order = np.argsort(owners, kind="stable")
    vertices, rings = take_ragged(starts, order)
    objects = np.searchsorted(owners[order], np.arange(1, count + 2)).astype(np.int64)
    return Outlines(xy[vertices].astype(np.int64) + np.array([col, row]), rings, objects)


# Arrays below are made once and never reassigned in loops over pixels: numba would count references at every pixel.


@njit(cache=True, nogil=True)
def _label(mask: NDArray[np.uint8], value: np.uint8, labels: NDArray[np.int32]) -> int:  # pragma: no cover
    """Two-pass union-find labelling into `labels` (with border); number of objects. Rosenfeld and Pfaltz 1966."""
    height, width = mask.shape
    starts = 1
    for y in range(height):
        line, before = mask[y], mask[max(y - 1, 0)]
        for x in range(width):
            new = line[x] == value and (x == 0 or line[x - 1] != value) and (y == 0 or before[x] != value)
            starts += new
    parent = np.zeros(starts, np.int32)
    used = 1
    for y in range(height):
        line, above, here = mask[y], labels[y], labels[y + 1]
        left = np.int32(0)
        for x in range(width):
            if line[x] != value:
                left = np.int32(0)
                continue
            up = above[x + 1]
            if up == 0 and left == 0:
                parent[used] = used
                left = np.int32(used)
                used += 1
            elif left == 0:
                left = up
            elif up != 0 and up != left:
                a, b = _root(parent, up), _root(parent, left)
                parent[max(a, b)] = min(a, b)
                left = min(a, b)
            here[x + 1] = left
    count = 0
    for i in range(1, used):  # a parent is never greater than its child: parents are final when children are reached
        if parent[i] == i:
            count += 1
            parent[i] = count
        else:
            parent[i] = parent[parent[i]]
    for y in range(1, height + 1):
        here = labels[y]
        for x in range(1, width + 1):
            if here[x] != 0:
                here[x] = parent[here[x]]
    return count


@njit(cache=True, nogil=True)
def _root(parent: NDArray[np.int32], i: int) -> int:  # pragma: no cover
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True)
def _trace(labels: NDArray[np.int32]) -> tuple[NDArray, NDArray, NDArray]:  # pragma: no cover
    """Rings of all objects: vertices int32 (n, 2), ring offsets, object of each ring."""
    done = np.zeros(labels.shape, np.uint8)
    xy, starts, owners = np.empty((0, 2), np.int32), np.zeros(1, np.int64), np.empty(0, np.int32)
    rings, used = _follow_all(labels, done, 1, xy, starts, owners)
    xy, starts, owners = np.empty((used, 2), np.int32), np.zeros(rings + 1, np.int64), np.empty(rings, np.int32)
    _follow_all(labels, done, 2, xy, starts, owners)
    return xy, starts, owners


@njit(cache=True, nogil=True)
def _follow_all(
    labels: NDArray[np.int32],
    done: NDArray[np.uint8],
    mark: int,
    xy: NDArray[np.int32],
    starts: NDArray[np.int64],
    owners: NDArray[np.int32],
) -> tuple[int, int]:  # pragma: no cover
    """Numbers of rings and vertices; the rings themselves as far as there is room. `done` gets `mark` below pixels."""
    height, width = labels.shape
    rings = used = 0
    for holes in range(2):
        seen = 0
        for py in range(1, height - 1):
            here, below, passed = labels[py], labels[py + 1], done[py]
            for px in range(1, width - 1):
                label = here[px]
                if label == 0:
                    continue
                if holes == 0:
                    if label <= seen:
                        continue
                    seen = label
                elif below[px] == label or passed[px] == mark:
                    continue
                used = _follow(labels, done, mark, py + holes, px, holes, xy, used)
                if rings < len(owners):
                    owners[rings], starts[rings + 1] = label, used
                rings += 1
    return rings, used


@njit(cache=True, nogil=True)
def _follow(
    labels: NDArray[np.int32],
    done: NDArray[np.uint8],
    mark: int,
    first_y: int,
    first_x: int,
    first_way: int,
    xy: NDArray[np.int32],
    used: int,
) -> int:  # pragma: no cover
    """Follow one ring from its first vertex: shells leave it to the south, holes to the east. The new `used`."""
    y, x, way = first_y, first_x, first_way
    label = labels[y, x] if way == _SOUTH else labels[y - 1, x]
    corner = True
    while True:
        if corner:
            if used < len(xy):
                xy[used, 0], xy[used, 1] = x - 1, y - 1
            used += 1
        if way == _SOUTH:
            y += 1
            right, left = labels[y, x - 1] == label, labels[y, x] == label
        elif way == _EAST:
            done[y - 1, x] = mark
            x += 1
            right, left = labels[y, x] == label, labels[y - 1, x] == label
        elif way == _NORTH:
            y -= 1
            right, left = labels[y - 1, x] == label, labels[y - 1, x - 1] == label
        else:
            x -= 1
            right, left = labels[y - 1, x - 1] == label, labels[y, x - 1] == label
        corner = right or not left
        if right:
            way = (way + 3) & 3
        elif not left:
            way = (way + 1) & 3
        if y == first_y and x == first_x and way == first_way:
            return used


def _concat_offsets(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    counts = [np.diff(part) for part in parts]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])


def take_ragged(offsets: NDArray[np.int64], index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the members of the lists `index` of a ragged array, and the new offsets."""
    lengths = (offsets[1:] - offsets[:-1])[index]
    out = np.zeros(len(index) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    positions = np.arange(out[-1], dtype=np.int64) + np.repeat(offsets[index] - out[:-1], lengths)
    return positions, out
