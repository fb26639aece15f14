"""The anchored resampler against GDAL's exact warp, against brute force, and against itself in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyproj
import pytest
from affine import Affine
from scenes import gdal_exact, grid_over, item_of, pipeline, read_grid, smooth, source_of, table_of, write_raster

from eo_batch.core.grid import Grid, Span
from eo_batch.core.records import BandAsset
from eo_batch.sources.resample import STEP, TOLERANCE_PX, Georeference, average_blocks, decode, positions, resample


def source_over(path: Path, crs: str, resolution: float, *, nodata: float | None = None, resampling: str = "bilinear"):
    item = item_of(0, {"red": BandAsset("red", str(path), nodata=nodata)})
    grid = grid_over(path, crs, resolution)
    return source_of(path.parent, table_of(item), grid, pipeline(["red"], resampling=resampling))


def share_within(ours: np.ndarray, ours_valid: np.ndarray, theirs: np.ndarray, theirs_valid: np.ndarray, counts: float) -> float:
    """Share of pixels that either side observes at which both do and differ by at most `counts`."""
    seen = ours_valid | theirs_valid
    both = ours_valid & theirs_valid
    close = both & (np.abs(np.where(both, ours, 0).astype(float) - np.where(both, theirs, 0)) <= counts)
    return float(close.sum() / seen.sum())


PLACES = {
    "utm to next zone": ("EPSG:32633", 600_000, 5_000_000, 10.0, "EPSG:32634", 10.0),
    "utm to degrees": ("EPSG:32631", 430_000, 4_690_000, 10.0, "EPSG:4326", 0.0001),
    "degrees to utm": ("EPSG:4326", 2.8, 42.36, 0.0001, "EPSG:32631", 10.0),
    "polar stereographic to utm": ("EPSG:3031", 1_000_000, -800_000, 500.0, "EPSG:32759", 500.0),
    "utm to web mercator": ("EPSG:32629", 500_000, 5_900_000, 20.0, "EPSG:3857", 25.0),
    "same crs, shifted by a third of a pixel": ("EPSG:32633", 600_003.3, 5_000_003.3, 10.0, "EPSG:32633", 10.0),
    "same crs, finer grid": ("EPSG:32633", 600_000, 5_000_000, 20.0, "EPSG:32633", 10.0),
}


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bilinear_is_within_one_count_of_gdals_exact_warp(tmp_path: Path, place: str) -> None:
    crs, left, top, size, target, resolution = PLACES[place]
    values = smooth(420, 380)
    values[:90, :140] = 0
    values[np.random.default_rng(5).random(values.shape) < 0.01] = 0
    path = write_raster(tmp_path / "a.tif", values, crs=crs, left=left, top=top, resolution=size, nodata=0)
    source = source_over(path, target, resolution)
    pixels, valid, _ = read_grid(source)
    assert valid.mean() > 0.2
    assert share_within(pixels[0], valid, *gdal_exact(path, source.grid), 1.0) >= 0.999


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_nearest_is_gdals_exact_warp(tmp_path: Path, place: str) -> None:
    crs, left, top, size, target, resolution = PLACES[place]
    values = np.random.default_rng(3).integers(1, 12, (300, 310)).astype("uint8")
    values[:40] = 0
    path = write_raster(tmp_path / "a.tif", values, crs=crs, left=left, top=top, resolution=size, nodata=0)
    source = source_over(path, target, resolution, resampling="nearest")
    pixels, valid, _ = read_grid(source)
    assert share_within(pixels[0], valid, *gdal_exact(path, source.grid, nearest=True), 0.0) >= 0.999


def test_a_rotated_source_lands_where_gdal_puts_it(tmp_path: Path) -> None:
    turned = Affine.translation(300_000, 7_800_000) @ Affine.rotation(76) @ Affine.scale(2.0, -2.0)
    path = write_raster(tmp_path / "a.tif", smooth(256, 256), crs="EPSG:32759", transform=turned, nodata=0)
    source = source_over(path, "EPSG:32759", 2.0)
    pixels, valid, _ = read_grid(source)
    assert share_within(pixels[0], valid, *gdal_exact(path, source.grid), 1.0) >= 0.999


@pytest.mark.parametrize("chunk", [100, 133, 256, 512])
def test_reprojected_pixels_do_not_depend_on_the_chunking(tmp_path: Path, chunk: int) -> None:
    values = smooth(700, 640)
    values[200:230, 100:400] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    source = source_over(path, "EPSG:32634", 10.0)
    whole, in_parts = read_grid(source), read_grid(source, chunk=chunk)
    for left, right in zip(whole, in_parts, strict=True):
        assert left.tobytes() == right.tobytes()


def test_a_pixel_is_observed_exactly_where_the_source_pixel_under_its_centre_is() -> None:
    source = smooth(40, 40).astype("float32")
    source[10:20, 10:20] = np.nan
    place = Georeference(1.0, None, Affine.translation(0.3, 0.4) @ Affine.scale(1, -1))
    rows, cols = Span(0, 35), Span(0, 35)
    out = np.full((35, 35), np.nan, np.float32)
    resample(source, positions(place, rows, cols), origin=(0, 0), extent=(40, 40), nearest=False, out=out)
    y, x = np.mgrid[0:35, 0:35]
    under = source[np.floor(y + 0.5 + 0.4).astype(int), np.floor(x + 0.5 + 0.3).astype(int)]
    assert np.array_equal(np.isnan(out), np.isnan(under))


def test_weights_are_spread_over_observed_neighbours_only() -> None:
    source = np.array([[10, 20], [30, np.nan]], np.float32)
    place = Georeference(1.0, None, Affine.translation(0.25, 0.25) @ Affine.scale(1, -1))
    out = np.full((1, 1), np.nan, np.float32)
    resample(source, positions(place, Span(0, 1), Span(0, 1)), origin=(0, 0), extent=(2, 2), nearest=False, out=out)
    assert out[0, 0] == np.float32((10 * 0.5625 + 20 * 0.1875 + 30 * 0.1875) / 0.9375)


@pytest.mark.parametrize(
    ("grid_crs", "source_crs", "resolution", "at", "source_px"),
    [
        ("EPSG:32634", "EPSG:32633", 10.0, (-500_000, 15_000), 10.0),
        ("EPSG:32631", "EPSG:4326", 10.0, (-469_000, 48_000), 0.0001),
        ("EPSG:3031", "EPSG:32759", 30.0, (30_000, 40_000), 30.0),
        ("EPSG:4326", "EPSG:32601", 0.0001, (-600_000, -1_799_900), 10.0),
        ("EPSG:32601", "EPSG:4326", 500.0, (-14_000, 400), 0.005),
    ],
)
def test_places_are_exact_to_a_thousandth_of_a_source_pixel(
    grid_crs: str, source_crs: str, resolution: float, at: tuple[int, int], source_px: float
) -> None:
    tr = pyproj.Transformer.from_crs(grid_crs, source_crs, always_xy=True)
    place = Georeference(resolution, tr, Affine.scale(1 / source_px, -1 / source_px))
    rows, cols = Span(at[0], at[0] + 130), Span(at[1], at[1] + 150)
    found = positions(place, rows, cols)
    u = np.full((130, 150), np.nan)
    for y in range(130):
        i, k = divmod(rows.start + y, STEP)
        i -= rows.start // STEP
        for x in range(150):
            j, m = divmod(cols.start + x, STEP)
            j -= cols.start // STEP
            entry = found.exact[i, j]
            if entry >= 0:
                u[y, x] = found.exact_u[entry, k, m]
            else:
                ty, tx = (k + 0.5) / STEP, (m + 0.5) / STEP
                top = found.u[i, j] * (1 - tx) + found.u[i, j + 1] * tx
                u[y, x] = top * (1 - ty) + (found.u[i + 1, j] * (1 - tx) + found.u[i + 1, j + 1] * tx) * ty
    c, r = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    exact, _ = place.locate(r.ravel(), c.ravel())
    assert np.nanmax(np.abs(u.ravel() - exact)) <= TOLERANCE_PX
    assert np.array_equal(np.isnan(u.ravel()), np.isnan(exact))


def test_places_beyond_the_edge_of_the_earth_are_not_observed(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(90, 180), crs="EPSG:4326", left=-90, top=90, resolution=1.0)
    item = item_of(0, {"red": BandAsset("red", str(path))})
    grid = Grid("+proj=ortho +lat_0=45 +lon_0=0 +ellps=WGS84", 100_000.0, Span(-70, 70), Span(-70, 70), 500, 64, 48)
    pixels, valid, _ = read_grid(source_of(tmp_path, table_of(item), grid, pipeline(["red"])))
    y, x = np.mgrid[-70:70, -70:70] * 1e5 + 5e4
    assert not valid[np.hypot(x, y) > 6_378_137].any()
    assert share_within(pixels[0], valid, *gdal_exact(path, grid), 1.0) >= 0.99


def test_a_source_across_the_antimeridian_is_read_on_both_sides(tmp_path: Path) -> None:
    values = smooth(400, 400)
    path = write_raster(tmp_path / "a.tif", values, crs="EPSG:32601", left=166_000, top=7_200_000, resolution=20)
    grid = grid_over(path, "EPSG:32660", 20.0)
    item = item_of(0, {"red": BandAsset("red", str(path))})
    pixels, valid, _ = read_grid(source_of(tmp_path, table_of(item), grid, pipeline(["red"])))
    assert share_within(pixels[0], valid, *gdal_exact(path, grid), 1.0) >= 0.999


def test_averages_of_blocks_leave_out_what_is_not_observed() -> None:
    random = np.random.default_rng(2)
    source = random.normal(size=(23, 17)).astype("float32")
    source[random.random(source.shape) < 0.4] = np.nan
    source[0:4, 0:4] = np.nan
    found = average_blocks(source, 4)
    for i in range(6):
        for j in range(5):
            block = source[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].astype(float)
            want = np.float32(np.nanmean(block)) if np.isfinite(block).any() else np.float32(np.nan)
            np.testing.assert_allclose(found[i, j], want, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 7.0, -9999.0, float("nan")])
def test_numbers_become_physical_values_in_float32(dtype: str, nodata: float | None) -> None:
    numbers = np.arange(100, dtype=dtype).reshape(10, 10)
    if dtype.startswith("float"):
        numbers[3, 3], numbers[4, 4] = np.nan, np.inf
    out = np.empty((10, 10), np.float32)
    decode(numbers, nodata=nodata, scale=0.0001, offset=-0.1, out=out)
    want = numbers.astype(np.float32) * np.float32(0.0001) + np.float32(-0.1)
    want[~np.isfinite(numbers) | (numbers == nodata)] = np.nan
    assert out.tobytes() == want.tobytes()
