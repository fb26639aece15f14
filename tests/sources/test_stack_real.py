"""Real scenes: the reader against plain rasterio, against GDAL's exact warp, and against itself in pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import odc.stac
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from scenes import gdal_exact, grid_over, item_of, pipeline, read_grid, source_of, table_of

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Grid, Span
from eo_batch.core.records import BandAsset, CloudMask
from eo_batch.sources.stack import SceneSource

pytestmark = pytest.mark.shared

UNU = "scenes/s2-l2a-29unu-20221005"


def source_over(
    shared: Path,
    name: str,
    crs: str,
    resolution: float,
    *,
    index: int = 1,
    nodata: float | None = None,
    resampling: str = "bilinear",
) -> SceneSource:
    item = item_of(0, {"red": BandAsset("red", str(shared / name), index=index, nodata=nodata)})
    return source_of(shared, table_of(item), grid_over(shared / name, crs, resolution), pipeline(["red"], resampling=resampling))


@pytest.mark.parametrize(
    ("name", "resolution", "index"),
    [
        (f"{UNU}/B04_60m.tif", 60.0, 1),
        ("scenes/s2-l2a-32tls-20220618/B01_60m.tif", 60.0, 1),
        ("scenes/s2-l1c-18svg-20160112/B05.tif", 20.0, 1),
        ("scenes/s2-l2a-ftw-austria/two_windows.tif", 10.0, 7),
    ],
)
@pytest.mark.parametrize("chunk", [512, 683, 10**6])
def test_aligned_scenes_are_plain_rasterio_bit_for_bit(
    shared: Path, name: str, resolution: float, index: int, chunk: int
) -> None:
    with rasterio.open(shared / name) as file:
        numbers, nodata, crs = file.read(index), file.nodata, file.crs.to_string()
    pixels, valid, _ = read_grid(source_over(shared, name, crs, resolution, index=index), chunk=chunk)
    inner = (slice(3, -3), slice(3, -3))
    observed = np.isfinite(numbers) & (numbers != nodata)
    assert np.array_equal(valid[inner], observed)
    assert pixels[0][inner][observed].tobytes() == numbers.astype(np.float32)[observed].tobytes()


def test_radar_with_nan_pixels_and_nodata_tag_zero_observes_neither(shared: Path) -> None:
    name = "scenes/s1-rtc-gamma0-20200106/gamma0_vv.tif"
    with rasterio.open(shared / name) as file:
        numbers = np.kron(file.read(1), np.ones((10, 10), np.float32))
    source = source_over(shared, name, "EPSG:32610", 20.0, resampling="nearest")
    pixels, valid, _ = read_grid(source)
    observed = np.isfinite(numbers) & (numbers != 0)
    assert np.isnan(numbers).any()
    assert np.array_equal(valid[3:-3, 3:-3], observed)
    assert np.array_equal(pixels[0, 3:-3, 3:-3][observed], numbers[observed])


WARPED = {
    "29UNU to UTM 30": (f"{UNU}/B04_60m.tif", "EPSG:32630", 60.0, 1, None, 1.0),
    "29UNU to web mercator": (f"{UNU}/B8A_60m.tif", "EPSG:3857", 100.0, 1, None, 1.0),
    "18SVG 60 m to its 20 m grid": ("scenes/s2-l1c-18svg-20160112/B01.tif", "EPSG:32618", 20.0, 1, None, 1.0),
    "Boadella to UTM": ("scenes/s2-l2a-boadella-20190607/stack.tif", "EPSG:32631", 10.0, 8, None, 1.0),
    "32TLS to degrees": ("scenes/s2-l2a-32tls-20220620/B01_60m.tif", "EPSG:4326", 0.0006, 1, 0.0, 1.0),
    "Landsat of non-square pixels": ("scenes/landsat8-c2l2-008059-20191201/SR_B4.tif", "EPSG:32618", 450.0, 1, None, 1.0),
    "Landsat of Antarctica": ("scenes/landsat8-c2l2-099120-20191129/SR_B4.tif", "EPSG:3031", 500.0, 1, None, 1.0),
    "Landsat of Antarctica to UTM": ("scenes/landsat8-c2l2-099120-20191129/SR_B4.tif", "EPSG:32741", 500.0, 1, None, 1.0),
    "NAIP of zone 18 to 17": ("scenes/naip-va-3607717-utm18/rgbn.tif", "EPSG:26917", 1.0, 4, None, 1.0),
    "NAIP with nodata 255": ("scenes/naip-va-sherando/rgbn.tif", "EPSG:26918", 1.0, 1, None, 1.0),
    "Landsat temperature with NaN": ("odd/landsat8-lst-float-nan.tif", "EPSG:32615", 30.0, 1, None, 0.01),
    "SAR rotated by 76 degrees": ("odd/umbra-mount-yasur.tif", "EPSG:32759", 1.0, 1, None, 1.0),
    "across the antimeridian": ("odd/landsat-antimeridian-utm60n.tif", "EPSG:32601", 100.0, 1, None, 1.0),
}


@pytest.mark.parametrize("case", WARPED, ids=str)
def test_warped_scenes_are_within_one_count_of_gdals_exact_warp(shared: Path, case: str) -> None:
    name, crs, resolution, index, nodata, count = WARPED[case]
    source = source_over(shared, name, crs, resolution, index=index, nodata=nodata)
    if max(source.grid.shape) > 2500:
        source = _middle(source, 2500)
    pixels, valid, _ = read_grid(source)
    numbers, theirs = gdal_exact(shared / name, source.grid, index=index, nodata=nodata)
    both = valid & theirs
    close = np.abs(pixels[0][both].astype(float) - numbers[both]) <= count
    assert both.any()
    assert close.sum() / (valid | theirs).sum() >= 0.999


@pytest.mark.parametrize(
    "case", ["29UNU to UTM 30", "Boadella to UTM", "Landsat of Antarctica to UTM", "SAR rotated by 76 degrees"]
)
@pytest.mark.parametrize("chunk", [512, 683, 1000])
def test_warped_scenes_do_not_depend_on_the_chunking(shared: Path, case: str, chunk: int) -> None:
    name, crs, resolution, index, nodata, _ = WARPED[case]
    source = source_over(shared, name, crs, resolution, index=index, nodata=nodata)
    source = _middle(source, 2000)
    whole, in_parts = read_grid(source), read_grid(source, chunk=chunk if min(source.grid.shape) > chunk else chunk // 4)
    for left, right in zip(whole, in_parts, strict=True):
        assert left.tobytes() == right.tobytes()


def test_scale_and_offset_of_real_scenes_come_from_their_tags(shared: Path) -> None:
    nan = float("nan")
    path = shared / UNU / "B04_60m.tif"
    item = item_of(0, {"red": BandAsset("red", str(path), scale=nan, offset=nan)})
    pixels, valid, _ = read_grid(
        source_of(shared, table_of(item), grid_over(path, "EPSG:32629", 60.0, margin=0), pipeline(["red"]))
    )
    with rasterio.open(path) as file:
        want = file.read(1).astype(np.float32) * np.float32(0.0001) + np.float32(-0.1)
    assert np.array_equal(pixels[0][valid], want[valid])


def test_clouds_of_29unu_are_dropped_by_its_scene_classes(shared: Path) -> None:
    path, scl = shared / UNU / "B04_60m.tif", shared / UNU / "SCL_20m.tif"
    drop = (0, 1, 3, 8, 9, 10)
    bands = {"red": BandAsset("red", str(path))}
    item = item_of(0, bands, mask=CloudMask(BandAsset("scl", str(scl)), "classes", drop))
    grid = grid_over(path, "EPSG:32629", 60.0, margin=0)
    _, valid, _ = read_grid(source_of(shared, table_of(item), grid, pipeline(["red"])))
    with rasterio.open(scl) as file, rasterio.open(path) as red:
        centres = file.read(1)[1::3, 1::3]
        want = (red.read(1) != 0) & ~np.isin(centres, drop)
    assert 0.05 < want.mean() < 0.6
    assert np.array_equal(valid, want)


def test_two_orbits_of_one_tile_fill_each_other(shared: Path) -> None:
    names = ("s2-l2a-32tls-20220620", "s2-l2a-32tls-20220618")
    paths = [shared / "scenes" / name / "B01_60m.tif" for name in names]
    table = table_of(*(item_of(n, {"coastal": BandAsset("coastal", str(p), nodata=0.0)}) for n, p in enumerate(paths)))
    source = source_of(shared, table, grid_over(paths[0], "EPSG:32632", 60.0, margin=0), pipeline(["coastal"]))
    pixels, valid, givers = read_grid(source, chunk=512)
    late, early = (rasterio.open(path).read(1) for path in paths)
    assert np.array_equal(pixels[0][valid], np.where(late != 0, late, early)[valid].astype(np.float32))
    assert np.array_equal(givers == 1, late != 0)
    assert np.array_equal(valid, (late != 0) | (early != 0))


def test_scenes_of_two_zones_meet_on_one_grid(shared: Path) -> None:
    paths = [shared / "scenes" / name / "rgbn.tif" for name in ("naip-va-3607824-utm17", "naip-va-3607717-utm18")]
    bands = [{b: BandAsset(b, str(p), index=i) for i, b in enumerate(("red", "nir"), 1)} for p in paths]
    table = table_of(*(item_of(n, b) for n, b in enumerate(bands)))
    west, east = grid_over(paths[0], "EPSG:26917", 1.0), grid_over(paths[1], "EPSG:26917", 1.0)
    rows = Span(min(west.rows.start, east.rows.start), max(west.rows.stop, east.rows.stop))
    cols = Span(min(west.cols.start, east.cols.start), max(west.cols.stop, east.cols.stop))
    source = source_of(shared, table, replace(west, rows=rows, cols=cols), pipeline(["red", "nir"]))
    whole, in_parts = read_grid(source), read_grid(source, chunk=167)
    assert {0, 1, 2} <= set(np.unique(whole[2]).tolist())
    for left, right in zip(whole, in_parts, strict=True):
        assert left.tobytes() == right.tobytes()


def test_a_scene_with_control_points_only_is_refused(shared: Path) -> None:
    path = shared / "scenes/s1-grd-20180716-gcps/iw-vv.tif"
    item = replace(
        item_of(0, {"red": BandAsset("red", str(shared / UNU / "B04_60m.tif"))}), bands={"red": BandAsset("red", str(path))}
    )
    grid = grid_over(shared / UNU / "B04_60m.tif", "EPSG:32629", 600.0)
    with pytest.raises(AssetError, match="only ground control points") as caught:
        read_grid(source_of(shared, table_of(item), grid, pipeline(["red"])))
    assert caught.value.code == "asset-contract"


def test_jpeg_2000_is_read_where_the_href_says_so(shared: Path) -> None:
    name = f"{UNU}/TCI_60m.jp2"
    source = source_over(shared, name, "EPSG:32629", 60.0, index=2)
    pixels, valid, _ = read_grid(source, chunk=900)
    with rasterio.open(shared / name) as file:
        assert np.array_equal(pixels[0][3:-3, 3:-3], file.read(2).astype(np.float32))
    assert valid[3:-3, 3:-3].all()


def test_a_geostationary_scene_lands_on_earth(shared: Path) -> None:
    source = source_over(shared, "odd/umbra-mount-yasur.tif", "EPSG:4326", 0.1)
    grid = Grid("EPSG:4326", 0.2, Span(-200, 200), Span(-600, -200), 1000, 64, 48)
    item = replace(source.items.items[0], bbox=(-180.0, -85.0, 180.0, 85.0))
    item = replace(item, bands={"red": BandAsset("red", str(shared / "odd/goes-geostationary.tif"))})
    source = source_of(shared, table_of(item), grid, pipeline(["red"]))
    whole, in_parts = read_grid(source), read_grid(source, chunk=77)
    assert whole[1].mean() > 0.5
    assert whole[0].tobytes() == in_parts[0].tobytes()


def test_aligned_nearest_reads_are_those_of_odc_stac(shared: Path) -> None:
    path = shared / UNU / "SCL_20m.tif"
    source = source_over(shared, f"{UNU}/SCL_20m.tif", "EPSG:32629", 20.0, resampling="nearest")
    stac_item = pystac.Item.from_file(str(shared / "stac/sentinel-2-l2a/s2-l2a-29unu-20221005/s2-l2a-29unu-20221005.json"))
    key = next(key for key, asset in stac_item.assets.items() if asset.href.endswith("SCL_20m.tif"))
    box = GeoBox(source.grid.shape, source.grid.transform, source.grid.crs)
    theirs = odc.stac.load([stac_item], bands=[key], geobox=box, resampling="nearest")[key].values[0]
    pixels, valid, _ = read_grid(source)
    with rasterio.open(path) as file:
        assert file.nodata == 0
    assert np.array_equal(valid, theirs != 0)
    assert np.array_equal(pixels[0][valid], theirs[valid].astype(np.float32))


def _middle(source: SceneSource, size: int) -> SceneSource:
    def cut(span: Span) -> Span:
        if len(span) <= size:
            return span
        start = span.start + (len(span) - size) // 2
        return Span(start, start + size)

    grid = replace(source.grid, rows=cut(source.grid.rows), cols=cut(source.grid.cols))
    return SceneSource(source.items, grid, source.spec, replace(source.reader, grid=grid))
