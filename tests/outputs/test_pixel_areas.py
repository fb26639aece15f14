"""Areas on the ellipsoid against geodesic polygon areas of pyproj."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from outputs.small_run import make_grid
from pyproj import CRS, Transformer

from eo_batch.core.grid import Grid, Span
from eo_batch.outputs.areas import PixelAreas

CASES = [
    ("EPSG:32631", 10.0, 400_000, 4_700_000),
    ("EPSG:32631", 10.0, 100_000, 9_200_000),
    ("EPSG:32733", 0.3, 700_000, 6_200_000),
    ("EPSG:4326", 0.0001, 5, 60),
    ("EPSG:4326", 0.01, 5, 89.5),
    ("EPSG:4326", 0.0001, 179.95, 10),
    ("EPSG:3857", 10.0, 500_000, 8_400_000),
    ("EPSG:3857", 1000.0, 500_000, 12_400_000),
    ("EPSG:3031", 30.0, -1_500, 1_500),
    ("EPSG:3031", 30.0, -1_000_000, 2_000_000),
    ("EPSG:2263", 100.0, 980_000, 200_000),  # US survey feet
    ("EPSG:27572", 25.0, 600_000, 2_400_000),  # degrees are grads, the prime meridian is Paris
]


def grid_at(crs: str, resolution: float, left: float, top: float, size: int) -> Grid:
    return make_grid((size, size), 64, crs=crs, resolution=resolution, row=round(-top / resolution), col=round(left / resolution))


def geodesic_area_m2(grid: Grid) -> float:
    """Area of the whole grid: its outline with many vertices, on the ellipsoid of the CRS."""
    crs = CRS.from_user_input(grid.crs)
    outline = shapely.segmentize(shapely.box(*grid.bounds), grid.resolution * len(grid.rows) / min(1000, 4 * len(grid.rows)))
    degrees = Transformer.from_crs(crs, CRS.from_user_input(crs.geodetic_crs), always_xy=True)
    x, y = degrees.transform(*shapely.get_coordinates(outline).T)
    unit = np.degrees(crs.geodetic_crs.axis_info[0].unit_conversion_factor)
    area, _ = crs.get_geod().polygon_area_perimeter(np.asarray(x) * unit, np.asarray(y) * unit)
    return abs(area)


@pytest.mark.parametrize(("crs", "resolution", "left", "top"), CASES)
@pytest.mark.parametrize("size", [3, 40, 700])
def test_sums_of_pixels_are_geodesic_areas(crs: str, resolution: float, left: float, top: float, size: int) -> None:
    grid = grid_at(crs, resolution, left, top, size)
    areas = PixelAreas(grid)
    total = areas.of(grid.rows, grid.cols).sum() * areas.unit_m2
    assert total == pytest.approx(geodesic_area_m2(grid), rel=1e-5)


@pytest.mark.parametrize(("crs", "resolution", "left", "top"), CASES)
def test_a_pixel_has_one_area_whatever_is_asked_with_it(crs: str, resolution: float, left: float, top: float) -> None:
    grid = grid_at(crs, resolution, left, top, 300)
    areas = PixelAreas(grid)
    whole = areas.of(grid.rows, grid.cols)
    rng = np.random.default_rng(0)
    for _ in range(10):
        y, x = rng.integers(0, 290, 2)
        rows, cols = Span(grid.rows.start + y, grid.rows.start + y + 9), Span(grid.cols.start + x, grid.cols.start + x + 7)
        np.testing.assert_array_equal(areas.of(rows, cols), whole[y : y + 9, x : x + 7])
