"""Outlines of polygons in another CRS: edges stay on course, and what a projection tears or turns inside out is told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

DENSIFY_DEG, DENSIFY_M = 0.01, 1_000.0
"""Edges get a vertex each 0.01 degrees, or each kilometre, before they are moved."""
LEAP = 1_000
"""An edge of such a piece that is longer than so many pieces in the other CRS was torn."""
FARTHEST_DEG, FARTHEST = 1_000.0, 2e8
"""No place has greater coordinates in degrees, or in metres or feet: the Earth's girth is 4e7 m."""
_AT_ONCE = 20_000


def move_outlines(shapes: NDArray[np.object_], source: CRS, target: CRS, *, max_vertices: int) -> NDArray[np.object_] | None:
    """`shapes` in the CRS `target`; a bounded number is moved at a time, for memory.

    Parameters
    ----------
    shapes : shapely Polygons and MultiPolygons in the CRS `source`.
    max_vertices : of all of them together, with those that edges get.

    Returns
    -------
    Shapes, None for one that has no sound coordinates in `target`: it reaches where that has none, or over a cut of it, or
    around half the globe. None instead of all where they have more than `max_vertices`.

    Raises
    ------
    pyproj.exceptions.ProjError : there is no way from one CRS to the other.
    """
    forward = Transformer.from_crs(source, target, always_xy=True)
    moved: list[NDArray[np.object_]] = []
    for start in range(0, len(shapes), _AT_ONCE):
        part = _densified(shapes[start : start + _AT_ONCE], _step(source), max_vertices=max_vertices)
        if part is None:
            return None
        max_vertices -= int(shapely.get_num_coordinates(part).sum())
        part = shapely.transform(part, lambda xy: np.stack(forward.transform(xy[:, 0], xy[:, 1]), axis=1))
        part[off_the_globe(part, target) | _torn(part, LEAP * _step(target))] = None
        moved.append(part)
    out = np.concatenate(moved)
    out[_spans_half_the_globe(shapes, source)] = None
    return out


def off_the_globe(shapes: NDArray[np.object_], crs: Any) -> NDArray[np.bool_]:
    """Shapes with coordinates so large that no place on Earth has them; sums over them would overflow."""
    limit = FARTHEST_DEG if crs.is_geographic else FARTHEST
    return np.asarray((np.abs(shapely.bounds(shapes)) > limit).any(axis=1))


def _step(crs: Any) -> float:
    """Length of a piece of an edge, in units of `crs`."""
    return DENSIFY_DEG if crs.is_geographic else DENSIFY_M / float(crs.axis_info[0].unit_conversion_factor)


def _torn(shapes: NDArray[np.object_], leap: float) -> NDArray[np.bool_]:
    """Shapes with an edge longer than `leap`, which was short before it was moved, or with an end that is not finite.

    Projections cut the globe somewhere (those of UTM opposite to their zone). A polygon over the cut comes out with edges
    from one end of the map to the other and would seem to cover what lies between.
    """
    parts, of_part = shapely.get_parts(shapes, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    with np.errstate(invalid="ignore"):
        leaps = (ring[1:] == ring[:-1]) & ~(np.hypot(*np.diff(xy, axis=0).T) <= leap)
    out = np.zeros(len(shapes), np.bool_)
    out[of_part[of_ring[ring[1:][leaps]]]] = True
    return out


def _spans_half_the_globe(shapes: NDArray[np.object_], source: Any) -> NDArray[np.bool_]:
    """Shapes with a part of more than 180 degrees of longitude: a projection would turn it inside out or tear it."""
    parts, index = shapely.get_parts(shapes, return_index=True)
    west, south, east, north = shapely.bounds(parts).T
    if source.is_geographic:
        wide = ~(east - west <= 180.0)  # as written: a transformation would wrap them
    else:
        back = Transformer.from_crs(source, "EPSG:4326", always_xy=True)
        wide = ~(np.ptp([back.transform(x, y)[0] for x in (west, east) for y in (south, north)], axis=0) <= 180.0)
        if wide.any():  # or across 180 degrees of longitude: then they are followed around
            x, y = _around(*shapely.bounds(parts[wide]).T)
            wide[wide] = ~(np.ptp(np.unwrap(back.transform(x, y)[0], period=360.0), axis=1) <= 180.0)
    out = np.zeros(len(shapes), np.bool_)
    out[index[wide]] = True
    return out


def _around(
    west: NDArray[np.float64], south: NDArray[np.float64], east: NDArray[np.float64], north: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates x and y, float64 (n, 65) each, of places around bounds."""
    t = np.linspace(0.0, 1.0, 17)
    none, one = np.zeros(16), np.ones(16)
    across = np.concatenate([t[:-1], one, t[:0:-1], none, [0.0]])
    up = np.concatenate([none, t[:-1], one, t[::-1]])
    return west[:, None] + across * (east - west)[:, None], south[:, None] + up * (north - south)[:, None]


def _densified(shapes: NDArray[np.object_], step: float, *, max_vertices: int) -> NDArray[np.object_] | None:
    """`shapes` with no edge longer than `step`; an edge gets the same vertices for the polygons on both of its sides."""
    kind, xy, offsets = shapely.to_ragged_array([shapely.MultiPolygon([s]) if s.geom_type == "Polygon" else s for s in shapes])
    assert kind is shapely.GeometryType.MULTIPOLYGON
    of_ring, of_part, of_shape = offsets
    ring = np.repeat(np.arange(len(of_ring) - 1), np.diff(of_ring))
    ahead = np.concatenate([xy[1:], xy[:1]])
    closing = np.concatenate([ring[1:] != ring[:-1], [True]])
    length = np.where(closing, 0.0, np.hypot(*(ahead - xy).T))
    pieces = np.maximum(1, np.ceil(length / step)).astype(np.int64)
    if pieces.sum() > max_vertices:
        return None
    vertex = np.repeat(np.arange(len(xy)), pieces)
    k = np.arange(len(vertex)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start, stop = xy[vertex], ahead[vertex]
    turned = (start[:, 0] > stop[:, 0]) | ((start[:, 0] == stop[:, 0]) & (start[:, 1] > stop[:, 1]))
    share = np.where(turned, pieces[vertex] - k, k) / pieces[vertex]
    low, high = np.where(turned[:, None], stop, start), np.where(turned[:, None], start, stop)
    points = np.where((k == 0)[:, None], start, low + share[:, None] * (high - low))
    rings = np.concatenate([[0], np.cumsum(pieces)])[of_ring]
    out = shapely.from_ragged_array(kind, points, (rings, of_part, of_shape))
    return np.where(shapely.get_num_geometries(out) == 1, shapely.get_geometry(out, 0), out)
