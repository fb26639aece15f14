"""The smallest rotated rectangle around an object.

One side of it lies along a side of the convex hull (Freeman and Shapira, "Determining the minimum-area encasing rectangle for
an arbitrary closed curve", CACM 18(7), 1975), so every side of the hull is tried. Positions are integers, so are the
products compared.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray


def smallest_rectangle(points: NDArray[np.integer]) -> NDArray[np.float64]:
    """Corners of the rotated rectangle of least area around `points`; of equal ones the least turned from the x axis.

    Parameters
    ----------
    points : integer (n, 2), x and y; one point or a line give a rectangle without area.

    Returns
    -------
    float64 (4, 2), clockwise on the screen (y down), from the topmost, then leftmost corner.
    """
    points = np.asarray(points, np.int64)
    return smallest_rectangles(np.repeat(points, 2, axis=0), np.zeros(2 * len(points), np.int64), 1)[0]


def smallest_rectangles(points: NDArray[np.integer], owner: NDArray[np.integer], count: int) -> NDArray[np.float64]:
    """`smallest_rectangle` of each of `count` groups of points.

    Parameters
    ----------
    points : integer (n, 2), x and y.
    owner : integer (n,), rising: the group 0..count - 1 of each point; every group has two points or more.

    Returns
    -------
    float64 (count, 4, 2).
    """
    if not count:
        return np.empty((0, 4, 2))
    origin = np.minimum.reduceat(points, np.searchsorted(owner, np.arange(count)), axis=0)
    hulls = shapely.convex_hull(shapely.linestrings((points - origin[owner]).astype(np.float64), indices=owner))
    xy, which = shapely.get_coordinates(hulls, return_index=True)
    ends = np.searchsorted(which, np.arange(1, count))
    corners = np.stack([_around(hull) for hull in np.split(xy.astype(np.int64), ends)])
    return corners + origin[:, None, :]


def _around(hull: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rectangle of least area with a side along a side of `hull`, int64 (k, 2): a ring, a line of two points, or one point."""
    sides = np.diff(hull, axis=0)
    sides = sides[(sides != 0).any(axis=1)]
    if not len(sides):
        return np.repeat(hull[:1].astype(np.float64), 4, axis=0)
    along = _first_quadrant(sides // np.gcd(sides[:, 0], sides[:, 1])[:, None])
    across = np.column_stack([-along[:, 1], along[:, 0]])
    u, v = along @ hull.T, across @ hull.T
    u0, u1, v0, v1 = u.min(axis=1), u.max(axis=1), v.min(axis=1), v.max(axis=1)
    square = (along**2).sum(axis=1)
    area = (u1 - u0) * (v1 - v0) / square
    best = np.lexsort((along[:, 1] / np.hypot(*along.T), area))[0]
    d, n = along[best], across[best]
    lengths = [(u0, v0), (u1, v0), (u1, v1), (u0, v1)]
    return np.array([(a[best] * d + b[best] * n) / square[best] for a, b in lengths])


def _first_quadrant(directions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each direction turned by a multiple of 90 degrees so that dx > 0 and dy >= 0: the same rectangle."""
    dx, dy = directions.T
    flat = (dy == 0) | (dx == 0)
    turned = np.where((dx > 0) == (dy > 0), np.abs([dx, dy]), np.abs([dy, dx]))
    return np.where(flat, [[1], [0]], turned).T
