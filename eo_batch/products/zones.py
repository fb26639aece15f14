"""Zones over a grid: which pixels and which places lie in which zone, and sums over them, in integers.

A zone holds a pixel whose centre lies inside its outline (even-odd rule, half-open: of two zones that share an edge exactly
one holds a centre that lies on it). Outlines are scan-converted in absolute pixel coordinates, each edge in the same
direction for both of its sides. So neither the chunk a pixel is read with nor the other zones change an answer, and zones that
part the plane part the pixels. Zones may overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numba import njit
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION, SCORE_STEPS, YES
from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]
MAX_PAIRS = 50_000_000
"""Objects of one prompt and time in zones, one counted in several zones several times."""
_PARTS = 2.0**20
_CROSSINGS = 4_000_000
"""Crossings of outlines with scan lines that are held at once where zones are taken in groups."""


@dataclass(frozen=True, eq=False)
class Zones:
    """Outlines of n zones in absolute pixel coordinates (x = column, y = row), as edges.

    Parameters
    ----------
    edges : float64 (m, 4): x0, y0, x1, y1 with y0 < y1; horizontal edges decide nothing and are left out.
    offsets : int64 (n + 1,): zone i has the edges `offsets[i]:offsets[i + 1]`.
    bounds : float64 (n, 4): least x, least y, greatest x, greatest y; NaN for a zone without an outline.
    """

    edges: _Floats
    offsets: _Ints
    bounds: _Floats

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def near(self, rows: Span, cols: Span) -> _Ints:
        """Positions of the zones whose bounds meet the pixels `rows` x `cols`."""
        x0, y0, x1, y1 = self.bounds.T
        return np.flatnonzero((x0 < cols.stop) & (x1 > cols.start) & (y0 < rows.stop) & (y1 > rows.start))

    def pixel_runs(self, rows: Span, cols: Span) -> Iterator[Runs]:
        """Which pixels of `rows` x `cols` each zone holds; rows and columns of the runs count from the first ones.

        Given in pieces of bounded size, each of some of the zones; where no zone holds a pixel, there is none.
        """
        lines = np.arange(rows.start, rows.stop, dtype=np.float64)
        for which in self._groups(self.near(rows, cols), lines, scale=1.0, shift=-0.5):
            runs = self._runs(which, lines, scale=1.0, shift=-0.5)
            start = np.clip(runs.start - cols.start, 0, len(cols))
            stop = np.clip(runs.stop - cols.start, 0, len(cols))
            some = stop > start
            if some.any():
                yield Runs(runs.zone[some], runs.line[some], start[some], stop[some])

    def holding(self, places2: _Ints) -> tuple[_Ints, _Ints]:
        """Pairs (zone, place) of the places that zones hold, by zone.

        Parameters
        ----------
        places2 : int64 (n, 2): twice the absolute pixel coordinates (x, y); (2c + 1, 2r + 1) is the centre of pixel (r, c).

        Raises
        ------
        ConfigError : `zones-invalid`: zones overlap so much that there are more than `MAX_PAIRS`.
        """
        found_zones, found_places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        if len(places2):
            lines, line_of = np.unique(places2[:, 1], return_inverse=True)
            left = places2[:, 0].min()
            width = places2[:, 0].max() - left + 2
            keys = line_of * width + (places2[:, 0] - left)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            scan = lines.astype(np.float64)
            pairs = 0
            for which in self._groups(np.arange(len(self)), scan, scale=2.0, shift=0.0):
                runs = self._runs(which, scan, scale=2.0, shift=0.0)
                begin, end = (
                    np.searchsorted(keys, runs.line * width + np.clip(x - left, 0, width - 1)) for x in (runs.start, runs.stop)
                )
                count = end - begin
                pairs += int(count.sum())
                if pairs > MAX_PAIRS:
                    what = f"the zones overlap so much that they hold more than {MAX_PAIRS:,} objects, each counted again"
                    raise ConfigError("zones-invalid", what, where="zones", fix="Give fewer zones.")
                positions = np.repeat(begin - (np.cumsum(count) - count), count) + np.arange(count.sum())
                found_zones.append(np.repeat(runs.zone, count))
                found_places.append(order[positions])
        zones, places = np.concatenate(found_zones), np.concatenate(found_places)
        by_zone = np.lexsort((places, zones))
        return zones[by_zone], places[by_zone]

    def _groups(self, which: _Ints, lines: _Floats, *, scale: float, shift: float) -> Iterator[_Ints]:
        """The zones `which` in groups whose outlines cross `lines` about `_CROSSINGS` times, or of one zone."""
        edges = self._edges_of(which)
        low, high = (np.searchsorted(lines, scale * self.edges[edges, side] + shift) for side in (1, 3))
        before = np.concatenate([[0], np.cumsum(high - low)])
        total = before[np.concatenate([[0], np.cumsum(np.diff(self.offsets)[which])])]
        start = 0
        while start < len(which):
            stop = max(start + 1, int(np.searchsorted(total, total[start] + _CROSSINGS, side="right")) - 1)
            yield which[start:stop]
            start = stop

    def _edges_of(self, which: _Ints) -> _Ints:
        """Positions of the edges of the zones `which`, zone by zone."""
        lengths = np.diff(self.offsets)[which]
        ends = np.cumsum(lengths)
        return np.repeat(self.offsets[which] - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)

    def _runs(self, which: _Ints, lines: _Floats, *, scale: float, shift: float) -> Runs:
        """Where scan lines run inside the zones `which`: from whole positions `start` to before `stop`.

        Coordinates are taken as `scale` x pixel + `shift`; `lines` rise and are whole numbers of these.
        """
        zone = np.repeat(which, np.diff(self.offsets)[which])
        x0, y0, x1, y1 = scale * self.edges[self._edges_of(which)].T + shift
        low, high = np.searchsorted(lines, y0), np.searchsorted(lines, y1)
        count = high - low
        edge = np.repeat(np.arange(len(count)), count)
        line = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + low[edge]
        share = (lines[line] - y0[edge]) / (y1[edge] - y0[edge])
        x = np.ceil(x0[edge] + share * (x1[edge] - x0[edge])).astype(np.int64)
        order = np.lexsort((x, line, zone[edge]))
        x = x[order]
        first = order[0::2]
        return Runs(zone[edge][first], line[first], x[0::2], x[1::2])


@dataclass(frozen=True, eq=False)
class Runs:
    """Pieces of scan lines inside zones, int64 (n,) each: zone, position of the line, first place and the one after the last."""

    zone: _Ints
    line: _Ints
    start: _Ints
    stop: _Ints


def zones_on_grid(polygons: NDArray[np.object_], resolution: float) -> Zones:
    """Zones of shapely (multi)polygons in CRS units; None is a zone that holds nothing.

    Parameters
    ----------
    resolution : CRS units per pixel.
    """
    rings, owner = _rings(polygons)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    pixels = _snapped(xy * [1, -1] / resolution)
    within = ring[1:] == ring[:-1]
    edges = np.concatenate([pixels[:-1], pixels[1:]], axis=1)[within]
    zone = owner[ring[:-1][within]]
    # Both polygons at an edge get it in the same direction, so that rounding takes the same side for both.
    edges = np.where((edges[:, 1] > edges[:, 3])[:, None], edges[:, [2, 3, 0, 1]], edges)
    sloped = edges[:, 1] != edges[:, 3]
    edges, zone = edges[sloped], zone[sloped]
    bounds = _snapped(shapely.bounds(polygons) / resolution)
    return Zones(
        edges,
        np.searchsorted(zone, np.arange(len(polygons) + 1)).astype(np.int64),
        np.stack([bounds[:, 0], -bounds[:, 3], bounds[:, 2], -bounds[:, 1]], axis=1),
    )


def _snapped(pixels: _Floats) -> _Floats:
    """To a millionth of a pixel: 3 x 0.0131 / 0.0001 is 393 then, and what lies on a border is on the side that the rule says."""
    return np.rint(pixels * _PARTS) / _PARTS


def _rings(polygons: NDArray[np.object_]) -> tuple[NDArray[np.object_], _Ints]:
    parts, of_part = shapely.get_parts(polygons, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    return rings, of_part[of_ring]


@dataclass(frozen=True, eq=False)
class ZoneSums:
    """Sums over the pixels of zones; pixels are added chunk by chunk, in any order.

    All are int64: `pixels` (zone,) pixels of the grid; `observed`, `observed_area` (zone, time); `covered`, `covered_area`,
    `score_sum`, `score_max` (zone, time, prompt), score_max -1 where there is none. Areas are in units of the caller's.
    """

    pixels: _Ints
    observed: _Ints
    observed_area: _Ints
    covered: _Ints
    covered_area: _Ints
    score_sum: _Ints
    score_max: _Ints

    @staticmethod
    def zeros(zones: int, times: int, prompts: int) -> ZoneSums:
        """Sums over no pixels."""
        of_time, of_prompt = (zones, times), (zones, times, prompts)
        return ZoneSums(
            np.zeros(zones, np.int64),
            np.zeros(of_time, np.int64),
            np.zeros(of_time, np.int64),
            np.zeros(of_prompt, np.int64),
            np.zeros(of_prompt, np.int64),
            np.zeros(of_prompt, np.int64),
            np.full(of_prompt, -1, np.int64),
        )

    def add_pixels(self, runs: Runs) -> None:
        """Count the pixels of a chunk, whatever they hold."""
        np.add.at(self.pixels, runs.zone, runs.stop - runs.start)

    def add_observed(self, runs: Runs, mask: NDArray[np.uint8], area: _Ints, *, t: int) -> None:
        """Add the observed pixels of a chunk: those of `mask`, uint8 (y, x) of any prompt, with `area`, int64 (y, x)."""
        _add_where(
            runs.zone,
            runs.line,
            runs.start,
            runs.stop,
            mask < NO_OBSERVATION,
            area,
            self.observed[:, t],
            self.observed_area[:, t],
        )

    def add_mask(self, runs: Runs, mask: NDArray[np.uint8], area: _Ints, *, t: int, prompt: int) -> None:
        """Add the pixels that are 1 in `mask`, uint8 (y, x), with `area`, int64 (y, x)."""
        covered, covered_area = self.covered[:, t, prompt], self.covered_area[:, t, prompt]
        _add_where(runs.zone, runs.line, runs.start, runs.stop, mask == YES, area, covered, covered_area)

    def add_scores(self, runs: Runs, score: NDArray[np.uint8], *, t: int, prompt: int) -> None:
        """Add the stored scores, uint8 (y, x), of the observed pixels."""
        sums, greatest = self.score_sum[:, t, prompt], self.score_max[:, t, prompt]
        _add_scores(runs.zone, runs.line, runs.start, runs.stop, score, SCORE_STEPS, sums, greatest)

    @cached_property
    def mean_scores(self) -> _Floats:
        """Mean score 0..1 of the observed pixels, float64 (zone, time, prompt), NaN where there is none."""
        observed = np.broadcast_to(self.observed[:, :, None], self.score_sum.shape)
        out = np.full(self.score_sum.shape, np.nan)
        return np.divide(self.score_sum, observed * float(SCORE_STEPS), out=out, where=observed > 0)

    @cached_property
    def greatest_scores(self) -> _Floats:
        """Greatest score 0..1 of the observed pixels, float64 (zone, time, prompt), NaN where there is none."""
        return np.where(self.score_max >= 0, self.score_max / float(SCORE_STEPS), np.nan)

    @cached_property
    def covered_pixel_shares(self) -> _Floats:
        """Covered share of the observed pixels, float64 (zone, time, prompt), NaN where there is none."""
        observed = np.broadcast_to(self.observed[:, :, None], self.covered.shape)
        return np.divide(self.covered, observed, out=np.full(self.covered.shape, np.nan), where=observed > 0)


@njit(cache=True, nogil=True)
def _add_where(
    zone: _Ints,
    line: _Ints,
    start: _Ints,
    stop: _Ints,
    chosen: NDArray[np.bool_],
    area: _Ints,
    pixels: _Ints,
    areas: _Ints,
) -> None:  # pragma: no cover
    for i in range(len(zone)):
        count = 0
        units = 0
        for x in range(start[i], stop[i]):
            if chosen[line[i], x]:
                count += 1
                units += area[line[i], x]
        pixels[zone[i]] += count
        areas[zone[i]] += units


@njit(cache=True, nogil=True)
def _add_scores(
    zone: _Ints,
    line: _Ints,
    start: _Ints,
    stop: _Ints,
    score: NDArray[np.uint8],
    highest: int,
    sums: _Ints,
    greatest: _Ints,
) -> None:  # pragma: no cover
    for i in range(len(zone)):
        total = 0
        best = greatest[zone[i]]
        for x in range(start[i], stop[i]):
            value = score[line[i], x]
            if value <= highest:
                total += value
                best = max(best, np.int64(value))
        sums[zone[i]] += total
        greatest[zone[i]] = best
