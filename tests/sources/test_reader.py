"""What a file must be before a pixel of it is read, and what its pixels become."""

from __future__ import annotations

import os
import resource
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.vrt import WarpedVRT
from scenes import (
    gdal_exact,
    grid_over,
    item_of,
    pipeline,
    plain_window,
    read_grid,
    smooth,
    source_of,
    step_of,
    table_of,
    write_raster,
)

from eo_batch.core.errors import AssetError, PolicyError
from eo_batch.core.grid import Grid
from eo_batch.core.records import BandAsset, CloudMask
from eo_batch.sources import raster
from eo_batch.sources.open_files import MAX_OPEN_PER_THREAD, opened_files


def source_over(path: Path, *, grid: Grid | None = None, resampling: str = "bilinear", **asset: object):
    item = item_of(0, {"red": BandAsset("red", str(path), **asset)}) if grid is None else None
    grid = grid or grid_over(path, "EPSG:32633", 10.0)
    item = item or replace(item_of(0, {"red": BandAsset("red", str(path), **asset)}, days=0))
    return source_of(path.parent, table_of(item), grid, pipeline(["red"], resampling=resampling))


def refused(path: Path, folder: Path | None = None, **asset: object) -> AssetError:
    """The error of reading a file that need not be readable."""
    good = write_raster(path.parent / "good.tif", smooth(512, 512))
    item = replace(item_of(0, {"red": BandAsset("red", str(good))}), bands={"red": BandAsset("red", str(path), **asset)})
    source = source_of(folder or path.parent, table_of(item), grid_over(good, "EPSG:32633", 10.0), pipeline(["red"]))
    with pytest.raises(AssetError) as caught:
        read_grid(source)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("chunk", [100, 333, 10**6])
def test_aligned_pixels_are_those_of_plain_rasterio_bit_for_bit(tmp_path: Path, dtype: str, chunk: int) -> None:
    values = smooth(400, 300, dtype=dtype)
    values[50:80, 60:90] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    source = source_over(path, scale=0.0001, offset=-0.1)
    pixels, valid, _ = read_grid(source, chunk=chunk)
    inner = (slice(3, -3), slice(3, -3))
    want = values.astype(np.float32) * np.float32(0.0001) + np.float32(-0.1)
    assert np.array_equal(valid[inner], values != 0)
    assert pixels[0][inner][values != 0].tobytes() == want[values != 0].tobytes()
    outside = valid.copy()
    outside[inner] = False
    assert not outside.any()


def test_scale_and_offset_not_stated_are_the_files_own(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(64, 64))
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.5,), (3.0,)
    own, _, _ = read_grid(source_over(path, scale=float("nan"), offset=float("nan")))
    stated, _, _ = read_grid(source_over(path, scale=1.0, offset=float("nan")))
    numbers = smooth(64, 64).astype(np.float32)
    assert np.array_equal(own[0, 3:-3, 3:-3], numbers * np.float32(0.5) + np.float32(3))
    assert np.array_equal(stated[0, 3:-3, 3:-3], numbers + np.float32(3))


def test_nodata_stated_by_the_item_replaces_the_files_tag(tmp_path: Path) -> None:
    values = smooth(64, 64)
    values[0, 0], values[1, 1] = 0, 9
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    _, by_file, _ = read_grid(source_over(path))
    _, by_item, _ = read_grid(source_over(path, nodata=9.0))
    assert not by_file[3, 3]
    assert by_file[4, 4]
    assert by_item[3, 3]
    assert not by_item[4, 4]


def test_nan_is_never_observed_whatever_the_nodata_tag_says(tmp_path: Path) -> None:
    values = smooth(64, 64).astype("float32")
    values[5, 5], values[6, 6], values[7, 7] = np.nan, 0, np.inf
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    _, valid, _ = read_grid(source_over(path))
    assert not valid[[8, 9, 10], [8, 9, 10]].any()
    assert valid[3:-3, 3:-3].sum() == 64 * 64 - 3


def test_an_internal_mask_counts_as_nodata(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, smooth(64, 64))
        with rasterio.open(path, "r+") as file:
            mask = np.full((64, 64), 255, np.uint8)
            mask[:10] = 0
            file.write_mask(mask)
    _, valid, _ = read_grid(source_over(path))
    assert np.array_equal(valid[3:-3, 3:-3], mask > 0)


def test_bands_of_one_file_and_of_differing_resolution_meet_on_one_grid(tmp_path: Path) -> None:
    ten, twenty = smooth(200, 200), smooth(100, 100, seed=2)
    path = write_raster(tmp_path / "ten.tif", np.stack([ten, ten + 1, ten + 2]))
    coarse = write_raster(tmp_path / "twenty.tif", twenty, resolution=20)
    bands = {"red": BandAsset("red", str(path), index=3), "swir16": BandAsset("swir16", str(coarse))}
    grid = grid_over(path, "EPSG:32633", 10.0, margin=0)
    pixels, valid, _ = read_grid(source_of(tmp_path, table_of(item_of(0, bands)), grid, pipeline(["red", "swir16"])))
    assert valid.all()
    assert np.array_equal(pixels[0], (ten + 2).astype(np.float32))
    exact, _ = gdal_exact(coarse, grid)
    assert np.abs(pixels[1] - exact).max() <= 1


@pytest.mark.parametrize("factor", [2, 4])
def test_a_coarser_grid_reads_the_overview(tmp_path: Path, factor: int) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512), overviews=(2, 4, 8))
    grid = grid_over(path, "EPSG:32633", 10.0 * factor, margin=0)
    pixels, valid, _ = read_grid(source_over(path, grid=grid))
    with rasterio.open(path, overview_level=factor // 2 - 1) as file:
        assert np.array_equal(pixels[0], file.read(1).astype(np.float32))
    assert valid.all()


@pytest.mark.parametrize("chunk", [40, 64, 10**6])
def test_a_coarser_grid_without_overviews_averages_the_files_own_blocks(tmp_path: Path, chunk: int) -> None:
    values = smooth(510, 500)
    values[:60, :60] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    grid = grid_over(path, "EPSG:32633", 50.0, margin=0)
    pixels, valid, _ = read_grid(source_over(path, grid=grid), chunk=chunk)
    blocks = np.where(values == 0, np.nan, values.astype(float)).reshape(102, 5, 100, 5)
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning, match="Mean of empty"):
        want = np.nanmean(blocks, axis=(1, 3))
    np.testing.assert_allclose(np.where(valid, pixels[0], np.nan), want, rtol=1e-6)


def test_the_level_read_does_not_depend_on_the_chunk(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(800, 800), overviews=(2, 4))
    grid = grid_over(path, "EPSG:32634", 27.0)
    source = source_over(path, grid=grid)
    whole, in_parts = read_grid(source), read_grid(source, chunk=67)
    assert whole[0].tobytes() == in_parts[0].tobytes()


def test_external_overviews_and_world_files_are_ignored(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2], rasterio.enums.Resampling.nearest)
    (tmp_path / "a.tfw").write_text("10\n0\n0\n-10\n0\n0\n")
    assert (tmp_path / "a.tif.ovr").is_file()
    grid = grid_over(tmp_path / "a.tif", "EPSG:32633", 20.0, margin=0)
    pixels, _, _ = read_grid(source_over(path, grid=grid))
    want = smooth(512, 512).reshape(256, 2, 256, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(pixels[0], want, rtol=1e-6)


@pytest.mark.parametrize(("kind", "drop"), [("classes", (3, 8, 9)), ("bits", (1, 3))])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_cloud_masks_drop_their_classes_or_bits(tmp_path: Path, kind: str, drop: tuple[int, ...], dtype: str) -> None:
    classes = np.random.default_rng(1).integers(0, 12, (100, 100)).astype(dtype)
    path = write_raster(tmp_path / "a.tif", smooth(200, 200))
    mask = write_raster(tmp_path / "mask.tif", classes, resolution=20, nodata=0)
    item = item_of(0, {"red": BandAsset("red", str(path))}, mask=CloudMask(BandAsset("mask", str(mask)), kind, drop))
    grid = grid_over(path, "EPSG:32633", 10.0, margin=0)
    _, valid, _ = read_grid(source_of(tmp_path, table_of(item), grid, pipeline(["red"])))
    dropped = np.isin(classes, drop) if kind == "classes" else (classes & 0b1010) != 0
    assert np.array_equal(valid, np.kron(~dropped & (classes != 0), np.ones((2, 2), bool)))


def test_a_vrt_named_tif_is_refused_even_after_a_warped_vrt_existed(tmp_path: Path) -> None:
    good = write_raster(tmp_path / "good.tif", smooth(64, 64))
    with rasterio.open(good) as file, WarpedVRT(file, crs="EPSG:4326") as warped:
        warped.read(1)
    rasterio.shutil.copy(good, tmp_path / "evil.tif", driver="VRT")
    error = refused(tmp_path / "evil.tif")
    assert error.code == "asset-corrupt"
    assert "not a readable GeoTIFF" in str(error)


def test_a_raster_of_four_terabytes_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "width": 10**6, "height": 10**6, "count": 1, "dtype": "float32", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", tiled=True, blockxsize=4096, blockysize=4096, SPARSE_OK=True, BIGTIFF="YES", **profile):
        pass
    error = refused(path)
    assert error.code == "asset-too-big"
    assert "4.0 TB" in str(error)


def test_blocks_that_unpack_to_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "blocks.tif"
    profile = {"driver": "GTiff", "width": 8192, "height": 8192, "count": 1, "dtype": "float32", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", tiled=True, blockxsize=8192, blockysize=8192, SPARSE_OK=True, compress="zstd", **profile):
        pass
    error = refused(path)
    assert error.code == "asset-too-big"
    assert "blocks of 268 MB" in str(error)


def test_files_with_too_many_bands_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "many.tif", np.ones((70, 16, 16), np.uint8))
    assert refused(path).code == "asset-too-big"


def test_a_band_that_is_not_there_is_a_broken_contract(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(64, 64))
    error = refused(path, index=2)
    assert error.code == "asset-contract"
    assert "has 1 bands, band 2 was asked for" in str(error)
    assert 'band "red" of item test/item0' in str(error)


def test_complex_numbers_are_a_broken_contract(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((64, 64), np.complex64))
    assert refused(path).code == "asset-contract"


def test_a_file_without_a_grid_is_a_broken_contract(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(path, "w", driver="GTiff", width=32, height=32, count=1, dtype="uint8") as file:
        file.write(np.ones((1, 32, 32), np.uint8))
    assert "no coordinate reference system" in str(refused(path))


def test_one_band_of_whole_and_of_real_numbers_is_a_broken_contract(tmp_path: Path) -> None:
    a = write_raster(tmp_path / "a.tif", smooth(64, 64), nodata=0)
    b = write_raster(tmp_path / "b.tif", smooth(64, 64).astype("float32") / 10000)
    items = [item_of(n, {"red": BandAsset("red", str(path))}) for n, path in enumerate((a, b))]
    source = source_of(tmp_path, table_of(*items), grid_over(a, "EPSG:32633", 10.0), pipeline(["red"], composite="median"))
    with pytest.raises(AssetError, match="holds float32 numbers, but .* holds uint16") as caught:
        read_grid(source)
    assert caught.value.code == "asset-contract"


def test_a_truncated_file_is_corrupt_and_never_nodata(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    error = refused(path)
    assert error.code == "asset-corrupt"
    assert str(tmp_path) not in error.why


def test_flipped_bits_in_packed_pixels_are_corrupt(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512))
    data = bytearray(path.read_bytes())
    for position in range(len(data) // 2, len(data) // 2 + 20):
        data[position] ^= 0xFF
    path.write_bytes(data)
    assert refused(path).code == "asset-corrupt"


def test_a_text_file_is_corrupt_and_a_missing_one_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("not pixels")
    assert refused(tmp_path / "a.tif").code == "asset-corrupt"
    assert refused(tmp_path / "missing.tif").code == "asset-not-found"


def test_a_file_with_directories_in_a_circle_ends(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512), overviews=(2,))
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * count, first)
    path.write_bytes(data)
    grid = grid_over(tmp_path / "a.tif", "EPSG:32633", 20.0, margin=0)
    pixels, _, _ = read_grid(source_over(path, grid=grid))
    assert np.isfinite(pixels).all()


def test_files_outside_the_catalogs_folder_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = write_raster(tmp_path / "a.tif", smooth(64, 64))
    source = source_of(
        inside, table_of(item_of(0, {"red": BandAsset("red", str(path))})), grid_over(path, "EPSG:32633", 10.0), pipeline(["red"])
    )
    with pytest.raises(PolicyError):
        read_grid(source)


def test_a_damaged_file_that_is_repaired_is_read_again(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(512, 512))
    good = path.read_bytes()
    source = source_over(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(AssetError):
        read_grid(source)
    path.write_bytes(good)
    pixels, _, _ = read_grid(source)
    assert np.array_equal(pixels[0, 3:-3, 3:-3], smooth(512, 512).astype(np.float32))


def test_open_files_of_a_thread_are_bounded(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", smooth(16, 16, seed=n)) for n in range(MAX_OPEN_PER_THREAD + 5)]
    table = table_of(*(item_of(n, {"red": BandAsset("red", str(path))}) for n, path in enumerate(paths)))
    read_grid(source_of(tmp_path, table, grid_over(paths[0], "EPSG:32633", 10.0), pipeline(["red"], composite="median")))
    assert len(opened_files()) <= MAX_OPEN_PER_THREAD


def test_threads_read_at_once_what_one_thread_reads(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(600, 600))
    source = source_over(path, grid=grid_over(path, "EPSG:32634", 10.0, chunk=150))
    chunks = list(source.grid.chunks(0))
    step = step_of(source.items)
    alone = [source.read_scene(chunk, step).pixels.tobytes() for chunk in chunks]
    found: dict[int, bytes] = {}

    def work(offset: int) -> None:
        for number in range(offset, len(chunks), 4):
            found[number] = source.read_scene(chunks[number], step).pixels.tobytes()

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(chunks))] == alone


def test_gdal_settings_are_in_force_while_a_file_is_open(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(64, 64))
    with rasterio.Env(**raster.GDAL_ENV) as env:
        assert env.options["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"
        assert not raster.open_raster(str(path), str(path)).closed


def test_plain_window_and_reader_agree_on_a_part_of_a_file(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(400, 400))
    whole = grid_over(path, "EPSG:32633", 10.0, margin=0)
    part = replace(whole, rows=replace(whole.rows, start=whole.rows.start + 31, stop=whole.rows.stop - 77))
    pixels, _, _ = read_grid(source_over(path, grid=part), chunk=90)
    assert np.array_equal(pixels[0], plain_window(path, part).astype(np.float32))


@pytest.mark.parametrize(("scale", "offset"), [(1e38, 0.0), (1.0, 3.5e38), (float("inf"), 0.0)])
def test_a_scale_that_makes_numbers_infinite_is_a_broken_contract(tmp_path: Path, scale: float, offset: float) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(64, 64))
    assert refused(path, scale=scale, offset=offset).code == "asset-contract"


def test_many_threads_stay_below_the_limit_of_open_files(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / f"{n}.tif", smooth(16, 16, seed=n)) for n in range(60)]
    table = table_of(*(item_of(n, {"red": BandAsset("red", str(path))}) for n, path in enumerate(paths)))
    source = source_of(tmp_path, table, grid_over(paths[0], "EPSG:32633", 10.0), pipeline(["red"], composite="median"))
    together = threading.Barrier(8)

    def read_all(_: int) -> int:
        together.wait()
        read_grid(source)
        together.wait()
        return len(opened_files())

    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 200, usual[1]))
    try:
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(read_all, range(8)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert sum(counts) < held + 200
