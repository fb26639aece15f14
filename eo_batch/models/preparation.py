"""What is done to a picture before a network of the transformers library sees it, as its `preprocessor_config.json` says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eo_batch.core.errors import ModelError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, per channel; where the file does not say otherwise."""
SIDES_PX = range(32, 4097)
"""Sides that a network's square may have."""


@dataclass(frozen=True)
class Preparation:
    """What is done to an image before the network sees it.

    Parameters
    ----------
    size_yx : height and width in pixels that it is resized to, whatever its shape.
    resample : filter of that resizing, a number of Pillow's; 2 is bilinear (antialiased where it shrinks).
    scale : factor from 0..255.
    mean, std : subtracted, then divided by, per channel.
    """

    size_yx: tuple[int, int] = (1024, 1024)
    resample: int = int(Image.Resampling.BILINEAR)
    scale: float = 1 / 255
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (1, 3, h, w) of uint8 (y, x, 3)."""
        height, width = self.size_yx
        small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(self.resample)))
        scaled = (small.astype(np.float64) * self.scale).astype(np.float32)
        plain: NDArray[np.float32] = (scaled - np.asarray(self.mean, dtype="f4")) / np.asarray(self.std, dtype="f4")
        return np.ascontiguousarray(plain.transpose(2, 0, 1))[None]


def read_preparation(said: Mapping[str, Any], *, where: str) -> Preparation:
    """What a `preprocessor_config.json` says.

    Parameters
    ----------
    said : the file, parsed.
    where : the file, for messages.

    Raises
    ------
    ModelError : `model-load`: not this preparation, or nonsense.
    """
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if said.get(step, True) is not True:
            raise _unfit(f"{step} is not true: this preparation is not known", where=where)
    size: Any = said.get("size")
    height, width = (size.get("height", 0), size.get("width", 0)) if isinstance(size, Mapping) else (size, size)
    if not all(is_count(side, SIDES_PX.stop - 1) and side in SIDES_PX for side in (height, width)):
        raise _unfit(f"size is not one of {SIDES_PX.start} to {SIDES_PX.stop - 1:,} px", where=where)
    resample, scale = said.get("resample", Preparation.resample), said.get("rescale_factor", Preparation.scale)
    mean, std = said.get("image_mean", list(MEAN)), said.get("image_std", list(STD))
    known = resample in [int(filter) for filter in Image.Resampling] and _are_numbers([scale], least=1e-9)
    if not (known and _are_numbers(mean, count=3) and _are_numbers(std, count=3, least=1e-9)):
        raise _unfit("resample, rescale_factor, image_mean or image_std are not numbers as they must be", where=where)
    return Preparation((int(height), int(width)), int(resample), float(scale), tuple(mean), tuple(std))


def is_count(value: Any, most: int) -> bool:
    """A whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_numbers(values: Any, *, count: int = 1, least: float = -math.inf) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= least for v in values)
    )


def _unfit(what: str, *, where: str) -> ModelError:
    fix = "Give the folder of a network as its authors published it."
    return ModelError("model-load", what, where=where, fix=fix)
