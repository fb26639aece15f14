"""Pictures in and out, against arithmetic done otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from formula import waves
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from eo_batch.models.rsrefseg.pictures import enlarge, normalise, resize_8bit


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def in_real_numbers(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Bilinear between pixel centres, borders held."""
    rows, cols = picture.shape[:2]
    y = (np.arange(height) + 0.5) * rows / height - 0.5
    x = (np.arange(width) + 0.5) * cols / width - 0.5
    places = np.meshgrid(y, x, indexing="ij")
    return np.stack([map_coordinates(c.astype(float), places, order=1, mode="nearest") for c in np.moveaxis(picture, 2, 0)], -1)


@pytest.mark.parametrize("size", [(64, 64), (33, 90), (200, 17), (10, 10), (1, 1)])
@pytest.mark.parametrize("given", [(40, 50), (1, 7), (64, 3)])
def test_resized_pictures_are_within_a_level_of_real_numbers(given: tuple[int, int], size: tuple[int, int]) -> None:
    picture = noise(*given)
    made = resize_8bit(picture, *size)
    assert made.dtype == np.uint8
    assert made.shape == (*size, 3)
    assert np.abs(made - in_real_numbers(picture, *size)).max() < 1


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    picture = noise(20, 30)
    made = resize_8bit(picture, 20, 30)
    assert np.array_equal(made, picture)
    assert made is not picture


def test_half_the_size_is_the_mean_of_four() -> None:
    picture = noise(40, 60).astype(int)
    four = picture.reshape(20, 2, 30, 2, 3).sum((1, 3))
    assert np.array_equal(resize_8bit(picture.astype(np.uint8), 20, 30), (four + 2) // 4)


def test_one_colour_stays_one_colour() -> None:
    for level in (0, 1, 127, 254, 255):
        assert (resize_8bit(np.full((13, 9, 3), level, np.uint8), 31, 40) == level).all()


def test_channels_and_axes_are_resized_alike() -> None:
    picture = waves(30, 44, 6)
    made = resize_8bit(picture, 50, 61)
    assert np.array_equal(resize_8bit(picture[..., ::-1], 50, 61), made[..., ::-1])
    turned = resize_8bit(np.ascontiguousarray(picture.transpose(1, 0, 2)), 61, 50).transpose(1, 0, 2)
    assert np.abs(turned.astype(int) - made).max() <= 1


def test_answers_grow_in_two_steps() -> None:
    low = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1))
    first = torch.from_numpy(in_real_numbers(low[0].permute(1, 2, 0).numpy(), 64, 64)).permute(2, 0, 1)
    second = in_real_numbers(first.permute(1, 2, 0).numpy(), 40, 52)
    assert np.abs(enlarge(low, 64, 40, 52)[0].permute(1, 2, 0).numpy() - second).max() < 1e-5


def test_each_channel_has_its_mean_and_spread() -> None:
    made = normalise(torch.full((1, 3, 2, 2), 0.5), (0.5, 0.25, 0.0), (1.0, 0.5, 0.25))
    assert made[0, :, 0, 0].tolist() == [0.0, 0.5, 2.0]
