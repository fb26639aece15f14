"""RSRefSeg in memory: how its file becomes a network, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.devices import fetched, sent
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.rsrefseg.config import RSRefSegConfig
from eo_batch.models.rsrefseg.network import ImageFeatures, PromptFeatures, RSRefSeg
from eo_batch.models.rsrefseg.pictures import enlarge
from eo_batch.models.weights import WeightFiles, read_weights

PARTS = tuple(part.name for part in fields(ImageFeatures))
"""What is kept of an image, each (B, ...)."""


@dataclass(frozen=True, eq=False)
class RSRefSegEngine(Engine[RSRefSeg]):
    """The network, and the features of what it was asked.

    Parameters
    ----------
    prompts : threads and tokens -> their features.
    """

    segmenter: str = "rsrefseg"
    prompts: dict[tuple[int, bytes], PromptFeatures] = field(default_factory=dict)

    def encode_sentence(self, ids: Tensor, *, threads: int) -> PromptFeatures:
        """Features of one sentence, int64 (tokens,), at its own length; computed at its first asking.

        Raises
        ------
        ModelError : `model-oom`.
        """
        key = threads, ids.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"):
                self.prompts[key] = self.network.encode_prompts([ids.to(self.device)])
        return self.prompts[key]

    def encode_pixels(self, pixels: Tensor, *, threads: int) -> tuple[ImageFeatures, ...]:
        """What no prompt changes of windows, float32 (n, 3, side, side) in 0..1: one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def see(some: Tensor) -> ImageFeatures:
            def compute() -> ImageFeatures:
                seen = self.network.encode_images(sent(some, self.device))
                # in one order in memory: sums go by it, and features that were kept on disk come back in no other
                return ImageFeatures(*(getattr(seen, name).contiguous() for name in PARTS))

            return self.call(compute, threads=threads, what=f"pictures of {some.shape[-1]} px", windows=len(some))

        return tuple(see(pixels[some]) for some in self.windows_apart(len(pixels)))

    def answer(self, windows: ImageFeatures, prompt: PromptFeatures, shape_yx: tuple[int, int], *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU, resized to the network's side, then to `shape_yx`.

        Raises
        ------
        ModelError : `model-oom`.
        """
        side = self.network.config.image_px

        def decide() -> Tensor:
            return fetched(enlarge(self.network.decode(windows, prompt), side, *shape_yx)[:, 0])

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows))

    @property
    def feature_bytes(self) -> int:
        """Bytes of what is kept of one window for all prompts."""
        config, size = self.network.config, self.dtype.itemsize
        patches = config.grid**2
        embedding = config.sam_width * config.sam_grid**2
        return size * embedding + torch.float32.itemsize * config.width * patches + size * 3 * config.sam_width * patches


def open_engine(files: WeightFiles, *, device: str, precision: str) -> RSRefSegEngine:
    """The network of `files`; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[RSRefSeg, dict[str, Any]]:
        network = _load(files).requires_grad_(False)
        network.place(place, dtype)
        return network, {}

    return open_once(RSRefSegEngine, (files,), load, device=device, precision=precision)


def _load(files: WeightFiles) -> RSRefSeg:
    where = str(files.weights)
    try:
        config = RSRefSegConfig.from_dict(files.config)
    except (ConfigError, TypeError) as error:
        fix = "Convert the checkpoint again: eo-batch models convert FILE --network rsrefseg --config CONFIG.json."
        raise ModelError("model-load", "does not describe an RSRefSeg network", where=where, why=str(error), fix=fix) from None
    tensors, _ = read_weights(files.weights)
    return RSRefSeg.from_state(tensors, config, where=where)
