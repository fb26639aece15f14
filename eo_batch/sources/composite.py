"""Several scenes of one time step become one: the first valid pixel, or the median.

A composite decides every pixel by itself, from the items in the order of the step. So it can stop early, or go strip by
strip, without changing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.sources.resample import compiled

NOBODY = -1


@dataclass(frozen=True, eq=False)
class Layer:
    """One item on the pixels of a chunk.

    Parameters
    ----------
    item : position in the item table.
    pixels : float32 (band, y, x).
    valid : bool (y, x): every band observed, and not dropped by the cloud mask.
    """

    item: int
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Composite:
    """One scene made of layers.

    Parameters
    ----------
    pixels : float32 (band, y, x); undefined where not `valid`.
    valid : bool (y, x).
    items : positions in the item table of the layers that gave a pixel, in the order of the step.
    gave : bool (item, y, x): which of them gave to the pixel.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    items: tuple[int, ...]
    gave: NDArray[np.bool_]


def valid_of(pixels: NDArray[np.float32], keep: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    """Pixels at which all bands are observed and the cloud mask, if there is one, says keep (1).

    Parameters
    ----------
    pixels : float32 (band, y, x), NaN where not observed.
    keep : float32 (y, x) of 1, 0 and NaN, or None.
    """
    valid = np.empty(pixels.shape[1:], np.bool_)
    _all_observed(pixels, valid)
    if keep is not None:
        valid &= keep == 1
    return valid


def first_valid(layers: Iterable[Layer], *, bands: int, shape: tuple[int, int]) -> Composite:
    """Per pixel all bands of the first layer that is valid there. Takes no further layer once every pixel is."""
    pixels: NDArray[np.float32] | None = None
    owner = np.full(shape, NOBODY, np.int32)
    for layer in layers:
        if pixels is None:
            pixels = layer.pixels
            owner[layer.valid] = layer.item
            missing = int(layer.valid.size - np.count_nonzero(layer.valid))
        else:
            missing = _fill(pixels, owner, layer.pixels, layer.valid, np.int32(layer.item))
        if missing == 0:
            break
    if pixels is None:
        pixels = np.full((bands, *shape), np.nan, np.float32)
    givers = _givers(owner)
    return Composite(pixels, owner != NOBODY, givers, np.stack([owner == item for item in givers]) if givers else _nobody(shape))


def median(strips: Iterable[tuple[slice, Sequence[Layer]]], *, bands: int, shape: tuple[int, int]) -> Composite:
    """Per pixel and band the median of the valid layers (of an even number: the mean of the middle two).

    Parameters
    ----------
    strips : rows of the chunk, and all layers of the step on these rows.
    """
    pixels = np.full((bands, *shape), np.nan, np.float32)
    valid = np.zeros(shape, bool)
    gave: dict[int, NDArray[np.bool_]] = {}
    order: list[int] = []
    for rows, layers in strips:
        for layer in layers:
            if layer.item not in gave and layer.valid.any():
                gave[layer.item] = np.zeros(shape, bool)
            if layer.item in gave:
                gave[layer.item][rows] = layer.valid
            if layer.item not in order:
                order.append(layer.item)
        if not layers:
            continue
        stack = np.stack([layer.valid for layer in layers])
        valid[rows] = stack.any(axis=0)
        for band in range(bands):
            values = np.stack([layer.pixels[band] for layer in layers])
            _median(values, stack, pixels[band, rows])
    givers = tuple(item for item in order if item in gave)
    return Composite(pixels, valid, givers, np.stack([gave[item] for item in givers]) if givers else _nobody(shape))


def _givers(owner: NDArray[np.int32]) -> tuple[int, ...]:
    return tuple(int(item) for item in np.unique(owner) if item != NOBODY)


def _nobody(shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.zeros((0, *shape), bool)


@compiled()
def _all_observed(pixels, valid):
    bands, height, width = pixels.shape
    for y in range(height):
        for x in range(width):
            valid[y, x] = pixels[0, y, x] == pixels[0, y, x]
        for band in range(1, bands):
            for x in range(width):
                valid[y, x] &= pixels[band, y, x] == pixels[band, y, x]


@compiled()
def _fill(pixels, owner, more, valid, item):
    missing = 0
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            if owner[y, x] == -1:
                if valid[y, x]:
                    owner[y, x] = item
                    for band in range(pixels.shape[0]):
                        pixels[band, y, x] = more[band, y, x]
                else:
                    missing += 1
    return missing


@compiled()
def _median(values, valid, out):
    count, height, width = values.shape
    kept = np.empty(count, np.float32)
    for y in range(height):
        for x in range(width):
            n = 0
            for k in range(count):
                if valid[k, y, x]:
                    value = values[k, y, x]
                    i = n
                    while i > 0 and kept[i - 1] > value:
                        kept[i] = kept[i - 1]
                        i -= 1
                    kept[i] = value
                    n += 1
            if n % 2 == 1:
                out[y, x] = kept[n // 2]
            elif n > 0:
                out[y, x] = np.float32((np.float64(kept[n // 2 - 1]) + np.float64(kept[n // 2])) / 2.0)
