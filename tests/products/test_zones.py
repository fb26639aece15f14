"""Zones over pixels: the same answer for any chunk, against shapely and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span
from eo_batch.products.zones import Zones, ZoneSums, zones_on_grid

RESOLUTION = 10.0
ROWS, COLS = Span(-470_003, -469_883), Span(41_999, 42_099)
CORNER = (COLS.start * RESOLUTION, -ROWS.start * RESOLUTION)


def on_map(pixels: NDArray[np.object_]) -> NDArray[np.object_]:
    """Shapes drawn in pixels from the upper left corner of the grid (y down), in CRS units."""
    return shapely.transform(pixels, lambda xy: np.array(CORNER) + xy * [RESOLUTION, -RESOLUTION])


def stars(count: int, seed: int) -> NDArray[np.object_]:
    """Random polygons, overlapping, some with holes, some over the edge of the grid."""
    random = np.random.default_rng(seed)
    out = []
    for index in range(count):
        centre = random.random(2) * [len(COLS), len(ROWS)]
        angles, radii = np.sort(random.random(9) * 2 * np.pi), random.random(9) * 30 + 3
        shape = shapely.Polygon(centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).buffer(0)
        out.append(shape.difference(shapely.Point(centre).buffer(4)) if index % 3 == 0 else shape)
    return np.array(out, object)


def held(zones: Zones, side: int) -> NDArray[np.int64]:
    """How often each zone got each pixel, int64 (zone, y, x), asked for in pieces of `side` pixels."""
    out = np.zeros((len(zones), len(ROWS), len(COLS)), np.int64)
    for y in range(ROWS.start, ROWS.stop, side):
        for x in range(COLS.start, COLS.stop, side):
            rows, cols = Span(y, min(y + side, ROWS.stop)), Span(x, min(x + side, COLS.stop))
            for runs in zones.pixel_runs(rows, cols):
                for zone, line, start, stop in zip(runs.zone, runs.line, runs.start, runs.stop, strict=True):
                    out[zone, y - ROWS.start + line, x - COLS.start + start : x - COLS.start + stop] += 1
    return out


@pytest.mark.parametrize("side", [13, 64, 500])
def test_a_zone_holds_the_pixels_whose_centres_lie_in_it(side: int) -> None:
    shapes = stars(40, seed=1)
    y, x = np.mgrid[: len(ROWS), : len(COLS)] + 0.5
    inside = np.stack([shapely.contains_xy(shape, x.ravel(), y.ravel()).reshape(x.shape) for shape in shapes])
    assert np.array_equal(held(zones_on_grid(on_map(shapes), RESOLUTION), side), inside.astype(int))


def test_zones_that_part_the_plane_part_the_pixels_even_on_their_borders() -> None:
    random = np.random.default_rng(2)
    points = shapely.multipoints(np.round(random.random((60, 2)) * [len(COLS), len(ROWS)] * 2) / 2)
    frame = shapely.box(-50, -50, len(COLS) + 50, len(ROWS) + 50)
    pieces = shapely.get_parts(shapely.voronoi_polygons(points, extend_to=frame))
    squares = shapely.get_parts(shapely.union_all([shapely.box(i, j, i + 2.5, j + 2.5) for i in (0, 5) for j in (0, 5)]))
    halves = np.array([shapely.box(i / 2, 0, i / 2 + 0.5, len(ROWS)) for i in range(2 * len(COLS))])
    for parts in (pieces, halves):
        assert (held(zones_on_grid(on_map(parts), RESOLUTION), 500).sum(axis=0) == 1).all()
    assert held(zones_on_grid(on_map(squares), RESOLUTION), 500).sum(axis=0).max() == 1


def test_each_place_is_in_exactly_one_cell_even_on_borders_and_corners() -> None:
    cells = np.array([shapely.box(x, y, x + 5, y + 5) for y in range(0, len(ROWS), 5) for x in range(0, len(COLS), 5)])
    y2, x2 = np.mgrid[: 2 * len(ROWS), : 2 * len(COLS)].reshape(2, -1)
    places2 = np.stack([x2 + 2 * COLS.start, y2 + 2 * ROWS.start], axis=1)
    zone, place = zones_on_grid(on_map(cells), RESOLUTION).holding(places2)
    assert np.array_equal(np.sort(place), np.arange(len(places2)))
    # Half-open as pixels are: a place on a border belongs to the cell right of it, and below it.
    expected = (y2 // 10) * (len(COLS) // 5) + x2 // 10
    assert np.array_equal(zone[np.argsort(place)], expected)


@pytest.mark.parametrize(("resolution", "size", "pixels"), [(1e-4, 0.0131, 131), (0.3, 2.1, 7), (1e-4, 0.0015, 15)])
def test_borders_on_whole_pixels_are_exact_though_their_coordinates_are_rounded(
    resolution: float, size: float, pixels: int
) -> None:
    cols = np.arange(1000)
    zones = zones_on_grid(np.array([shapely.box(col * size, -size, (col + 1) * size, 0.0) for col in cols]), resolution)
    borders2 = np.stack([2 * pixels * cols, np.zeros_like(cols)], axis=1)
    zone, place = zones.holding(borders2)
    assert np.array_equal(place, cols)
    assert np.array_equal(zone, cols)


def test_places_are_in_the_zones_that_shapely_says() -> None:
    shapes = stars(40, seed=3)
    random = np.random.default_rng(4)
    pixels2 = random.integers(-40, 2 * len(COLS) + 40, (5000, 2))
    zone, place = zones_on_grid(on_map(shapes), RESOLUTION).holding(pixels2 + 2 * np.array([COLS.start, ROWS.start]))
    expected = [(i, j) for i, s in enumerate(shapes) for j in np.flatnonzero(shapely.contains_xy(s, *(pixels2 / 2).T))]
    assert list(zip(zone.tolist(), place.tolist(), strict=True)) == expected


def test_nothing_changes_when_zones_are_taken_in_small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    zones = zones_on_grid(on_map(stars(40, seed=5)), RESOLUTION)
    places2 = np.random.default_rng(6).integers(0, 200, (3000, 2)) + 2 * np.array([COLS.start, ROWS.start])
    whole, pixels = zones.holding(places2), held(zones, 64)
    assert len(list(zones.pixel_runs(ROWS, COLS))) == 1
    monkeypatch.setattr("eo_batch.products.zones._CROSSINGS", 50)
    assert all(np.array_equal(a, b) for a, b in zip(whole, zones.holding(places2), strict=True))
    assert np.array_equal(pixels, held(zones, 64))
    assert len(list(zones.pixel_runs(ROWS, COLS))) > 10


def test_zones_that_hold_everything_again_and_again_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    zones = zones_on_grid(on_map(np.array([shapely.box(0, 0, 99, 99)] * 50)), RESOLUTION)
    places2 = np.random.default_rng(6).integers(0, 100, (100, 2)) + 2 * np.array([COLS.start, ROWS.start])
    assert len(zones.holding(places2)[0]) == 5000
    monkeypatch.setattr("eo_batch.products.zones.MAX_PAIRS", 4999)
    with pytest.raises(ConfigError, match=r"zones-invalid.*overlap so much"):
        zones.holding(places2)


@pytest.mark.parametrize("side", [17, 500])
def test_sums_over_zones_equal_plain_sums_over_their_pixels(side: int) -> None:
    random = np.random.default_rng(8)
    shape = (len(ROWS), len(COLS))
    score = random.integers(0, 251, shape).astype(np.uint8)
    score[random.random(shape) < 0.2] = 254
    mask = np.where(score > 250, score, score >= 125).astype(np.uint8)
    area = random.integers(1 << 23, 1 << 24, shape)
    shapes = stars(30, seed=9)
    zones = zones_on_grid(on_map(shapes), RESOLUTION)
    sums = ZoneSums.zeros(len(zones), 1, 1)
    for y in range(0, len(ROWS), side):
        for x in range(0, len(COLS), side):
            part = np.s_[y : y + side, x : x + side]
            rows = Span(ROWS.start + y, min(ROWS.start + y + side, ROWS.stop))
            for runs in zones.pixel_runs(rows, Span(COLS.start + x, min(COLS.start + x + side, COLS.stop))):
                sums.add_pixels(runs)
                sums.add_observed(runs, mask[part], area[part], t=0)
                sums.add_mask(runs, mask[part], area[part], t=0, prompt=0)
                sums.add_scores(runs, score[part], t=0, prompt=0)
    y, x = np.mgrid[: len(ROWS), : len(COLS)] + 0.5
    for index, polygon in enumerate(shapes):
        inside = shapely.contains_xy(polygon, x.ravel(), y.ravel()).reshape(shape)
        seen = inside & (score <= 250)
        assert sums.pixels[index] == inside.sum()
        assert (sums.observed[index, 0], sums.observed_area[index, 0]) == (seen.sum(), area[seen].sum())
        found = inside & (mask == 1)
        assert (sums.covered[index, 0, 0], sums.covered_area[index, 0, 0]) == (found.sum(), area[found].sum())
        assert sums.score_sum[index, 0, 0] == score[seen].sum(dtype=int)
        assert sums.score_max[index, 0, 0] == (score[seen].max() if seen.any() else -1)


def test_a_zone_without_an_outline_holds_nothing() -> None:
    zones = zones_on_grid(np.array([None, on_map(np.array([shapely.box(0, 0, 3, 3)], object))[0]], object), RESOLUTION)
    (runs,) = zones.pixel_runs(ROWS, COLS)
    assert np.unique(runs.zone).tolist() == [1]
    assert ZoneSums.zeros(2, 1, 1).mean_scores.shape == (2, 1, 1)
    assert np.isnan(ZoneSums.zeros(2, 1, 1).greatest_scores).all()
