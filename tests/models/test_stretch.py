"""Physical values to the picture that a network sees: against plain arithmetic and a real true-colour file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.options import NetworkOptions, read_options
from eo_batch.models.stretch import Stretch


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
        read_options(NetworkOptions, options, segmenter="any")


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
