"""Scenes of the demo region: two zones, two orbits, one landscape; huge regions are described, not held."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject
from shapely import contains_xy, unary_union
from shapely.geometry import box, shape

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span
from eo_batch.sources.synthetic import DemoRegion, describe_items, render
from eo_batch.sources.synthetic.scenes import MIDDLE_M, positions


def _first(demo: DemoRegion, crs: str, orbit: str = "R022"):
    return next(s for s in demo.scenes() if s.crs == crs and s.acquisition.orbit == orbit)


def test_positions_in_the_other_zone_are_those_of_proj() -> None:
    rows, cols = Span(-521_000, -520_800), Span(27_123, 27_400)
    east, north = positions("EPSG:32633", rows, cols)
    x, y = np.meshgrid((np.arange(cols.start, cols.stop) + 0.5) * 10, -(np.arange(rows.start, rows.stop) + 0.5) * 10)
    true_x, true_y = Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True).transform(x, y)
    assert np.abs(east - (true_x - MIDDLE_M[0])).max() < 0.05
    assert np.abs(north - (true_y - MIDDLE_M[1])).max() < 0.05


def test_both_zones_show_the_same_truth_at_the_same_place() -> None:
    demo = DemoRegion(size_px=600)
    other = _first(demo, "EPSG:32633")
    source = np.ascontiguousarray(demo.layers(other.crs, other.rows, other.cols)["cls"])
    warped = np.zeros((len(demo.rows), len(demo.cols)), np.uint8)
    reproject(
        source,
        warped,
        src_transform=from_origin(other.cols.start * 10, -other.rows.start * 10, 10, 10),
        src_crs=other.crs,
        dst_transform=from_origin(demo.cols.start * 10, -demo.rows.start * 10, 10, 10),
        dst_crs=demo.crs,
        resampling=Resampling.nearest,
    )
    truth = demo.classes(demo.rows, demo.cols)
    calm = np.ones_like(truth, bool)
    calm[[0, -1]], calm[:, [0, -1]] = False, False
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            calm &= np.roll(truth, (dy, dx), (0, 1)) == truth
    compared = calm & (warped > 0)
    assert compared.sum() > 50_000
    assert (warped == truth)[compared].mean() >= 0.999
    assert (warped == truth)[warped > 0].mean() >= 0.8


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32633"])
@pytest.mark.parametrize("swir_m", [10, 20])
def test_a_scene_does_not_depend_on_the_window(crs: str, swir_m: int) -> None:
    demo = DemoRegion(size_px=256, swir_resolution_m=swir_m)
    scene = _first(demo, crs)
    whole = render(demo, scene, scene.rows, scene.cols)
    middle_row, middle_col = scene.rows.start + 2 * (len(scene.rows) // 5), scene.cols.start + 2 * (len(scene.cols) // 3)
    for rows in (Span(scene.rows.start, middle_row), Span(middle_row, scene.rows.stop)):
        for cols in (Span(scene.cols.start, middle_col), Span(middle_col, scene.cols.stop)):
            part = render(demo, scene, rows, cols)
            for name, numbers in part.items():
                step = len(scene.rows) // whole[name].shape[0]
                top, left = (rows.start - scene.rows.start) // step, (cols.start - scene.cols.start) // step
                expected = whole[name][top : top + numbers.shape[0], left : left + numbers.shape[1]]
                np.testing.assert_array_equal(numbers, expected, err_msg=name)


def test_20_m_bands_are_means_of_10_m_bands() -> None:
    fine, coarse = DemoRegion(size_px=128, swir_resolution_m=10), DemoRegion(size_px=128)
    scene = _first(fine, fine.crs)
    ten = render(fine, scene, scene.rows, scene.cols)["swir16"].astype(float)
    twenty = render(coarse, scene, scene.rows, scene.cols)["swir16"]
    mean = ten.reshape(twenty.shape[0], 2, twenty.shape[1], 2).mean(axis=(1, 3))
    seen = twenty > 0
    assert seen.any()
    assert np.abs(twenty - mean)[seen].max() <= 0.5


def test_two_orbits_overlap_and_together_see_everything() -> None:
    demo = DemoRegion(size_px=1024)
    west, south, east, north = demo.bounds_lonlat
    seen = {
        orbit: unary_union([s.footprint_lonlat for s in demo.scenes() if s.acquisition.orbit == orbit])
        for orbit in ("R022", "R065")
    }
    region = box(west, south, east, north)
    for footprint in seen.values():
        assert 0.3 < footprint.intersection(region).area / region.area < 0.9
    assert seen["R022"].intersection(seen["R065"]).intersection(region).area > 0.1 * region.area
    assert seen["R022"].union(seen["R065"]).buffer(1e-7).contains(region)


def test_pixels_are_where_the_footprint_says() -> None:
    demo = DemoRegion(size_px=512)
    for scene in demo.scenes():
        red = render(demo, scene, scene.rows, scene.cols)["red"]
        x, y = np.meshgrid(
            (np.arange(scene.cols.start, scene.cols.stop) + 0.5) * 10, -(np.arange(scene.rows.start, scene.rows.stop) + 0.5) * 10
        )
        lon, lat = Transformer.from_crs(scene.crs, "EPSG:4326", always_xy=True).transform(x, y)
        inside = contains_xy(scene.footprint_lonlat, lon, lat)
        assert (inside == (red > 0)).mean() > 0.998, scene.id


def test_every_pixel_is_seen_clear_at_least_once() -> None:
    demo = DemoRegion(size_px=512)
    scenes = [s for s in demo.scenes() if s.crs == demo.crs]
    clear = [~np.isin(render(demo, s, s.rows, s.cols)["scl"], (0, 3, 8, 9, 10)) for s in scenes]
    assert np.logical_or.reduce(clear).all()
    assert not clear[0].all()


def test_dark_and_bright_classes_have_the_right_numbers() -> None:
    demo = DemoRegion(size_px=512)
    scene = next(s for s in demo.scenes() if s.crs == demo.crs and s.acquisition.cloud_cover == 0)
    numbers = render(demo, scene, scene.rows, scene.cols)
    truth = np.ascontiguousarray(demo.layers(scene.crs, scene.rows, scene.cols)["cls"])
    nir, red = (numbers[b].astype(float) * 0.0001 - 0.1 for b in ("nir", "red"))
    seen = numbers["red"] > 0
    assert np.median(nir[seen & (truth == 1)]) < 0.06
    green = seen & (truth == 2)
    assert np.median(((nir - red) / (nir + red))[green]) > 0.7


def test_a_region_of_100000_pixels_is_described_without_being_held() -> None:
    demo = DemoRegion(size_px=100_000, dates=20)
    tracemalloc.start()
    count = 0
    ids = set()
    for item in describe_items(demo):
        count += 1
        ids.add(item["id"])
        assert shape(item["geometry"]).is_valid
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == len(ids) > 2000
    assert peak < 30_000_000  # one band of the region alone would be 20 GB
    json.dumps(item, allow_nan=False)


def test_a_window_of_a_huge_region_is_made_alone() -> None:
    demo = DemoRegion(size_px=100_000)
    scene = next(s for s in demo.scenes() if s.crs == "EPSG:32633" and len(s.rows) == 10_980)
    rows, cols = Span(scene.rows.start + 5000, scene.rows.start + 5064), Span(scene.cols.start + 500, scene.cols.start + 564)
    numbers = render(demo, scene, rows, cols)
    assert numbers["blue"].shape == (64, 64)
    assert numbers["blue"].dtype == np.uint16


def test_scenes_of_a_huge_region_cover_its_middle_in_both_zones() -> None:
    demo = DemoRegion(size_px=30_000, dates=1)
    west, south, east, north = demo.bounds_lonlat
    every = unary_union([s.footprint_lonlat for s in demo.scenes()])
    assert every.buffer(1e-4).contains(box(west, south, east, north))
    assert all(max(len(s.rows), len(s.cols)) <= 10_980 for s in demo.scenes())


def test_all_scenes_lie_on_the_60_m_lattice() -> None:
    for scene in DemoRegion(size_px=700).scenes():
        assert {scene.rows.start % 6, scene.rows.stop % 6, scene.cols.start % 6, scene.cols.stop % 6} == {0}


@pytest.mark.parametrize("wrong", [{"size_px": 10}, {"dates": 0}, {"seed": -1}, {"swir_resolution_m": 30}, {"scene_px": 1000}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="demo region"):
        DemoRegion(**wrong)
