"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308).

An output of 4x4 needs an input of 6x6. Both and the kernel are transformed so that the convolution becomes 36 products of
matrices (tiles, in) x (in, out). The transforms follow from five points and infinity (Toom and Cook); these points were
chosen for the rounding error, which grows from 2e-7 of a direct convolution to 1.6e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import polynomial
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.models.arithmetic import linear

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
OUT, KERNEL, IN = 4, 3, 6
"""Sides of a tile of the output, of the kernel, of a tile of the input."""

BAND_TILES = 224
"""Tiles worked on at once, as far as whole rows of tiles allow."""


def convolve(maps: Sequence[Tensor], weight: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write the ReLU of a 3x3 convolution with zeros around, plus `shift`.

    Parameters
    ----------
    maps : float32 (h, w, channels), one or more; their channels in this order are the input.
    weight : float32 (out, in, 3, 3).
    shift : float32 (out,).
    out : float32 (h, w, out), written.
    """
    height, width, _ = maps[0].shape
    to_input, to_kernel, to_output = _transforms()
    kernels = (to_kernel @ weight.permute(2, 3, 0, 1).flatten(0, 1).flatten(1)).unflatten(1, weight.shape[:2])
    rows, cols = -(-height // OUT), -(-width // OUT)
    step = max(1, BAND_TILES // cols)
    for row in range(0, rows, step):
        count = min(step, rows - row)
        tiles = (to_input @ _tiles(maps, row, count, cols)).unflatten(1, (count * cols, -1))
        products = torch.stack([linear(tile, kernel) for tile, kernel in zip(tiles, kernels, strict=True)])
        made = (to_output @ products.flatten(1)).reshape(OUT, OUT, count, cols, -1)
        made = made.permute(2, 0, 3, 1, 4).reshape(count * OUT, cols * OUT, -1)
        first, end = row * OUT, min((row + count) * OUT, height)
        torch.add(made[: end - first, :width], shift, out=out[first:end]).relu_()


def _tiles(maps: Sequence[Tensor], row: int, count: int, cols: int) -> Tensor:
    """Overlapping 6x6 tiles of `count` rows of tiles, (36, count * cols * in)."""
    height, width, _ = maps[0].shape
    channels = sum(x.shape[2] for x in maps)
    band = maps[0].new_zeros(count * OUT + 2, cols * OUT + 2, channels)
    top = row * OUT - 1
    first, end = max(0, top), min(height, top + len(band))
    inside = band[first - top : end - top, 1 : width + 1]
    torch.cat([x[first:end] for x in maps], 2, out=inside)
    across, along, _ = band.stride()
    shape = (IN, IN, count, cols, channels)
    return band.as_strided(shape, (across, along, across * OUT, along * OUT, 1)).reshape(IN * IN, -1)


@lru_cache(maxsize=1)
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices for input (36, 36), kernel (36, 9) and output (16, 36), each on both axes at once."""
    to_input, to_kernel, to_output = np.zeros((IN, IN)), np.zeros((IN, KERNEL)), np.zeros((OUT, IN))
    for number, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        to_input[number, : IN - 1] = polynomial.polyfromroots(others)
        to_kernel[number] = point ** np.arange(KERNEL) / np.prod([point - other for other in others])
        to_output[:, number] = point ** np.arange(OUT)
    to_input[-1] = polynomial.polyfromroots(POINTS)
    to_kernel[-1, -1] = to_output[-1, -1] = 1
    return _both_axes(to_input), _both_axes(to_kernel), _both_axes(to_output)


def _both_axes(matrix: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.kron(matrix, matrix).astype(np.float32))
