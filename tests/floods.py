"""Boxes of a mask the slow and obvious way, in plain loops: flood fill, pairs of pixels, pairs of boxes."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Pixel = tuple[int, int]


def flood(mask: NDArray[np.bool_]) -> list[list[Pixel]]:
    """Objects as lists of (row, col), connected at edges and corners, by first pixel."""
    free = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    objects = []
    for seed in sorted(free):
        if seed not in free:
            continue
        free.remove(seed)
        found, open_ends = [seed], [seed]
        while open_ends:
            y, x = open_ends.pop()
            for near in ((y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)):
                if near in free:
                    free.remove(near)
                    found.append(near)
                    open_ends.append(near)
        objects.append(sorted(found))
    return objects


def bounds_of(pixels: Iterable[Pixel]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1, the last two exclusive."""
    rows, cols = zip(*pixels, strict=True)
    return min(cols), min(rows), max(cols) + 1, max(rows) + 1


def least_turned_area(points: Iterable[tuple[int, int]]) -> Fraction:
    """Exact area of the smallest rotated rectangle around (x, y): every direction between two points is tried."""
    unique = sorted(set(points))
    least: Fraction | None = None
    for number, (ax, ay) in enumerate(unique):
        for bx, by in unique[number + 1 :]:
            dx, dy = bx - ax, by - ay
            along = [x * dx + y * dy for x, y in unique]
            across = [y * dx - x * dy for x, y in unique]
            area = Fraction((max(along) - min(along)) * (max(across) - min(across)), dx * dx + dy * dy)
            least = area if least is None else min(least, area)
    return least if least is not None else Fraction(0)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two (x0, y0, x1, y1)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def drawn(corners: Iterable[tuple[float, float]], width: int, height: int) -> set[Pixel]:
    """Lattice points (x, y) of a closed convex outline with integer corners, on a canvas from 0 to before `width`, `height`."""
    ring = list(corners)
    sides = list(zip(ring, ring[1:] + ring[:1], strict=True))
    inside = set()
    for y in range(height):
        for x in range(width):
            turns = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for (ax, ay), (bx, by) in sides]
            box = min(p[0] for p in ring) <= x <= max(p[0] for p in ring) and min(p[1] for p in ring) <= y <= max(
                p[1] for p in ring
            )
            if box and (all(t >= 0 for t in turns) or all(t <= 0 for t in turns)):
                inside.add((x, y))
    return inside
