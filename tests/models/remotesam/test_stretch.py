"""Physical values to the picture that the network sees: against plain arithmetic, the original, and a real true-colour file."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.remotesam.stretch import Stretch, nearest_positions, prepare, stretch_of


@pytest.mark.parametrize(("low", "high", "gamma"), [(0.0, 0.25, 1.0), (-0.05, 0.4, 2.2), (0.02, 0.2, 0.7)])
def test_colours_are_those_of_plain_arithmetic(low: float, high: float, gamma: float) -> None:
    values = np.random.default_rng(0).uniform(-0.2, 0.6, (1, 3, 20, 17)).astype(np.float32)
    picture = Stretch(low, high, gamma).rgb(values)[0]
    for band in range(3):
        for y in range(20):
            for x in range(17):
                share = min(1.0, max(0.0, (float(values[0, band, y, x]) - low) / (high - low)))
                exact = 255 * math.pow(share, 1 / gamma)
                assert abs(int(picture[y, x, band]) - exact) <= 0.5 + 1e-3


def test_8_bit_numbers_stay_what_they_are() -> None:
    numbers = np.arange(256, dtype=np.float32)
    images = np.broadcast_to(numbers.reshape(1, 1, 16, 16), (1, 3, 16, 16))
    assert np.array_equal(Stretch(0, 255).rgb(images)[0, :, :, 1].ravel(), np.arange(256))


def test_a_pixel_does_not_depend_on_what_is_around_it() -> None:
    images = np.random.default_rng(1).uniform(0, 0.3, (2, 3, 8, 8)).astype(np.float32)
    whole = Stretch().rgb(images)
    assert np.array_equal(Stretch().rgb(images[1:, :, 3:5, 2:7]), whole[1:, 3:5, 2:7])


def test_other_units_are_refused_with_the_setting_that_fits() -> None:
    with pytest.raises(ModelError, match="stretch_high = 255") as caught:
        Stretch().rgb(np.full((1, 3, 8, 8), 90, np.float32))
    assert caught.value.code == "model-input"


def test_cloud_and_snow_are_not_other_units() -> None:
    assert Stretch().rgb(np.full((1, 3, 8, 8), 1.6, np.float32)).min() == 255


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"stretch_low": 0.3}, "high"),
        ({"stretch_high": "0.3"}, "high"),
        ({"stretch_high": float("nan")}, "high"),
        ({"stretch_low": True}, "low"),
        ({"stretch_gamma": 0.0}, "gamma"),
        ({"stretch_gamma": 100}, "gamma"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(options: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.options.stretch_{key}"):
        stretch_of(options)


def test_a_picture_of_another_size_is_resized_by_pillow() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    seen = prepare(picture, 64)
    resized = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR), np.float64)
    expected = (resized / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert (seen.shape, seen.dtype) == ((3, 64, 64), np.float32)
    np.testing.assert_allclose(seen, expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize(("length", "side"), [(512, 896), (896, 896), (1200, 896), (7, 3)])
def test_answers_come_back_by_the_pixel_corner(length: int, side: int) -> None:
    assert nearest_positions(length, side).tolist() == [math.floor(i * side / length) for i in range(length)]


@pytest.mark.shared
def test_pictures_are_those_of_the_original_preprocessing(shared: Path) -> None:
    golden = np.load(shared.parent / "golden" / "remotesam" / "prep.npz")
    names = json.loads(str(golden["names"]))
    assert len(names) == 4
    for number, (name, height, width) in enumerate(names):
        seen = prepare(golden_picture(name, height, width), 896)
        assert np.array_equal(seen[:, ::8, ::8], golden[f"s8_{number}"])
        assert np.array_equal(seen[:, 200:224, 600:624], golden[f"crop_{number}"])


@pytest.mark.shared
def test_answers_come_back_as_the_original_resizes_masks(shared: Path) -> None:
    folder = shared.parent / "golden" / "remotesam"
    for case in json.loads((folder / "tasks.json").read_text())["cases"]:
        golden = np.load(folder / f"{case['name']}.npz")
        rows, columns = nearest_positions(case["H"], 896), nearest_positions(case["W"], 896)
        for number, name in enumerate(case["classes"]):
            mask = golden_field(case["blobs"][name]) > 0
            expected = np.unpackbits(golden[f"mask_{number}"], axis=1)[:, : case["W"]].astype(bool)
            assert np.array_equal(mask[np.ix_(rows, columns)], expected)


@pytest.mark.shared
def test_the_default_gives_the_colours_of_a_real_true_colour_file(shared: Path) -> None:
    folder = shared / "scenes" / "s2-l2a-29unu-20221005"
    with rasterio.open(folder / "TCI_60m.jp2") as source:
        true_colour = source.read()
    numbers = np.stack([rasterio.open(folder / f"{band}_60m.tif").read(1) for band in ("B04", "B03", "B02")])
    observed = (numbers > 0).all(axis=0)
    reflectance = (numbers * 0.0001 - 0.1).astype(np.float32)
    ours = Stretch().rgb(reflectance[None])[0].transpose(2, 0, 1)
    difference = np.abs(ours.astype(int) - true_colour)[:, observed]
    assert difference.max() <= 1
    assert (ours[:, observed] < 255).mean() > 0.4


def golden_picture(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """A picture of the reference vectors, by the rule of their README."""
    x, y, band = np.arange(width)[None, :, None], np.arange(height)[:, None, None], np.arange(3)
    base = 127.5 + 70 * np.sin(2 * np.pi * ((band + 2) * x / width + (band + 1) * y / height))
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).integers(-40, 41, (height, width, 3))
    return np.clip(np.rint(base + noise), 0, 255).astype(np.uint8)


def golden_field(blobs: list[list[float]]) -> NDArray[np.float32]:
    """Foreground logits of the reference vectors' stand-in network, float32 (896, 896)."""
    y, x = np.mgrid[0:896, 0:896] + 0.5
    field = np.full((896, 896), -6.0)
    for cx, cy, rx, ry, phi, height in blobs:
        a = ((x - cx) * np.cos(phi) + (y - cy) * np.sin(phi)) / rx
        b = ((y - cy) * np.cos(phi) - (x - cx) * np.sin(phi)) / ry
        field = np.maximum(field, height * (1 - a * a - b * b))
    return field.astype(np.float32)
