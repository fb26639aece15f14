"""Single images: what people and cameras make is read as it looks, and hostile files are refused before they are decoded."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps
from rasterio.transform import from_origin

from eo_batch.core.errors import AssetError, ConfigError, EoBatchError
from eo_batch.sources.picture import picture_of, read_picture


def _photo(height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 4, (height, width, 3))
    return np.clip(np.cumsum(noise, axis=1) + 128, 0, 255).astype(np.uint8)


def _raster(path: Path, bands: np.ndarray, **options: object) -> Path:
    profile = {"driver": "GTiff", "count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    georeference = {"crs": "EPSG:32631", "transform": from_origin(480000, 4700000, 10, 10)}
    with rasterio.open(path, "w", **{**profile, **georeference, **options}) as raster:
        raster.write(bands)
    return path


def _refusal(kind: type[EoBatchError], path: Path, **options: object) -> EoBatchError:
    with pytest.raises(kind) as caught:
        read_picture(path, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif", "a ?b#c!d zip+x:y.png"])
def test_every_format_gives_the_pixels_that_pillow_reads(tmp_path: Path, name: str) -> None:
    Image.fromarray(_photo()).save(tmp_path / name)
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    picture = read_picture(tmp_path / name)
    np.testing.assert_array_equal(picture.rgb(), expected)
    assert picture.bands == ("red", "green", "blue")
    assert picture.crs is None
    assert picture.notes == ()
    assert picture.valid.all()


def test_pixels_are_shares_of_white(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "photo.png")
    picture = read_picture(tmp_path / "photo.png")
    assert picture.pixels.dtype == np.float32
    np.testing.assert_array_equal(picture.pixels, np.moveaxis(_photo(), -1, 0).astype(np.float32) / np.float32(255))


def test_an_array_and_a_file_of_it_are_the_same_picture(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "photo.png")
    np.testing.assert_array_equal(picture_of(_photo()).pixels, read_picture(tmp_path / "photo.png").pixels)


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_orientation_of_a_camera_is_applied_as_pillow_does_it(tmp_path: Path, turn: int) -> None:
    exif = Image.Exif()
    exif[274] = turn
    Image.fromarray(_photo()).save(tmp_path / "photo.jpg", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg"))
    picture = read_picture(tmp_path / "photo.jpg")
    np.testing.assert_array_equal(picture.rgb(), np.asarray(upright))
    assert picture.valid.shape == picture.rgb().shape[:2]
    assert any("upright" in note for note in picture.notes) == (turn > 1)


def test_grey_is_repeated_and_said(tmp_path: Path) -> None:
    for name in ("grey.png", "grey.jpg"):
        Image.fromarray(_photo()[..., 0]).save(tmp_path / name)
        picture = read_picture(tmp_path / name)
        expected = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        np.testing.assert_array_equal(picture.rgb(), expected)
        assert any("grey" in note for note in picture.notes)


def test_black_and_white_of_one_bit_fills_the_range(tmp_path: Path) -> None:
    for name in ("bits.png", "bits.tif"):
        Image.fromarray(_photo()[..., 0] > 128).save(tmp_path / name)
        assert set(np.unique(read_picture(tmp_path / name).rgb()).tolist()) == {0, 255}


def test_palettes_become_colours(tmp_path: Path) -> None:
    Image.fromarray(_photo()).convert("P", colors=64).save(tmp_path / "palette.png")
    picture = read_picture(tmp_path / "palette.png")
    np.testing.assert_array_equal(picture.rgb(), np.asarray(Image.open(tmp_path / "palette.png").convert("RGB")))
    assert any("palette" in note for note in picture.notes)


def test_transparent_pixels_are_not_observed(tmp_path: Path) -> None:
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:10] = 0
    alpha[10:20] = 90
    Image.fromarray(np.dstack([_photo(), alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([_photo()[..., 0], alpha]), "LA").save(tmp_path / "la.png")
    for name in ("rgba.png", "la.png"):
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.valid, alpha > 0)
        assert any("not observed" in note for note in picture.notes)


def test_a_transparent_colour_of_a_palette_or_a_picture_is_not_observed(tmp_path: Path) -> None:
    palette = Image.fromarray(_photo()).convert("P", colors=16)
    palette.save(tmp_path / "palette.png", transparency=3)
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png").valid, np.asarray(palette) != 3)
    colour = tuple(_photo()[5, 5].tolist())
    Image.fromarray(_photo()).save(tmp_path / "colour.png", transparency=colour)
    np.testing.assert_array_equal(read_picture(tmp_path / "colour.png").valid, (_photo() != colour).any(axis=-1))


def test_a_fourth_band_that_is_no_transparency_is_left_out_and_said(tmp_path: Path) -> None:
    bands = np.concatenate([np.moveaxis(_photo(), -1, 0), _photo()[None, ..., 0]])
    called_alpha = _raster(tmp_path / "nir.tif", bands, photometric="RGB", alpha="yes")
    picture = read_picture(called_alpha)
    assert picture.valid.all()
    assert picture.bands == ("red", "green", "blue")
    assert any("left out" in note for note in picture.notes)
    named = read_picture(called_alpha, bands=["red", "green", "blue", "nir"])
    assert named.bands == ("red", "green", "blue", "nir")
    np.testing.assert_array_equal(named.pixels[3], _photo()[..., 0].astype(np.float32) / np.float32(255))


def test_transparency_of_a_geotiff_is_used_where_it_is_all_or_nothing(tmp_path: Path) -> None:
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[:, :20] = 0
    bands = np.concatenate([np.moveaxis(_photo(), -1, 0), alpha[None]])
    picture = read_picture(_raster(tmp_path / "cut.tif", bands, photometric="RGB", alpha="yes"))
    np.testing.assert_array_equal(picture.valid, alpha > 0)


def test_nodata_of_a_picture_needs_all_colours_and_of_measurements_any_band(tmp_path: Path) -> None:
    bands = np.full((3, 4, 5), 100, np.uint8)
    bands[:, 0, 0] = 0
    bands[0, 1, 1] = 0
    eight = read_picture(_raster(tmp_path / "eight.tif", bands, nodata=0))
    assert not eight.valid[0, 0]
    assert eight.valid[1, 1]
    sixteen = read_picture(_raster(tmp_path / "sixteen.tif", bands.astype(np.uint16), nodata=0), low=0, high=200)
    assert not sixteen.valid[0, 0]
    assert not sixteen.valid[1, 1]


def test_floats_are_finite_where_the_file_is_not(tmp_path: Path) -> None:
    bands = np.full((3, 4, 5), 0.3, np.float32)
    bands[1, 2, 3], bands[0, 0, 0], bands[2, 1, 1] = np.nan, np.inf, 1e30
    picture = read_picture(_raster(tmp_path / "float.tif", bands), low=0, high=1)
    assert np.isfinite(picture.pixels).all()
    assert not picture.valid[2, 3]
    assert not picture.valid[0, 0]
    assert picture.pixels[2, 1, 1] == 1
    assert picture.pixels[0, 3, 3] == np.float32(0.3)


def test_a_stretch_maps_low_to_black_and_high_to_white(tmp_path: Path) -> None:
    bands = np.array([100, 200, 300, 400, 500], np.uint16).repeat(3).reshape(5, 3).T[:, None]
    picture = read_picture(_raster(tmp_path / "s.tif", bands), low=200, high=400)
    np.testing.assert_allclose(picture.pixels[0, 0], [0, 0, 0.5, 1, 1])


def test_values_of_more_than_eight_bits_need_a_stretch_and_the_error_suggests_one(tmp_path: Path) -> None:
    bands = np.linspace(1000, 3000, 3 * 40 * 50).reshape(3, 40, 50).astype(np.uint16)
    error = _refusal(ConfigError, _raster(tmp_path / "s.tif", bands))
    assert "--low" in error.fix
    low, high = map(float, re.search(r"lies in ([\d.]+?)\.\.([\d.]+)\.", error.fix).groups())
    assert (low, high) == (pytest.approx(1040, abs=2), pytest.approx(2960, abs=2))
    grey = tmp_path / "grey.png"
    Image.fromarray(bands[0].astype(np.uint16)).save(grey)
    assert "uint16" in _refusal(ConfigError, grey).what


def test_the_suggested_stretch_looks_at_what_was_observed(tmp_path: Path) -> None:
    bands = np.full((3, 40, 50), 65535, np.uint16)
    bands[:, :20] = 700
    assert "700..700" in _refusal(ConfigError, _raster(tmp_path / "s.tif", bands, nodata=65535)).fix


def test_a_scale_in_the_file_is_not_applied_and_said(tmp_path: Path) -> None:
    path = _raster(tmp_path / "s.tif", np.full((3, 4, 5), 1000, np.uint16))
    with rasterio.open(path, "r+") as raster:
        raster.scales, raster.offsets = (0.0001,) * 3, (-0.1,) * 3
    picture = read_picture(path, low=0, high=2000)
    assert (picture.pixels == 0.5).all()
    assert any("not applied" in note for note in picture.notes)


def test_a_stretch_that_is_none_is_refused(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "photo.png")
    for low, high in ((1, None), (None, 1), (5, 5), (6, 5), (0, float("nan")), (0, float("inf"))):
        assert _refusal(ConfigError, tmp_path / "photo.png", low=low, high=high).code == "config-invalid"


def test_names_that_do_not_fit_the_bands_are_refused(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "photo.png")
    for names in (["red"], ["red", "red", "blue"], ["-", "-", "-"], ["red", "", "blue"], ["red", "alpha", "alpha"]):
        assert _refusal(ConfigError, tmp_path / "photo.png", bands=names).code == "config-invalid"


def test_many_bands_without_names_are_refused_and_with_names_read(tmp_path: Path) -> None:
    path = _raster(tmp_path / "six.tif", np.arange(6 * 20, dtype=np.uint8).reshape(6, 4, 5))
    assert "--bands" in _refusal(ConfigError, path).fix
    picture = read_picture(path, bands=["blue", "-", "red", "green", "-", "-"])
    assert picture.bands == ("blue", "red", "green")
    np.testing.assert_array_equal(picture.rgb()[0, 0], [40, 60, 0])


def test_a_georeferenced_image_keeps_its_place(tmp_path: Path) -> None:
    picture = read_picture(_raster(tmp_path / "g.tif", np.moveaxis(_photo(), -1, 0)))
    assert picture.crs is not None
    assert rasterio.crs.CRS.from_wkt(picture.crs).to_epsg() == 32631
    assert picture.transform == from_origin(480000, 4700000, 10, 10)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.fromarray(np.full((1, 1, 3), 7, np.uint8)).save(tmp_path / "dot.png")
    assert read_picture(tmp_path / "dot.png").rgb().tolist() == [[[7, 7, 7]]]


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(600_001))) + part(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    sparse = {"width": 300_000, "height": 300_000, "count": 3, "dtype": "uint8", "SPARSE_OK": True, "tiled": True}
    with rasterio.open(tmp_path / "bomb.tif", "w", driver="GTiff", BIGTIFF="YES", transform=from_origin(0, 0, 9, 9), **sparse):
        pass
    Image.fromarray(_photo()).save(tmp_path / "bomb.jpg")
    jpeg = (tmp_path / "bomb.jpg").read_bytes()
    frame = jpeg.index(b"\xff\xc0") + 5
    (tmp_path / "bomb.jpg").write_bytes(jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :])
    for name in ("bomb.png", "bomb.tif", "bomb.jpg"):
        error = _refusal(AssetError, tmp_path / name)
        assert error.code == "asset-too-big"
        assert "--max-pixels" in error.fix


def test_a_bomb_of_many_wide_bands_is_refused_by_its_declared_bytes(tmp_path: Path) -> None:
    wide = {"width": 2000, "height": 2000, "count": 8, "dtype": "float64", "SPARSE_OK": True, "tiled": True}
    with rasterio.open(tmp_path / "wide.tif", "w", driver="GTiff", transform=from_origin(0, 0, 9, 9), **wide):
        pass
    names = [f"b{number}" for number in range(8)]
    error = _refusal(AssetError, tmp_path / "wide.tif", bands=names, low=0, high=1, max_pixels=7_999_999)
    assert error.code == "asset-too-big"
    assert "8,000,000 pixels of 32 bytes" in str(error)
    read_picture(tmp_path / "wide.tif", bands=["b0", *"-------"], low=0, high=1, max_pixels=4_000_000)


@pytest.mark.parametrize("address", ["https://example.org/a.png", "/vsicurl/https://example.org/a.png", "s3://bucket/a.tif"])
def test_an_address_is_no_file(address: str) -> None:
    error = _refusal(AssetError, address)
    assert error.code == "asset-not-found"
    assert "download it first" in error.fix


def test_the_limit_can_be_set(tmp_path: Path) -> None:
    Image.fromarray(_photo()).save(tmp_path / "photo.png")
    assert _refusal(AssetError, tmp_path / "photo.png", max_pixels=48 * 64 - 1).code == "asset-too-big"
    read_picture(tmp_path / "photo.png", max_pixels=48 * 64)


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    Image.fromarray(_photo(200, 300)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.01, 0.3, 0.7, 0.97):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        assert _refusal(AssetError, tmp_path / name).code == "asset-corrupt"


def test_flipped_bytes_never_end_in_an_unexpected_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for name in ("photo.png", "photo.jpg", "photo.tif"):
        Image.fromarray(_photo()).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] ^= int(rng.integers(1, 256))
            (tmp_path / name).write_bytes(data)
            try:
                read_picture(tmp_path / name, max_pixels=1_000_000)
            except EoBatchError as error:
                assert error.fix or error.what  # noqa: PT017


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "map.vrt").write_text('<VRTDataset rasterXSize="9" rasterYSize="9"></VRTDataset>')
    for name in ("text.png", "empty.jpg", "map.vrt"):
        assert _refusal(AssetError, tmp_path / name).code == "asset-corrupt"
    for path in (tmp_path / "none.png", tmp_path, Path("/vsicurl/http://127.0.0.1:9/a.png")):
        assert _refusal(AssetError, path).code == "asset-not-found"


def test_arrays_of_another_kind_are_refused() -> None:
    for array in (np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), np.zeros(5, np.uint8)):
        with pytest.raises(ConfigError, match="uint8"):
            picture_of(array)


def test_grey_arrays_are_repeated() -> None:
    grey = _photo()[..., 0]
    np.testing.assert_array_equal(picture_of(grey).rgb(), np.stack([grey] * 3, axis=-1))
