"""Where and when the demo region is seen: its grid, its two UTM zones, its orbits, and the scenes they make.

Everything here is arithmetic on a handful of numbers: a region of 100,000 x 100,000 pixels costs as little as a small one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from shapely import Polygon, box, segmentize, transform

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span
from eo_batch.sources.synthetic.landscape import ground, unit_hash

RESOLUTION_M = 10.0
PRIMARY_CRS, EASTERN_CRS = "EPSG:32632", "EPSG:32633"
BORDER_LON = 12.0
"""Longitude of the border between the two zones; the region lies astride it."""
MIDDLE_M = (728_040.0, 5_209_560.0)
"""Middle of the region in the primary zone, near 12.0 E 47.0 N, on the 60 m lattice that all Sentinel-2 grids share."""

_SCENE_OVERLAP_PX = 978
_LATTICE_PX = 64
"""Positions in the other zone are exact at lattice points this far apart and linear between them: off by < 0.05 m."""
_TRACK = math.radians(13.0)  # the ground track of a descending Sentinel-2 pass near 47 N leans this much from north
_ORBITS = (("R022", timedelta(days=0), 1.0), ("R065", timedelta(days=3), -1.0))
_CLOUD_COVER = ((0.28, 0.0, 0.10), (0.08, 0.0, 0.20))  # the second pass of each orbit is clear: no pixel stays unseen


@dataclass(frozen=True)
class Acquisition:
    """One pass of one orbit: what all its scenes have in common.

    Parameters
    ----------
    orbit : name of the relative orbit. side : +1 where the swath lies in the west, -1 in the east.
    datetime : UTC. cloud_cover : wanted share of clouds. seed : for clouds and sensor noise.
    """

    orbit: str
    side: float
    datetime: datetime
    cloud_cover: float
    seed: int

    @property
    def day_of_year(self) -> int:
        """1 to 366."""
        return self.datetime.timetuple().tm_yday

    @property
    def sun_elevation_azimuth(self) -> tuple[float, float]:
        """Degrees, at 47 N one and a half hours before local noon; declination after Cooper (1969)."""
        latitude, hour_angle = math.radians(47.0), math.radians(-22.0)
        declination = math.radians(23.45) * math.sin(2.0 * math.pi * (284 + self.day_of_year) / 365.0)
        up = math.sin(latitude) * math.sin(declination) + math.cos(latitude) * math.cos(declination) * math.cos(hour_angle)
        east = -math.cos(declination) * math.sin(hour_angle)
        north = math.cos(latitude) * math.sin(declination) - math.sin(latitude) * math.cos(declination) * math.cos(hour_angle)
        return math.degrees(math.asin(up)), math.degrees(math.atan2(east, north)) % 360.0


@dataclass(frozen=True)
class DemoScene:
    """One item: the part of an acquisition that is delivered on one grid.

    `rows` and `cols` are absolute indices of 10 m pixels of `crs`, even at both ends.
    """

    id: str
    acquisition: Acquisition
    crs: str
    rows: Span
    cols: Span
    footprint_lonlat: Polygon


@dataclass(frozen=True)
class DemoRegion:
    """A landscape that does not exist, as seen by satellites that do not exist.

    Parameters
    ----------
    size_px : side of the region in 10 m pixels.
    seed : another number is another landscape.
    dates : passes per orbit.
    first_day : of the western orbit; the eastern one follows three days later.
    days_between : from pass to pass of one orbit.
    swir_resolution_m : 20 as in Sentinel-2, or 10.
    scene_px : largest side of a scene in 10 m pixels; larger regions are cut as MGRS tiles cut the real archive.
    """

    size_px: int = 2048
    seed: int = 7
    dates: int = 3
    first_day: date = date(2024, 6, 18)
    days_between: int = 10
    swir_resolution_m: int = 20
    scene_px: int = 10980

    def __post_init__(self) -> None:
        checks = (
            (64 <= self.size_px <= 100_000, f"size_px is {self.size_px}: it must be 64 to 100,000"),
            (1 <= self.dates <= 1000 and self.days_between >= 1, "dates must be 1 to 1000, days_between at least 1"),
            (0 <= self.seed < 2**31, f"seed is {self.seed}: it must be 0 to 2,147,483,647"),
            (self.swir_resolution_m in (10, 20), f"swir_resolution_m is {self.swir_resolution_m}: it must be 10 or 20"),
            (self.scene_px % 6 == 0 and self.scene_px > _SCENE_OVERLAP_PX, "scene_px must be a multiple of 6 above 978"),
        )
        for good, why in checks:
            if not good:
                raise ConfigError("config-invalid", why, where="demo region", fix="Change that setting of the demo region.")

    @property
    def crs(self) -> str:
        """CRS of the primary grid and of the truth."""
        return PRIMARY_CRS

    @property
    def rows(self) -> Span:
        """Absolute rows of the region on the primary grid."""
        return self._span(-MIDDLE_M[1])

    @property
    def cols(self) -> Span:
        """Absolute columns of the region on the primary grid."""
        return self._span(MIDDLE_M[0])

    @property
    def half_m(self) -> float:
        """Half the side of the region in metres."""
        return self.size_px * RESOLUTION_M / 2

    def classes(self, rows: Span, cols: Span) -> NDArray[np.uint8]:
        """Truth: class codes (`CLASS_NAMES`) at pixel centres of the primary grid, uint8 (y, x)."""
        return np.ascontiguousarray(self.layers(PRIMARY_CRS, rows, cols)["cls"])

    def layers(self, crs: str, rows: Span, cols: Span) -> NDArray[Any]:
        """All that is known of the ground at pixel centres of the grid of `crs`: `LAYERS` (y, x)."""
        return ground(*positions(crs, rows, cols), self.seed)

    @cached_property
    def acquisitions(self) -> tuple[Acquisition, ...]:
        """All passes in the order of time."""
        passes = []
        for number, (orbit, delay, side) in enumerate(_ORBITS):
            for index in range(self.dates):
                day = datetime(self.first_day.year, self.first_day.month, self.first_day.day, 10, 10 * number, 31, tzinfo=UTC)
                if index < len(_CLOUD_COVER[number]):
                    cover = _CLOUD_COVER[number][index]
                else:
                    cover = 0.6 * unit_hash(index, number, self.seed) ** 2
                when = day + delay + timedelta(days=index * self.days_between)
                passes.append(Acquisition(orbit, side, when, cover, self.seed * 4096 + index * 2 + number))
        return tuple(sorted(passes, key=lambda p: (p.datetime, p.orbit)))

    def scenes(self) -> Iterator[DemoScene]:
        """All scenes, in the order of time; made one at a time."""
        grids = [(crs, rows, cols) for crs in (PRIMARY_CRS, EASTERN_CRS) for rows, cols in self._grids(crs)]
        footprints: dict[tuple[str, Span, Span, str], Polygon] = {}
        for acquisition in self.acquisitions:
            for crs, rows, cols in grids:
                place = (crs, rows, cols, acquisition.orbit)
                if place not in footprints:
                    footprints[place] = self._footprint(crs, rows, cols, acquisition.side)
                if footprints[place].is_empty:
                    continue
                name = f"SYN2_{crs[-2:]}_{-rows.start:06d}N_{cols.start:06d}E_{acquisition.orbit}_{acquisition.datetime:%Y%m%d}"
                yield DemoScene(name, acquisition, crs, rows, cols, footprints[place])

    def swath_margin(self, acquisition: Acquisition, x_m: NDArray[np.float64], y_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Distance (m) of points from the inner edge of the swath; negative where the pass saw nothing."""
        across = x_m * math.cos(_TRACK) - y_m * math.sin(_TRACK)
        return 0.3 * self.half_m - acquisition.side * across

    @property
    def bounds_lonlat(self) -> tuple[float, float, float, float]:
        """West, south, east, north of the largest upright box of the middle that lies inside the region."""
        side = np.linspace(-1.0, 1.0, 65)
        edge = np.ones_like(side)
        west = self._lonlat_of(-edge, side)[0].max()
        east = self._lonlat_of(edge, side)[0].min()
        south = self._lonlat_of(side, -edge)[1].max()
        north = self._lonlat_of(side, edge)[1].min()
        return float(west), float(south), float(east), float(north)

    def _lonlat_of(self, right: NDArray[np.float64], up: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        x, y = MIDDLE_M[0] + right * self.half_m, MIDDLE_M[1] + up * self.half_m
        lon, lat = _to_lonlat(PRIMARY_CRS).transform(x, y)
        return lon, lat

    def _span(self, middle_m: float) -> Span:
        start = int(middle_m / RESOLUTION_M) - self.size_px // 2
        return Span(start, start + self.size_px)

    def _outline(self) -> Polygon:
        """The region in metres of the primary zone, with enough vertices to be projected."""
        x, y, half = *MIDDLE_M, self.half_m
        return segmentize(box(x - half, y - half, x + half, y + half), max(half / 8, RESOLUTION_M))

    def _grids(self, crs: str) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of the scenes of one zone: its side of the border and a little more."""
        outline = transform(self._outline(), lambda p: np.stack(_to_lonlat(PRIMARY_CRS).transform(*p.T), axis=1))
        beyond = 0.15 * self.half_m / 76_000.0  # one degree of longitude is 76 km at 47 N
        sides = {PRIMARY_CRS: (-180.0, BORDER_LON + beyond), EASTERN_CRS: (BORDER_LON - beyond, 180.0)}
        part = outline.intersection(box(sides[crs][0], -90.0, sides[crs][1], 90.0))
        if part.is_empty:
            return
        placed = transform(segmentize(part, 0.05), lambda p: np.stack(_from_lonlat(crs).transform(*p.T), axis=1))
        left, bottom, right, top = placed.bounds
        for rows in _cut(-top, -bottom, self.scene_px):
            for cols in _cut(left, right, self.scene_px):
                frame = box(cols.start * 10.0, -rows.stop * 10.0, cols.stop * 10.0, -rows.start * 10.0)
                if frame.intersects(placed):
                    yield rows, cols

    def _footprint(self, crs: str, rows: Span, cols: Span, side: float) -> Polygon:
        """Part of a scene that its orbit has seen, in longitude and latitude."""
        frame = box(cols.start * 10.0, -rows.stop * 10.0, cols.stop * 10.0, -rows.start * 10.0)
        frame = segmentize(frame, max(len(rows), len(cols)) * 10.0 / 8)
        if crs != PRIMARY_CRS:
            lonlat = transform(frame, lambda p: np.stack(_to_lonlat(crs).transform(*p.T), axis=1))
            frame = transform(lonlat, lambda p: np.stack(_from_lonlat(PRIMARY_CRS).transform(*p.T), axis=1))
        local = transform(frame, lambda p: p - np.array(MIDDLE_M))
        seen = local.intersection(self._swath(side))
        if seen.geom_type != "Polygon" or seen.area < 1.0e4:
            return Polygon()
        placed = transform(segmentize(seen, max(len(rows), len(cols)) * 10.0 / 8), lambda p: p + np.array(MIDDLE_M))
        return transform(placed, lambda p: np.stack(_to_lonlat(PRIMARY_CRS).transform(*p.T), axis=1))

    def _swath(self, side: float) -> Polygon:
        """The half plane that an orbit sees, as a large polygon in metres around the middle."""
        far, c, s = 40.0 * self.half_m + 1.0e6, math.cos(_TRACK), math.sin(_TRACK)
        edge = side * 0.3 * self.half_m
        corners = [(edge, -far), (edge, far), (edge - side * far, far), (edge - side * far, -far)]
        return Polygon([(a * c + b * s, b * c - a * s) for a, b in corners])


def positions(crs: str, rows: Span, cols: Span) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres east and north of the middle of the region of the centres of 10 m pixels, each float64 (y, x).

    A pixel's position follows from its absolute indices alone.
    """
    x = (np.arange(cols.start, cols.stop) + 0.5) * RESOLUTION_M
    y = -(np.arange(rows.start, rows.stop) + 0.5) * RESOLUTION_M
    if crs == PRIMARY_CRS:
        east, north = np.meshgrid(x - MIDDLE_M[0], y - MIDDLE_M[1])
        return east, north
    step = _LATTICE_PX
    knot_rows = np.arange(rows.start // step, (rows.stop - 1) // step + 2)
    knot_cols = np.arange(cols.start // step, (cols.stop - 1) // step + 2)
    knots = np.meshgrid(knot_cols * step * RESOLUTION_M, -knot_rows * step * RESOLUTION_M)
    east, north = _between(crs, PRIMARY_CRS).transform(*knots)
    places = (_places(rows, knot_rows[0]), _places(cols, knot_cols[0]))
    return _bilinear(east - MIDDLE_M[0], *places), _bilinear(north - MIDDLE_M[1], *places)


def _places(span: Span, first: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Knot before each pixel centre, counted from `first`, and the share of the way to the next one."""
    index = np.arange(span.start, span.stop)
    knot = index // _LATTICE_PX
    return knot - first, (index - knot * _LATTICE_PX + 0.5) / _LATTICE_PX


def _bilinear(knots: NDArray[np.float64], rows: tuple[Any, Any], cols: tuple[Any, Any]) -> NDArray[np.float64]:
    (k, f), (m, g) = rows, cols
    lines = knots[:, m] * (1.0 - g) + knots[:, m + 1] * g
    out: NDArray[np.float64] = lines[k] * (1.0 - f)[:, None] + lines[k + 1] * f[:, None]
    return out


def _cut(low_m: float, high_m: float, scene_px: int) -> list[Span]:
    """Spans of scenes that cover a range of metres, on the 60 m lattice, overlapping as MGRS tiles do."""
    start, stop = 6 * math.floor(low_m / 60.0), 6 * math.ceil(high_m / 60.0)
    if stop - start <= scene_px:
        return [Span(start, stop)]
    step = scene_px - _SCENE_OVERLAP_PX
    return [Span(first, min(first + scene_px, stop)) for first in range(start, stop - _SCENE_OVERLAP_PX, step)]


@cache
def _to_lonlat(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


@cache
def _from_lonlat(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


@cache
def _between(source: str, target: str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)
