"""Pictures on their way in and out of the network, with the arithmetic it was trained with.

The network was trained on pictures that OpenCV resized: 8-bit numbers, weights of 11 bits, so the same is done here. All else is
bilinear between pixel centres, without smoothing before a picture shrinks.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WEIGHT_BITS = 11
"""Bits of a weight in OpenCV's resize of 8-bit pictures (INTER_RESIZE_COEF_BITS)."""

SAM_MEAN, SAM_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green, blue in 0 to 1 (ImageNet's)."""


def resize_8bit(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """A picture (height, width, channels) of `picture` (h, w, channels), as OpenCV's INTER_LINEAR makes it, to the bit."""
    rows, cols = picture.shape[:2]
    if (rows, cols) == (height, width):
        return picture.copy()
    left, right, weight = _neighbours(width, cols, is_held=True)
    one = np.int32(1 << WEIGHT_BITS)
    weight = weight[:, None]
    across = np.empty((rows, width, picture.shape[2]), np.int32)
    for row in range(rows):  # a row at a time stays in the cache
        line = picture[row].astype(np.int32)
        across[row] = (line[left] * (one - weight) + line[right] * weight) >> 4
    above, below, weight = _neighbours(height, rows, is_held=False)
    made = np.empty((height, width, picture.shape[2]), np.uint8)
    for row in range(height):
        low, high = (across[above[row]] * (one - weight[row])) >> 16, (across[below[row]] * weight[row]) >> 16
        made[row] = (low + high + 2) >> 2
    return made


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(images - mean) / std per channel, of images (B, 3, H, W) in 0 to 1."""
    middle, spread = (images.new_tensor(numbers).reshape(-1, 1, 1) for numbers in (mean, std))
    return (images - middle) / spread


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, C, height, width) of maps (B, C, h, w), bilinear."""
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def enlarge(logits: Tensor, image_px: int, height: int, width: int) -> Tensor:
    """Logits (B, P, height, width) of answers (B, P, h, w): resized to the side of the network's input, then to the picture's."""
    return resize(resize(logits, image_px, image_px), height, width)


def _neighbours(made: int, given: int, *, is_held: bool) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """The two pixels beside each new one, and the weight of the second in units of 2**-11.

    OpenCV computes places in float32. Beyond the border it holds the weight at 0 along rows (`is_held`); along columns the weight
    stays and both pixels are the border's.
    """
    scale = given / made
    place = ((np.arange(made) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.intp)
    part = place - first.astype(np.float32)
    if is_held:
        part = np.where((first < 0) | (first >= given - 1), np.float32(0), part)
    weight = np.rint(part * np.float32(1 << WEIGHT_BITS)).astype(np.int32)
    return first.clip(0, given - 1), (first + 1).clip(0, given - 1), weight
