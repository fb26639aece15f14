"""A segmenter for tests and benchmarks: no knowledge, but an answer that depends on the whole window, as a network's does.

Wherever windows, batches or chunks are put together wrongly, its map shows a seam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest, sha256
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.segmenter import FLOAT_BYTES, SegmenterInfo

ALGORITHM = "window-mean/1"
GAIN = 8.0
"""Logits per unit of difference between a pixel and its window's mean."""
RAMP = 2.0
"""Logits by which a window's answer rises from its first to its last row, and half as much along columns."""

PASSES = 8
"""Passes of smoothing per unit of `cost`."""


@dataclass(frozen=True)
class WindowMean:
    """Logit = 8 x (smoothed band - mean of the window) + a ramp across the window + a shift made from the prompt's text.

    Parameters
    ----------
    bands : names of the bands, in the order of the band axis.
    band : position of the band that is looked at.
    cost : rounds of eight passes of a five-point smoothing over the window; about 0.3 ms each at 512 px, so that 500 cost
        as much as a small network.
    window_px : side of the windows of the run, for what `plan` says of kept features.
    """

    bands: tuple[str, ...]
    band: int = 0
    cost: int = 0
    window_px: int = 512
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        info = SegmenterInfo(
            name="window-mean",
            algorithm=ALGORITHM,
            digest=digest([ALGORITHM, self.band, self.cost]),
            shares_image_features=True,
            pixel_bytes=12,
            prompt_pixel_bytes=0,
            feature_bytes=FLOAT_BYTES * self.window_px * self.window_px,
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
            answer[...] = (smooth(plane, passes=PASSES * self.cost) - mean) * np.float32(GAIN) + ramp
        return out

    def decode(self, image_features: NDArray[np.float32], prompt_features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w)."""
        return image_features[:, None] + prompt_features[:, None, None]

    def dump_features(self, image_features: NDArray[np.float32]) -> list[dict[str, NDArray[Any]]]:
        """See `FeatureKeeper.dump_features`."""
        return [{"logits": window} for window in image_features]

    def load_features(self, windows: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """See `FeatureKeeper.load_features`."""
        return np.stack([window["logits"] for window in windows])


def smooth(plane: NDArray[np.float32], *, passes: int) -> NDArray[np.float32]:
    """`plane` (y, x) after `passes` rounds of 1/2 itself + 1/8 of each of its four neighbours, edges repeated.

    One thread; the interpreter lock is free all the while, as in the layers of a network.
    """
    if not passes:
        return plane.copy()
    return np.ascontiguousarray(_smoother()(np.pad(plane, 1, mode="edge"), passes)[1:-1, 1:-1])


@cache
def _smoother() -> Callable[[NDArray[np.float32], int], NDArray[np.float32]]:
    import numba

    return numba.njit(nogil=True)(_smooth_padded)  # no fastmath: the same bits as the plain loops


def _smooth_padded(here: NDArray[np.float32], passes: int) -> NDArray[np.float32]:
    there = here.copy()
    height, width = here.shape
    half, eighth = np.float32(0.5), np.float32(0.125)
    for _ in range(passes):
        for y in range(1, height - 1):
            for x in range(1, width - 1):
                around = (here[y - 1, x] + here[y + 1, x]) + (here[y, x - 1] + here[y, x + 1])
                there[y, x] = here[y, x] * half + around * eighth
        there[0, :] = there[1, :]
        there[-1, :] = there[-2, :]
        there[:, 0] = there[:, 1]
        there[:, -1] = there[:, -2]
        here, there = there, here
    return here


def load_window_mean(model: ModelSpec, bands: Sequence[str]) -> WindowMean:
    """The segmenter that `[model] name = "window-mean"` asks for; options `band` (name) and `cost` (rounds of smoothing).

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
    return WindowMean(tuple(bands), list(bands).index(str(band)), cost, model.window_px)
