"""What every segmenter is: a description and three pure functions.

Prompt encoding, image encoding and decoding are apart, so that what does not depend on the prompt is computed once
per window, whatever the number of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.prompts import PromptSet

FLOAT_BYTES = 4


@dataclass(frozen=True)
class SegmenterInfo:
    """What a run must know about a segmenter before it gives it a pixel.

    Parameters
    ----------
    name : as in `[model] name`.
    algorithm : version of its rules, for example "spectral/1"; changes when the same input gives another answer.
    digest : digest of weights and settings: the identity of the segmenter in the manifest.
    bands : common names it was made for, in the order of the band axis; None: any bands in any order.
    pixel_range : (low, high) of the physical values it expects; (0, 1) is reflectance.
    window_px : side of its windows in pixels where it allows only one; None: any.
    network_px : side in pixels to which it resizes every window, square or not, before it looks; None: it looks at windows as
        they are.
    pixelwise : a pixel's logit depends on that pixel alone; otherwise pixels without observation are filled so that what is
        beside them looks as if the ground went on.
    shares_image_features : `encode_images` does work that all prompts share.
    deterministic : same input, same bytes, on the same kind of device.
    device : "cpu" or "cuda".
    fixed_bytes : memory of weights, once per process: its workers share them.
    call_bytes : memory of one call beside that, whatever the number of windows, once per worker.
    pixel_bytes, prompt_pixel_bytes : memory while a batch is worked on, per pixel of its windows, and the same per prompt;
        without the input batch itself and the logits.
    feature_bytes : what `FeatureKeeper.dump_features` gives of one window, about; 0: features of this segmenter cannot be kept.
    """

    name: str
    algorithm: str
    digest: str
    bands: tuple[str, ...] | None = None
    pixel_range: tuple[float, float] = (0.0, 1.0)
    window_px: int | None = None
    network_px: int | None = None
    pixelwise: bool = False
    shares_image_features: bool = False
    deterministic: bool = True
    device: str = "cpu"
    fixed_bytes: int = 0
    call_bytes: int = 0
    pixel_bytes: int = 0
    prompt_pixel_bytes: int = 0
    feature_bytes: int = 0

    def memory_bytes(self, *, bands: int, prompts: int, window_px: int, batch: int) -> int:
        """Estimated peak memory in bytes of one call with `batch` windows, input and logits included."""
        per_pixel = FLOAT_BYTES * bands + self.pixel_bytes + (FLOAT_BYTES + self.prompt_pixel_bytes) * prompts
        return self.fixed_bytes + self.call_bytes + batch * window_px * window_px * per_pixel


@runtime_checkable
class Segmenter(Protocol):
    """Answers prompts with logits; logit 0 is score 0.5. All methods are pure.

    A window's logits may depend on that window and on the prompts, never on its place in the batch or its batch mates.
    """

    @property
    def info(self) -> SegmenterInfo:
        """Description of this segmenter."""
        ...

    def encode_prompts(self, prompts: PromptSet) -> Any:
        """Features of the prompts, in order; made once per run.

        Raises
        ------
        ConfigError : `prompt-invalid` or `config-invalid`: a prompt it cannot serve, a band it needs is missing.
        """
        ...

    def encode_images(self, images: NDArray[np.float32]) -> Any:
        """Features of windows, shared by all prompts.

        Parameters
        ----------
        images : float32 (n, band, h, w), physical values, every one finite.
        """
        ...

    def decode(self, image_features: Any, prompt_features: Any) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w), every one finite."""
        ...


@runtime_checkable
class FeatureKeeper(Protocol):
    """A segmenter whose image features can be written down and read back, so that further prompts need `decode` alone.

    `decode` gives the same bytes for what `load_features` made as for what `encode_images` gave, whatever windows are put
    together. Only a segmenter with `info.feature_bytes` above 0 is asked.
    """

    def dump_features(self, image_features: Any) -> list[dict[str, NDArray[Any]]]:
        """Named arrays of each window of the batch, in order: all that `decode` needs of that window, and no more.

        Dtypes are numpy's own numbers and bool; what numpy does not have (bfloat16) is given bit for bit as unsigned integers.
        A window that stands in a batch twice is given twice.
        """
        ...

    def load_features(self, windows: Sequence[Mapping[str, NDArray[Any]]]) -> Any:
        """Image features, as `encode_images` gives them, of windows from any batches, in this order.

        Parameters
        ----------
        windows : as `dump_features` gave them; the same window may stand here twice.
        """
        ...


@runtime_checkable
class Explainer(Protocol):
    """A segmenter that can say in words how it will answer."""

    def explain(self, prompts: PromptSet) -> tuple[str, ...]:
        """One line per prompt, in order."""
        ...


@runtime_checkable
class Warner(Protocol):
    """A segmenter that knows which prompts may not mean what their author thinks."""

    def warnings(self, prompts: PromptSet, *, sees_whole: bool = False) -> tuple[str, ...]:
        """Lines for people, in the order of the prompts; none where nothing is amiss.

        Parameters
        ----------
        sees_whole : it will see all there is in one window, as with a single image.
        """
        ...


def feature_keeper(segmenter: Segmenter) -> FeatureKeeper | None:
    """The segmenter as one whose image features can be kept; None where they cannot."""
    return segmenter if isinstance(segmenter, FeatureKeeper) and segmenter.info.feature_bytes > 0 else None


def prompt_warnings(segmenter: Segmenter, prompts: PromptSet, *, sees_whole: bool = False) -> tuple[str, ...]:
    """What an author should know before a run; empty where the segmenter has nothing to say; see `Warner`."""
    return segmenter.warnings(prompts, sees_whole=sees_whole) if isinstance(segmenter, Warner) else ()


def explain_prompts(segmenter: Segmenter, prompts: PromptSet) -> tuple[str, ...]:
    """One line per prompt saying how it will be answered; empty where the segmenter cannot say."""
    return segmenter.explain(prompts) if isinstance(segmenter, Explainer) else ()


def band_names(bands: Sequence[str]) -> str:
    """Bands as they are written in a pipeline: `["green", "nir"]`."""
    return "[" + ", ".join(f'"{band}"' for band in bands) + "]"
