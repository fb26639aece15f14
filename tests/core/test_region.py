"""Regions: boxes, GeoJSON, their grid, and which pixels are inside."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span
from eo_batch.core.region import RegionOnGrid, choose_crs, make_grid, region_from_bbox, region_from_geojson

START, END = datetime(2019, 6, 1, tzinfo=UTC), datetime(2019, 7, 1, tzinfo=UTC)
SQUARE = [[2.8, 42.3], [2.9, 42.3], [2.9, 42.4], [2.8, 42.4], [2.8, 42.3]]


def box(*bbox: float):
    return region_from_bbox("test", bbox, START, END)


def geojson(document):
    return region_from_geojson("test", document, START, END)


def grid(region, **options):
    return make_grid(region, **{"crs": "auto", "resolution": 10.0, "chunk_px": 64, "window_px": 64, "overlap": 0.25, **options})


def test_box_is_its_own_rectangle():
    assert box(2.8, 42.3, 2.9, 42.4).geometry.equals(shapely.box(2.8, 42.3, 2.9, 42.4))
    assert not box(2.8, 42.3, 2.9, 42.4).crosses_antimeridian


def test_box_with_west_beyond_east_crosses_the_antimeridian():
    region = box(179.5, -17, -179.5, -16)
    assert region.crosses_antimeridian
    assert region.geometry.area == pytest.approx(1.0)
    assert abs(region.centre_lonlat[0]) == 180.0


@pytest.mark.parametrize(("bbox", "parts"), [((180, 0, -179, 1), 1), ((179, 0, -180, 1), 1)])
def test_box_that_touches_the_antimeridian_has_no_empty_part(bbox, parts):
    assert len(box(*bbox).parts) == parts


@pytest.mark.parametrize(
    "bbox",
    [(0, 0, 1), (0, 1, 1, 0), (0, 0, 0, 1), (0, 0, 181, 1), (0, -91, 1, 0), (0, 0, float("nan"), 1), (0, 0, float("inf"), 1)],
)
def test_wrong_box_is_refused(bbox):
    with pytest.raises(ConfigError) as caught:
        box(*bbox)
    assert caught.value.code == "region-invalid"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda g: g,
        lambda g: {"type": "Feature", "properties": {}, "geometry": g},
        lambda g: {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": None, "geometry": g}]},
        lambda g: {"type": "GeometryCollection", "geometries": [g]},
        lambda g: {"type": "MultiPolygon", "coordinates": [g["coordinates"]]},
    ],
)
def test_every_geojson_wrapping_gives_the_same_region(wrap):
    region = geojson(wrap({"type": "Polygon", "coordinates": [SQUARE]}))
    assert region.geometry.equals(shapely.Polygon(SQUARE))


def test_overlapping_features_become_one_part():
    other = [[x + 0.05, y] for x, y in SQUARE]
    polygons = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}} for ring in (SQUARE, other)]
    region = geojson({"type": "FeatureCollection", "features": polygons})
    assert len(region.parts) == 1
    assert region.geometry.area == pytest.approx(0.015)


@pytest.mark.parametrize(
    "document",
    [
        None,
        5,
        [],
        "Polygon",
        {},
        {"type": "Polygon"},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": "everywhere"},
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "LineString", "coordinates": [[0, 0], [1, 1]]},
        {"type": "FeatureCollection", "features": []},
        {"type": "FeatureCollection", "features": [None]},
        {"type": "FeatureCollection", "features": 7},
        {"type": "GeometryCollection", "geometries": None},
        {"type": "Feature", "geometry": None},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[500000, 4e6], [500010, 4e6], [500010, 4000010], [500000, 4e6]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [None, 1], [1, 0], [0, 0]]]},
    ],
)
def test_geojson_without_a_usable_polygon_is_refused(document):
    with pytest.raises(ConfigError) as caught:
        geojson(document)
    assert caught.value.code == "region-invalid"


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [
        ((2.8, 42.3, 2.9, 42.4), "EPSG:32631"),
        ((-70, -33, -69.9, -32.9), "EPSG:32719"),
        ((0, -0.2, 0.1, -0.1), "EPSG:32731"),
        ((179.9, -17, -179.95, -16.9), "EPSG:32760"),
        ((179.95, -17, -179.9, -16.9), "EPSG:32701"),
        ((20, 85, 21, 86), "EPSG:3413"),
        ((20, -86, 21, -85), "EPSG:3031"),
    ],
)
def test_automatic_crs_is_the_utm_zone_of_the_middle(bbox, crs):
    assert choose_crs(box(*bbox)) == crs


@pytest.mark.parametrize("bbox", [(2.8, 42.32, 2.86, 42.36), (-70, -33, -69.95, -32.95), (179.98, -17, -179.98, -16.97)])
def test_grid_is_the_smallest_that_covers_the_region(bbox):
    region = box(*bbox)
    made, _ = grid(region)
    forward = Transformer.from_crs("EPSG:4326", made.crs, always_xy=True)
    edges = shapely.segmentize(region.geometry, 0.0005)
    x, y = forward.transform(*shapely.get_coordinates(edges).T)
    left, bottom, right, top = made.bounds
    r = made.resolution
    assert left <= x.min() < left + r
    assert right - r < x.max() <= right
    assert bottom <= y.min() < bottom + r
    assert top - r < y.max() <= top


def test_pixels_keep_their_indices_when_the_region_grows():
    small, small_region = grid(box(2.80, 42.32, 2.82, 42.34), crs="EPSG:32631")
    large, large_region = grid(box(2.78, 42.30, 2.90, 42.40), crs="EPSG:32631")
    assert large.rows.intersect(small.rows) == small.rows
    inner = small_region.inside(small.rows, small.cols)
    assert large_region.inside(small.rows, small.cols)[inner].all()


def test_region_on_pixel_edges_gets_no_extra_pixel():
    back = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    x = [480_000, 480_500, 480_500, 480_000, 480_000]
    y = [4_680_000, 4_680_000, 4_680_300, 4_680_300, 4_680_000]
    ring = [list(point) for point in zip(*back.transform(x, y), strict=True)]
    made, region = grid(geojson({"type": "Polygon", "coordinates": [ring]}), crs="EPSG:32631")
    assert made.bounds == (480_000, 4_680_000, 480_500, 4_680_300)
    assert region.inside(made.rows, made.cols).all()


def test_region_across_the_antimeridian_is_one_piece_on_the_grid():
    made, region = grid(box(179.99, -17, -179.99, -16.99))
    assert made.shape[1] < 300
    inside = region.inside(made.rows, made.cols)
    middle = inside[len(inside) // 2]
    assert np.count_nonzero(np.diff(np.flatnonzero(middle)) > 1) == 0


def test_geographic_crs_is_refused_across_the_antimeridian():
    with pytest.raises(ConfigError, match="tears"):
        grid(box(179.9, -17, -179.9, -16.9), crs="EPSG:4326", resolution=0.001)


def test_unknown_crs_is_refused():
    with pytest.raises(ConfigError, match=r"unknown CRS .*grid|grid.*unknown CRS"):
        grid(box(2.8, 42.3, 2.9, 42.4), crs="EPSG:999999")


def test_region_without_a_place_in_the_crs_is_refused():
    with pytest.raises(ConfigError) as caught:
        grid(box(92.9, -1, 93.1, 1), crs="EPSG:32631")
    assert caught.value.code == "region-invalid"


def on_grid(*polygons) -> RegionOnGrid:
    return RegionOnGrid(shapely.MultiPolygon(list(polygons)))


def by_point_in_polygon(region: RegionOnGrid, rows: Span, cols: Span) -> np.ndarray:
    x, y = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    return shapely.contains_xy(region.polygons, x, y)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 40))
def test_inside_equals_point_in_polygon_at_pixel_centres(seed, corners):
    rng = np.random.default_rng(seed)
    angle, radius = np.sort(rng.uniform(0, 2 * np.pi, corners)), rng.uniform(3, 30, corners)
    star = shapely.Polygon(np.stack([radius * np.cos(angle) + 0.1234, radius * np.sin(angle) - 7.4321], axis=1))
    if not star.is_valid:
        star = shapely.Point(3, 4).buffer(9.1)
    hole = shapely.Point(0.3, -7.2).buffer(2.21)
    pieces = star.difference(hole)
    region = on_grid(*getattr(pieces, "geoms", [pieces]), shapely.box(40.2, -20.7, 47.9, 13.3))
    rows, cols = Span(-45, 30), Span(-35, 52)
    assert np.array_equal(region.inside(rows, cols), by_point_in_polygon(region, rows, cols))


@settings(max_examples=40, deadline=None)
@given(st.integers(-40, 20), st.integers(0, 30), st.integers(-40, 20), st.integers(0, 30))
def test_inside_does_not_depend_on_the_part_that_is_asked_for(row, height, col, width):
    region = on_grid(shapely.Point(0.2, -3.7).buffer(22.3).difference(shapely.box(-4.5, -9.5, 6.5, 5.5)))
    whole, part = (Span(-60, 60), Span(-60, 60)), (Span(row, row + height), Span(col, col + width))
    expected = region.inside(*whole)[part[0].within(whole[0]), part[1].within(whole[1])]
    assert np.array_equal(region.inside(*part), expected)


def test_neighbouring_regions_share_no_pixel_and_leave_no_gap():
    # The common edge runs exactly through pixel centres.
    left, right = on_grid(shapely.box(0, 0, 5.5, 10)), on_grid(shapely.box(5.5, 0, 12, 10))
    rows, cols = Span(0, 10), Span(0, 12)
    assert (left.inside(rows, cols).astype(int) + right.inside(rows, cols) == 1).all()
    upper, lower = on_grid(shapely.box(0, 0, 12, 4.5)), on_grid(shapely.box(0, 4.5, 12, 10))
    assert (upper.inside(rows, cols).astype(int) + lower.inside(rows, cols) == 1).all()


def test_nothing_is_inside_far_from_the_region():
    assert not on_grid(shapely.box(0, 0, 5, 5)).inside(Span(100, 120), Span(-50, -20)).any()
    assert on_grid(shapely.box(0, 0, 5, 5)).inside(Span(0, 0), Span(0, 9)).shape == (0, 9)
