"""The ground of the demo region: the same everywhere, whoever asks; rich enough; coloured like the Earth."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from eo_batch.core.errors import ConfigError
from eo_batch.core.grid import Span
from eo_batch.sources.synthetic import DemoRegion, truth_masks
from eo_batch.sources.synthetic import landscape as land
from eo_batch.sources.synthetic.spectra import BANDS, CLASS_NAMES, end_members, season_mix, truth_classes


def _coarse(step: int = 8) -> np.ndarray:
    """Every 8th pixel of the standard region, `LAYERS` (y, x)."""
    from eo_batch.sources.synthetic.scenes import positions

    demo = DemoRegion()
    east, north = positions(demo.crs, demo.rows, demo.cols)
    return land.ground(np.ascontiguousarray(east[::step, ::step]), np.ascontiguousarray(north[::step, ::step]), demo.seed)


def test_truth_does_not_depend_on_the_window() -> None:
    demo = DemoRegion(size_px=256)
    whole = demo.classes(demo.rows, demo.cols)
    for height, width in ((64, 256), (97, 101), (1, 256)):
        rebuilt = np.zeros_like(whole)
        for top in range(demo.rows.start, demo.rows.stop, height):
            for left in range(demo.cols.start, demo.cols.stop, width):
                rows, cols = Span(top, min(top + height, demo.rows.stop)), Span(left, min(left + width, demo.cols.stop))
                rebuilt[rows.within(demo.rows), cols.within(demo.cols)] = demo.classes(rows, cols)
        np.testing.assert_array_equal(rebuilt, whole)


def test_truth_does_not_depend_on_the_size_of_the_region() -> None:
    small, large = DemoRegion(size_px=128), DemoRegion(size_px=100_000)
    np.testing.assert_array_equal(small.classes(small.rows, small.cols), large.classes(small.rows, small.cols))


def test_another_process_sees_the_same_ground() -> None:
    code = (
        "import hashlib; from eo_batch.sources.synthetic import DemoRegion; d = DemoRegion(size_px=128);"
        "print(hashlib.sha256(d.layers('EPSG:32633', d.rows, d.cols).tobytes()).hexdigest())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    demo = DemoRegion(size_px=128)
    assert told == hashlib.sha256(demo.layers("EPSG:32633", demo.rows, demo.cols).tobytes()).hexdigest()


def test_another_seed_is_another_landscape() -> None:
    one, other = DemoRegion(size_px=256, seed=1), DemoRegion(size_px=256, seed=2)
    assert (one.classes(one.rows, one.cols) != other.classes(one.rows, one.cols)).mean() > 0.2


def test_the_standard_region_holds_every_class() -> None:
    found, counts = np.unique(_coarse()["cls"], return_counts=True)
    assert set(found.tolist()) == set(CLASS_NAMES)
    assert counts.min() / counts.sum() > 0.001


def test_water_lies_low_and_snow_high() -> None:
    ground = _coarse()
    sea = ground["height"] < 0
    assert (ground["cls"][sea] == land.WATER).all()
    assert ground["height"][ground["cls"] == land.SNOW].min() > 1000.0


def test_large_water_bodies_are_smooth() -> None:
    water = _coarse()["cls"] == land.WATER
    inner = water[1:-1, 1:-1]
    neighbours = water[:-2, 1:-1].astype(int) + water[2:, 1:-1] + water[1:-1, :-2] + water[1:-1, 2:]
    assert (neighbours[inner] == 4).mean() > 0.9


@pytest.mark.parametrize("cover", [0.05, 0.2, 0.4])
def test_clouds_cover_about_what_is_asked(cover: float) -> None:
    x, y = np.meshgrid(np.arange(0.0, 300_000.0, 400.0), np.arange(0.0, 300_000.0, 400.0))
    clouds = land.cloud_thickness(x, y, 5, cover=cover)
    assert (clouds > 0.1).mean() == pytest.approx(cover, abs=0.06)
    assert 0.0 <= clouds.min() <= clouds.max() <= 1.0


def test_no_cover_is_a_clear_sky() -> None:
    x, y = np.meshgrid(np.arange(0.0, 9000.0, 100.0), np.arange(0.0, 9000.0, 100.0))
    assert not land.cloud_thickness(x, y, 5, cover=0.0).any()


def test_spectra_pass_the_published_tests_of_the_indices() -> None:
    """McFeeters 1996, Xu 2006, Hall et al. 1995, Zha et al. 2003; NDVI of dense canopies as in Tucker 1979."""
    spectra = end_members()[0]
    band = {name: spectra[..., number] for number, name in enumerate(BANDS)}

    def ratio(a: str, b: str) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return (band[a] - band[b]) / (band[a] + band[b])

    assert (ratio("green", "nir")[land.WATER] > 0).all()
    assert (ratio("green", "swir16")[land.WATER] > 0).all()
    assert (band["nir"][land.WATER] < 0.11).all()
    assert (ratio("green", "swir16")[land.SNOW] >= 0.4).all()
    assert (band["nir"][land.SNOW] > 0.11).all()
    assert (ratio("swir16", "nir")[land.BUILT] > 0).all()
    assert (ratio("nir", "red")[land.FOREST] > 0.7).all()
    assert ratio("nir", "red")[land.CROPS, 1] > 0.7
    assert (np.abs(ratio("nir", "red")[[land.BUILT, land.ROAD, land.ROCK, land.SNOW, land.BARE]]) < 0.25).all()


def test_spectra_lie_in_the_ranges_of_spectral_libraries() -> None:
    """Visible and near-infrared extremes of ECOSTRESS and USGS splib07 entries of each kind, widely rounded."""
    spectra = end_members()[0]
    ranges = {
        land.WATER: ((0.0, 0.12), (0.0, 0.06), (0.0, 0.03)),
        land.FOREST: ((0.01, 0.08), (0.15, 0.55), (0.05, 0.30)),
        land.BARE: ((0.03, 0.25), (0.10, 0.40), (0.15, 0.50)),
        land.SAND: ((0.08, 0.40), (0.20, 0.60), (0.20, 0.65)),
        land.SNOW: ((0.50, 0.99), (0.40, 0.95), (0.01, 0.25)),
        land.ROAD: ((0.05, 0.25), (0.08, 0.35), (0.10, 0.40)),
    }
    for code, (visible, nir, swir) in ranges.items():
        for (low, high), bands in ((visible, slice(0, 3)), (nir, slice(3, 4)), (swir, slice(4, 5))):
            assert spectra[code, :, bands].min() >= low, CLASS_NAMES[code]
            assert spectra[code, :, bands].max() <= high, CLASS_NAMES[code]


def test_fields_are_green_in_june_and_bare_in_winter() -> None:
    cereal = [season_mix(day)[land.CROPS, 0].mean() for day in (20, 160, 240)]
    assert cereal[1] > 0.8
    assert max(cereal[0], cereal[2]) < 0.2
    maize = [season_mix(day)[land.CROPS, 1].mean() for day in (120, 200)]
    assert maize[0] < 0.1 < 0.8 < maize[1]


def test_a_prompt_is_a_set_of_classes() -> None:
    demo = DemoRegion(size_px=128)
    cls = demo.classes(demo.rows, demo.cols)
    expected = (cls == land.FOREST) | (cls == land.CROPS) | (cls == land.GRASS)
    np.testing.assert_array_equal(truth_masks(demo, " Vegetation "), expected)


def test_an_unknown_prompt_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match='Did you mean "forest"') as caught:
        truth_classes("forrest")
    assert caught.value.code == "prompt-invalid"


def test_clouds_have_their_shadow_opposite_the_sun() -> None:
    from eo_batch.sources.synthetic.render import render

    demo = DemoRegion(size_px=512)
    scene = next(s for s in demo.scenes() if s.acquisition.cloud_cover > 0.2 and s.crs == demo.crs)
    scl = render(demo, scene, scene.rows, scene.cols)["scl"]
    cloud, shadow = scl == 9, scl == 3
    elevation, azimuth = np.radians(scene.acquisition.sun_elevation_azimuth)
    length_px = 1500.0 / np.tan(elevation) / 20.0
    down, right = round(length_px * np.cos(azimuth)), round(-length_px * np.sin(azimuth))
    moved = np.roll(cloud, (down, right), (0, 1))
    back = np.roll(cloud, (-down, -right), (0, 1))
    assert (shadow & moved).sum() > 2 * (shadow & back).sum()
