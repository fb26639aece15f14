"""A segmenter for tests and benchmarks: no knowledge, but an answer that depends on the whole window, as a network's does.

Wherever windows, batches or chunks are put together wrongly, its map shows a seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest, sha256
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.segmenter import SegmenterInfo

ALGORITHM = "window-mean/1"
GAIN = 8.0
"""Logits per unit of difference between a pixel and its window's mean."""
RAMP = 2.0
"""Logits by which a window's answer rises from its first to its last row, and half as much along columns."""


@dataclass(frozen=True)
class WindowMean:
    """Logit = 8 x (smoothed band - mean of the window) + a ramp across the window + a shift made from the prompt's text.

    Parameters
    ----------
    bands : names of the bands, in the order of the band axis.
    band : position of the band that is looked at.
    cost : passes of a five-point smoothing over the window; about 0.3 ms each at 512 px, so that 500 passes cost as much
        as a small network.
    """

    bands: tuple[str, ...]
    band: int = 0
    cost: int = 0
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        info = SegmenterInfo(
            name="window-mean",
            algorithm=ALGORITHM,
            digest=digest([ALGORITHM, self.band, self.cost]),
            shares_image_features=True,
            pixel_bytes=12,
            prompt_pixel_bytes=0,
        )
        object.__setattr__(self, "info", info)

    def encode_prompts(self, prompts: PromptSet) -> NDArray[np.float32]:
        """Shift in logits of each prompt, float32 (prompt,), in -1..1 and made from the text alone."""
        return np.array([int(sha256(text.encode())[:4], 16) / 32768 - 1 for text in prompts.texts], np.float32)

    def encode_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits before the prompt's shift, float32 (n, h, w)."""
        _, _, h, w = images.shape
        rise = (np.arange(h, dtype=np.float32)[:, None] / np.float32(h) - np.float32(0.5)) * np.float32(RAMP)
        ramp = rise + (np.arange(w, dtype=np.float32) / np.float32(w) - np.float32(0.5)) * np.float32(RAMP / 2)
        out = np.empty((len(images), h, w), np.float32)
        for image, answer in zip(images, out, strict=True):
            plane = np.ascontiguousarray(image[self.band])
            mean = np.float32(plane.sum(dtype=np.float64) / plane.size)
            answer[...] = (smooth(plane, passes=self.cost) - mean) * np.float32(GAIN) + ramp
        return out

    def decode(self, image_features: NDArray[np.float32], prompt_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w)."""
        return image_features[:, None] + prompt_features[:, None, None]


def smooth(plane: NDArray[np.float32], *, passes: int) -> NDArray[np.float32]:
    """`plane` (y, x) after `passes` rounds of 1/2 itself + 1/8 of each of its four neighbours, edges repeated.

    Plain numpy on one thread; the interpreter lock is free while it works.
    """
    here = np.pad(plane, 1, mode="edge")
    there, part = here.copy(), np.empty_like(plane)
    for _ in range(passes):
        np.add(here[:-2, 1:-1], here[2:, 1:-1], out=part)
        part += here[1:-1, :-2]
        part += here[1:-1, 2:]
        part *= np.float32(0.125)
        inner = there[1:-1, 1:-1]
        np.multiply(here[1:-1, 1:-1], np.float32(0.5), out=inner)
        inner += part
        there[0], there[-1] = there[1], there[-2]
        there[:, 0], there[:, -1] = there[:, 1], there[:, -2]
        here, there = there, here
    return np.ascontiguousarray(here[1:-1, 1:-1])


def load_window_mean(model: ModelSpec, bands: Sequence[str]) -> WindowMean:
    """The segmenter that `[model] name = "window-mean"` asks for; options `band` (name) and `cost` (passes).

    Raises
    ------
    ConfigError : `config-unknown-key` or `config-invalid` for an option.
    """
    unknown = sorted(set(model.options) - {"band", "cost"})
    if unknown:
        raise ConfigError(
            "config-unknown-key",
            f'unknown key "{unknown[0]}"',
            where="model.options",
            fix="window-mean knows band and cost.",
        )
    band, cost = model.options.get("band", bands[0]), model.options.get("cost", 0)
    if band not in bands:
        raise ConfigError("config-invalid", f'band "{band}" is not in source.bands', where="model.options.band")
    if not isinstance(cost, int) or isinstance(cost, bool) or not 0 <= cost <= 100_000:
        raise ConfigError("config-invalid", f"cost {cost!r} is not a whole number in 0..100000", where="model.options.cost")
    return WindowMean(tuple(bands), list(bands).index(str(band)), cost)
