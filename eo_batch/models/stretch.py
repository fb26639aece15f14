"""From physical values to the picture a network was trained on: one fixed recipe per run, never the statistics of a scene.

Networks saw 8-bit photographs, so reflectance becomes 8-bit too, by two constants and a gamma. What depends on a scene
(percentiles, histograms) would make a pixel's value depend on the chunk it is read with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError, ModelError

REFLECTANCE_HIGH = 0.25
"""Reflectance that becomes 255: where the true-colour file (TCI) of a Sentinel-2 L2A product of baseline 04.00 saturates, as
measured on one (docs/guides/remotesam.md). ESA's definitions of Sentinel-2 products state 0.2 for L2A and 0.3558 for L1C."""
FAR_BEYOND = 10.0
"""A window whose mean is so many times the stretch above its low end holds other units than the recipe is for."""


@dataclass(frozen=True)
class Stretch:
    """value -> 255 * ((value - low) / (high - low)) ** (1 / gamma), cut to 0..255 and rounded.

    Parameters
    ----------
    low, high : physical values that become 0 and 255; for 8-bit photographs 0 and 255: every number stays what it is.
    gamma : above 1 brightens what is dark.

    Raises
    ------
    ConfigError : `config-invalid`.
    """

    low: float = 0.0
    high: float = REFLECTANCE_HIGH
    gamma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("low", "high", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise _invalid(name, f"{value!r} is not a number")
        if not self.low < self.high:
            raise _invalid("high", f"stretch_high {self.high:g} is not above stretch_low {self.low:g}")
        if not 0.1 <= self.gamma <= 10:
            raise _invalid("gamma", f"{self.gamma:g} is not in 0.1..10")

    def rgb(self, images: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures, uint8 (n, h, w, 3), of windows, float32 (n, 3, h, w).

        Raises
        ------
        ModelError : `model-input`: the values are in other units than the recipe is for.
        """
        span = np.float32(self.high - self.low)
        pictures = np.empty((len(images), *images.shape[2:], 3), np.uint8)
        for image, picture in zip(images, pictures, strict=True):
            share = (image - np.float32(self.low)) / span
            mean = float(share.mean(dtype=np.float64))
            if mean > FAR_BEYOND:
                raise self._other_units(float(image.mean(dtype=np.float64)))
            np.clip(share, 0, 1, out=share)
            if self.gamma != 1:
                np.power(share, np.float32(1 / self.gamma), out=share)
            share *= np.float32(255)
            picture[...] = np.rint(share, out=share).astype(np.uint8).transpose(1, 2, 0)
        return pictures

    def as_dict(self) -> dict[str, float]:
        """The recipe as JSON values."""
        return {"low": float(self.low), "high": float(self.high), "gamma": float(self.gamma)}

    def _other_units(self, mean: float) -> ModelError:
        return ModelError(
            "model-input",
            f"pixels of a mean of {mean:.4g} do not fit a stretch of {self.low:g} to {self.high:g}",
            where="model.options.stretch_high",
            why="everything would be white",
            fix="For 8-bit photographs set stretch_low = 0, stretch_high = 255; reflectance needs a scale in the catalog file.",
        )


def _invalid(name: str, what: str) -> ConfigError:
    return ConfigError("config-invalid", what, where=f"model.options.stretch_{name}", fix="See docs/guides/remotesam.md.")
