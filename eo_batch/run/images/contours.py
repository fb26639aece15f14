"""The contour map of an image: how likely an object's outline runs through each pixel, so that touching objects part.

The contour network is shown the image as the segmenter is: whole, or in windows of its own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import PromptSet
from eo_batch.models.segmenter import SegmenterInfo
from eo_batch.sources.picture import RGB, Picture

if TYPE_CHECKING:
    from eo_batch.models.contours import ContourModel

_SURE = 1e-6
"""Shares nearer to 0 or 1 than this become logits as if they were this near."""


@dataclass(frozen=True)
class ContourSegmenter:
    """A contour network as a segmenter whose only prompt is "outline of an object", whatever its words are."""

    model: ContourModel
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        side = max(self.model.preparation.size_yx)
        object.__setattr__(self, "info", SegmenterInfo("contours", "contours/1", self.model.sha256, RGB, network_px=side))

    def encode_prompts(self, prompts: PromptSet) -> int:
        """Number of prompts."""
        return len(prompts)

    def encode_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of each window, float32 (n, y, x)."""
        pictures = np.rint(np.moveaxis(images, 1, -1) * np.float32(255)).astype(np.uint8)
        shares = np.stack([self.model.contour(picture) for picture in pictures]).astype(np.float64)
        shares = np.clip(shares, _SURE, 1 - _SURE)
        return np.log(shares / (1 - shares)).astype(np.float32)

    def decode(self, image_features: NDArray[np.float32], prompt_features: int) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, y, x)."""
        return np.repeat(image_features[:, None], prompt_features, axis=1)


def open_contours(name_or_path: str | Path) -> ContourSegmenter:
    """A contour network of this machine; errors as `load_contours`."""
    from eo_batch.models.contours import load_contours

    return ContourSegmenter(load_contours(name_or_path))


def as_rgb(picture: Picture) -> Picture:
    """The picture in red, green and blue, as people see it."""
    return replace(picture, pixels=np.moveaxis(picture.rgb(), -1, 0).astype(np.float32) / np.float32(255), bands=RGB)


def check_contour(contour: Any, picture: Picture) -> NDArray[np.floating]:
    """A contour map that was given as an array.

    Raises
    ------
    ConfigError : `config-invalid`: another shape or type, or a number that is not finite.
    """
    found = np.asarray(contour)
    if found.shape != picture.shape or found.dtype.kind != "f" or not np.isfinite(found).all():
        what = f"a contour map is finite floats (y, x) of the image's {picture.shape}, not {found.dtype} {found.shape}"
        raise ConfigError("config-invalid", what, where="contour")
    return found
