"""Composites against brute force, pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from eo_batch.sources.composite import Layer, first_valid, median, valid_of

SHAPE = (23, 31)


def layers_of(count: int, *, share: float = 0.5, seed: int = 4) -> list[Layer]:
    random = np.random.default_rng(seed)
    return [Layer(10 + n, random.normal(size=(3, *SHAPE)).astype("float32"), random.random(SHAPE) < share) for n in range(count)]


def copies(layers: list[Layer]) -> Iterator[Layer]:
    return (Layer(layer.item, layer.pixels.copy(), layer.valid.copy()) for layer in layers)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_first_takes_all_bands_from_the_first_valid_layer(count: int) -> None:
    layers = layers_of(count)
    found = first_valid(lambda missing: copies(layers), bands=3, shape=SHAPE)
    owner = {item: number for number, item in enumerate(found.items)}
    for y, x in np.ndindex(*SHAPE):
        first = next((layer for layer in layers if layer.valid[y, x]), None)
        assert found.valid[y, x] == (first is not None)
        if first is not None:
            assert np.array_equal(found.pixels[:, y, x], first.pixels[:, y, x])
            assert found.gave[:, y, x].nonzero()[0].tolist() == [owner[first.item]]


def test_first_asks_for_no_layer_that_cannot_change_anything() -> None:
    layers = layers_of(4)
    layers[1] = Layer(11, layers[1].pixels, np.ones(SHAPE, bool))
    asked = []

    def watched() -> Iterator[Layer]:
        for layer in copies(layers):
            asked.append(layer.item)
            yield layer

    early = first_valid(lambda missing: watched(), bands=3, shape=SHAPE)
    late = first_valid(lambda missing: copies(layers[:2]), bands=3, shape=SHAPE)
    assert asked == [10, 11]
    assert early.pixels.tobytes() == late.pixels.tobytes()


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("height", [1, 7, 23])
def test_median_is_numpys_over_the_valid_layers(count: int, height: int) -> None:
    layers = layers_of(count)
    strips = [
        (rows, [Layer(layer.item, layer.pixels[:, rows], layer.valid[rows]) for layer in layers])
        for rows in (slice(start, min(start + height, SHAPE[0])) for start in range(0, SHAPE[0], height))
    ]
    found = median(strips, bands=3, shape=SHAPE)
    valid = np.stack([layer.valid for layer in layers])
    values = np.where(valid[:, None], np.stack([layer.pixels for layer in layers]).astype(float), np.nan)
    assert np.array_equal(found.valid, valid.any(axis=0))
    want = np.nanmedian(values[:, :, found.valid], axis=0).astype(np.float32)
    assert np.array_equal(found.pixels[:, found.valid], want)
    assert np.array_equal(found.gave[np.argsort(found.items)], valid)


def test_a_pixel_is_valid_where_all_bands_are_observed_and_the_mask_keeps_it() -> None:
    random = np.random.default_rng(0)
    pixels = random.normal(size=(4, *SHAPE)).astype("float32")
    pixels[random.random(pixels.shape) < 0.1] = np.nan
    keep = random.choice(np.array([0, 1, np.nan], np.float32), SHAPE)
    observed = ~np.isnan(pixels).any(axis=0)
    assert np.array_equal(valid_of(pixels, None), observed)
    assert np.array_equal(valid_of(pixels, keep), observed & (keep == 1))
