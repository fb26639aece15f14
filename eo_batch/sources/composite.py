"""Several scenes of one time step become one: the first valid pixel, or the median.

A composite decides every pixel by itself, from the items in the order of the step. So it can stop early, or go strip by
strip, without changing anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.sources.resample import compiled

NOBODY = -1
EVERYWHERE = (slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class Layer:
    """One item on pixels of a chunk.

    Parameters
    ----------
    item : position in the item table.
    pixels : float32 (band, y, x).
    valid : bool (y, x): every band observed, and not dropped by the cloud mask.
    at : rows and columns of the chunk that are covered; elsewhere nothing is valid. An item may come in several boxes.
    """

    item: int
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    at: tuple[slice, slice] = EVERYWHERE


@dataclass(frozen=True, eq=False)
class Composite:
    """One scene made of layers.

    Parameters
    ----------
    pixels : float32 (band, y, x); undefined where not `valid`.
    valid : bool (y, x).
    items : positions in the item table of the layers that were used.
    gave : bool (item, y, x): which of them gave to the pixel.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    items: tuple[int, ...]
    gave: NDArray[np.bool_]


def valid_of(pixels: NDArray[np.float32], keep: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
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


def first_valid(layers: Callable[[NDArray[np.bool_]], Iterable[Layer]], *, bands: int, shape: tuple[int, int]) -> Composite:
    """Per pixel all bands of the first layer that is valid there. Takes no further layer once every pixel is.

    Parameters
    ----------
    layers : the layers in order, made one by one. Is given an array bool (y, x) that always says which pixels are still
        missing: a layer need not be right anywhere else.
    """
    pixels: NDArray[np.float32] | None = None
    missing = np.ones(shape, bool)
    owner = np.full(shape, NOBODY, np.int32)
    left = missing.size
    items: dict[int, None] = {}
    for layer in layers(missing):
        items[layer.item] = None
        if pixels is None and layer.valid.shape == shape:
            pixels = layer.pixels
            owner[layer.valid] = layer.item
            np.logical_not(layer.valid, out=missing)
            left = int(np.count_nonzero(missing))
        else:
            pixels = np.zeros((bands, *shape), np.float32) if pixels is None else pixels
            into = pixels[:, *layer.at], owner[layer.at], missing[layer.at]
            left -= _fill(*into, layer.pixels, layer.valid, np.int32(layer.item))
        if left == 0:
            break
    if pixels is None:
        pixels = np.full((bands, *shape), np.nan, np.float32)
    gave = np.stack([owner == item for item in items]) if items else np.zeros((0, *shape), bool)
    return Composite(pixels, ~missing, tuple(items), gave)


def median(strips: Iterable[tuple[slice, Sequence[Layer]]], *, bands: int, shape: tuple[int, int]) -> Composite:
    """Per pixel and band the median of the valid layers (of an even number: the mean of the middle two).

    Parameters
    ----------
    strips : rows of the chunk, and all layers of the step on these rows.
    """
    pixels = np.full((bands, *shape), np.nan, np.float32)
    gave: dict[int, NDArray[np.bool_]] = {}
    for rows, layers in strips:
        place = {item: number for number, item in enumerate(dict.fromkeys(layer.item for layer in layers))}
        for item in place:
            gave.setdefault(item, np.zeros(shape, bool))
        for layer in layers:
            gave[layer.item][rows][layer.at] = layer.valid
        if not place:
            continue
        stack = np.stack([gave[item][rows] for item in place])
        values = np.empty(stack.shape, np.float32)
        for band in range(bands):
            for layer in layers:
                values[place[layer.item]][layer.at] = layer.pixels[band]
            _median(values, stack, pixels[band, rows])
    maps = np.stack(list(gave.values())) if gave else np.zeros((0, *shape), bool)
    valid = np.zeros(shape, bool)
    np.logical_or.reduce(maps, axis=0, out=valid)
    return Composite(pixels, valid, tuple(gave), maps)


@compiled()
def _all_observed(pixels, valid):  # type: ignore[no-untyped-def]
    bands, height, width = pixels.shape
    for y in range(height):
        for x in range(width):
            valid[y, x] = pixels[0, y, x] == pixels[0, y, x]
        for band in range(1, bands):
            for x in range(width):
                valid[y, x] &= pixels[band, y, x] == pixels[band, y, x]


@compiled()
def _fill(pixels, owner, missing, more, valid, item):  # type: ignore[no-untyped-def]
    given = 0
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            if missing[y, x] and valid[y, x]:
                missing[y, x] = False
                owner[y, x] = item
                given += 1
                for band in range(pixels.shape[0]):
                    pixels[band, y, x] = more[band, y, x]
    return given


@compiled()
def _median(values, valid, out):  # type: ignore[no-untyped-def]
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
