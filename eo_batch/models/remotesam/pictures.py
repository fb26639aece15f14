"""The picture as RemoteSAM's authors prepare it, and where a pixel's answer is found in theirs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1, with which the network was trained: those of ImageNet."""


def prepare(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    """What the network sees of a picture, float32 (3, side, side): resized without regard to its shape, then normalised.

    Resized as the network's authors do it: Pillow's bilinear filter on 8-bit colours, which averages when it shrinks.

    Parameters
    ----------
    picture : uint8 (h, w, 3), red, green, blue.
    """
    if picture.shape[:2] != (side_px, side_px):
        picture = np.asarray(Image.fromarray(picture).resize((side_px, side_px), Image.Resampling.BILINEAR))
    return np.stack([_NORMALISED[band][picture[..., band]] for band in range(3)])


def nearest_positions(length: int, side_px: int) -> NDArray[np.intp]:
    """For each of `length` pixels its place in an answer of `side_px`: floor(i * side / length).

    This is how the network's authors resize masks (OpenCV's INTER_NEAREST): by a pixel's corner, not by its centre.
    """
    return np.arange(length) * side_px // length


def _normalised() -> NDArray[np.float32]:
    """Value of each 8-bit number, float32 (band, 256): every step rounded to float32, as the authors compute it."""
    numbers = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, deviation = (np.array(values, np.float32)[:, None] for values in (MEAN, DEVIATION))
    return (numbers - mean) / deviation


_NORMALISED = _normalised()
