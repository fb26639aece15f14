"""What the user asks for: a polygon on the Earth and a period, and how it falls on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Grid, Span, stride_of

MAX_INDEX = 2**31 - 1
"""Largest absolute pixel index of a grid."""
SMALL_PX = 1_000_000
"""A region on a grid of at most so many pixels is searched for one whose centre it holds."""
DENSIFY_DEG = 0.01
"""Region edges are straight in longitude and latitude: they get a vertex each 0.01 degrees before projection."""


@dataclass(frozen=True)
class Region:
    """Polygon and period.

    Parameters
    ----------
    name : for people.
    parts : shapely Polygons in longitude and latitude (degrees, WGS 84), none crossing the antimeridian.
    start, end : period, UTC, half-open: start <= t < end.
    """

    name: str
    parts: tuple[Any, ...]
    start: datetime
    end: datetime

    @property
    def geometry(self) -> Any:
        """All parts as one shapely MultiPolygon in longitude and latitude."""
        from shapely import MultiPolygon

        return MultiPolygon(self.parts)

    @property
    def crosses_antimeridian(self) -> bool:
        """Parts lie on both sides of longitude 180."""
        bounds = [part.bounds for part in self.parts]
        return any(b[2] >= 180.0 for b in bounds) and any(b[0] <= -180.0 for b in bounds)

    @property
    def centre_lonlat(self) -> tuple[float, float]:
        """Longitude (-180..180) and latitude of the middle of the bounding box, the antimeridian respected."""
        west, south, east, north = self._continuous_bounds()
        lon = (west + east) / 2
        return (lon + 180.0) % 360.0 - 180.0, (south + north) / 2

    def _continuous_bounds(self) -> tuple[float, float, float, float]:
        shift = 360.0 if self.crosses_antimeridian else 0.0
        boxes = [(b[0] + shift * (b[0] < 0), b[1], b[2] + shift * (b[0] < 0), b[3]) for b in (p.bounds for p in self.parts)]
        return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def region_from_bbox(name: str, bbox: tuple[float, ...], start: datetime, end: datetime) -> Region:
    """Region of a (west, south, east, north) box in degrees; west > east crosses the antimeridian.

    Raises
    ------
    ConfigError : `region-invalid`.
    """
    from shapely import box

    if len(bbox) != 4 or not all(np.isfinite(bbox)):
        raise _invalid(name, f"bbox needs four finite numbers, got {list(bbox)}")
    west, south, east, north = bbox
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= 90 and -90 <= north <= 90):
        raise _invalid(name, f"bbox {list(bbox)} leaves longitude -180..180 or latitude -90..90")
    if south >= north or west == east:
        raise _invalid(name, f"bbox {list(bbox)} is empty: it must be west, south, east, north with south < north")
    if west > east:
        boxes = [box(w, south, e, north) for w, e in ((west, 180.0), (-180.0, east)) if w < e]
    else:
        boxes = [box(west, south, east, north)]
    return Region(name, tuple(boxes), start, end)


def region_from_geojson(name: str, document: Any, start: datetime, end: datetime) -> Region:
    """Region of a GeoJSON geometry, Feature or FeatureCollection of (multi)polygons in longitude and latitude.

    Raises
    ------
    ConfigError : `region-invalid`: no polygon, a ring that crosses itself, coordinates outside the globe.
    """
    from shapely import unary_union

    union = unary_union(_polygons(name, _geometries(document)))
    parts = tuple(sorted(getattr(union, "geoms", [union]), key=lambda part: part.bounds))
    return Region(name, parts, start, end)


def region_from_parts(name: str, parts: Any, start: datetime, end: datetime) -> Region:
    """Region of the GeoJSON polygons of `Region.parts`, vertex by vertex as they are.

    A union may start rings elsewhere when it is made again, so what was stored is never joined a second time.

    Raises
    ------
    ConfigError : `region-invalid`, as `region_from_geojson`.
    """
    return Region(name, tuple(_polygons(name, _list(parts))), start, end)


def choose_crs(region: Region) -> str:
    """UTM zone (WGS 84) of the middle of the region; polar stereographic beyond 84 N and 80 S.

    EPSG:3413 / EPSG:3031 near the poles. Norway's and Svalbard's special zones are not used.
    """
    lon, lat = region.centre_lonlat
    if lat > 84:
        return "EPSG:3413"
    if lat < -80:
        return "EPSG:3031"
    zone = min(60, int((lon + 180.0) // 6) + 1)
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def make_grid(
    region: Region, *, crs: str, resolution: float, chunk_px: int, window_px: int, overlap: float
) -> tuple[Grid, RegionOnGrid]:
    """Smallest grid on the anchored lattice that covers `region`, and the region in its pixels.

    Raises
    ------
    ConfigError : `config-invalid` for an unknown CRS, `region-invalid` if the region has no place in the CRS.
    """
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError
    from shapely import MultiPolygon, segmentize, transform

    code = choose_crs(region) if crs == "auto" else crs
    try:
        target = CRS.from_user_input(code)
    except CRSError:
        raise ConfigError("config-invalid", f'unknown CRS "{code}"', where="grid.crs", fix='Use "auto" or "EPSG:...".') from None
    forward = Transformer.from_crs("EPSG:4326", target, always_xy=True)
    unit = target.axis_info[0].unit_name if target.axis_info else "units"

    def to_pixels(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = forward.transform(xy[:, 0], xy[:, 1])
        return np.stack([np.asarray(x) / resolution, -np.asarray(y) / resolution], axis=1)

    geometry = region.geometry
    if region.crosses_antimeridian and target.is_geographic:
        raise _invalid(
            region.name, f"the region crosses longitude 180, where {code} tears", fix="Use a projected CRS such as auto (UTM)."
        )
    pixels = transform(segmentize(geometry, DENSIFY_DEG), to_pixels)
    west, north, east, south = pixels.bounds
    if not np.isfinite([west, north, east, south]).all():
        raise _invalid(region.name, f"parts of the region have no coordinates in {code}", fix="Choose another grid.crs.")
    if max(abs(west), abs(north), abs(east), abs(south)) > MAX_INDEX:
        what = f"{resolution:g} {unit} are too fine: pixels are numbered up to {MAX_INDEX:,}"
        raise _invalid(region.name, what, fix="Choose a coarser grid.resolution (it is in the units of grid.crs).")
    slack = 1e-6  # px: a region edge on a pixel edge must not add a row because of rounding in the projection
    rows = Span(int(np.floor(north + slack)), int(np.ceil(south - slack)))
    cols = Span(int(np.floor(west + slack)), int(np.ceil(east - slack)))
    on_grid = RegionOnGrid(pixels if pixels.geom_type == "MultiPolygon" else MultiPolygon([pixels]))
    size = len(rows) * len(cols)
    if not size or (size <= SMALL_PX and not on_grid.inside(rows, cols).any()):
        what = f"the region is smaller than one pixel of {resolution:g} {unit}: it holds the centre of none"
        raise _invalid(region.name, what, fix="Choose a finer grid.resolution (it is in the units of grid.crs).")
    return Grid(code, resolution, rows, cols, chunk_px, window_px, stride_of(window_px, overlap)), on_grid


@dataclass(frozen=True)
class RegionOnGrid:
    """The region in absolute pixel coordinates (x = column, y = row), as a shapely MultiPolygon."""

    polygons: Any

    def inside(self, rows: Span, cols: Span) -> NDArray[np.bool_]:
        """True where a pixel's centre lies inside the region, bool (y, x).

        Even-odd scan conversion in absolute pixel coordinates: a pixel's answer does not depend on `rows` and `cols`.
        """
        out = np.zeros((len(rows), len(cols)), bool)
        if not len(rows) or not len(cols):
            return out
        edges = self._edges
        near = (edges[[1, 3]].min(axis=0) < rows.stop) & (edges[[1, 3]].max(axis=0) > rows.start)
        x0, y0, x1, y1 = edges[:, near]
        for index in range(len(rows)):
            y = rows.start + index + 0.5
            crossed = (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1))
            if not crossed.any():
                continue
            ax, ay, bx, by = x0[crossed], y0[crossed], x1[crossed], y1[crossed]
            crossings = np.sort(ax + (y - ay) / (by - ay) * (bx - ax))
            starts = np.clip(np.ceil(crossings[0::2] - 0.5).astype(int) - cols.start, 0, len(cols))
            stops = np.clip(np.ceil(crossings[1::2] - 0.5).astype(int) - cols.start, 0, len(cols))
            for start, stop in zip(starts, stops, strict=True):
                out[index, start:stop] = True
        return out

    @cached_property
    def _edges(self) -> NDArray[np.float64]:
        """Ring segments as (x0, y0, x1, y1), each float64 (segment,)."""
        from shapely import get_coordinates, get_parts, get_rings

        rings = [get_coordinates(ring) for ring in get_rings(get_parts(self.polygons))]
        ends = [np.concatenate([ring[:-1], ring[1:]], axis=1) for ring in rings]
        return np.concatenate(ends).T


def _polygons(name: str, geometries: list[Any]) -> list[Any]:
    """Checked shapely (multi)polygons of GeoJSON geometries."""
    from shapely.errors import ShapelyError
    from shapely.geometry import shape
    from shapely.validation import explain_validity

    polygons = []
    for geometry in geometries:
        try:
            found = shape(geometry)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, ShapelyError):
            raise _invalid(name, "a geometry is none of GeoJSON, or its coordinates are no numbers") from None
        if found.geom_type not in ("Polygon", "MultiPolygon") or found.is_empty:
            kind = f"empty {found.geom_type}" if found.is_empty else found.geom_type
            raise _invalid(name, f"a geometry is not a polygon ({kind})")
        west, south, east, north = found.bounds
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
            raise _invalid(name, "coordinates leave longitude -180..180 or latitude -90..90; GeoJSON is longitude, latitude")
        if not found.is_valid:
            raise _invalid(name, f"the polygon is not valid: {explain_validity(found)}")
        polygons.append(found)
    if not polygons:
        raise _invalid(name, "no polygon found")
    return polygons


def _geometries(document: Any) -> list[Any]:
    if not isinstance(document, dict):
        return [document]
    if document.get("type") == "FeatureCollection":
        return [feature.get("geometry") if isinstance(feature, dict) else None for feature in _list(document.get("features"))]
    if document.get("type") == "Feature":
        return [document.get("geometry")]
    if document.get("type") == "GeometryCollection":
        return _list(document.get("geometries"))
    return [document]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [None]


def _invalid(name: str, why: str, fix: str = "Check [region] of the pipeline.") -> ConfigError:
    return ConfigError("region-invalid", why, where=f'region "{name}"', fix=fix)
