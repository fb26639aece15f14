"""RSRefSeg 2 in memory: how its file becomes a network, and what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.devices import fetched, sent, staged
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.finder import Maps
from eo_batch.models.rsrefseg2.config import RSRefSeg2Config
from eo_batch.models.rsrefseg2.network import PARTS, ImageFeatures, PromptFeatures, RSRefSeg2
from eo_batch.models.rsrefseg2.pictures import enlarge, fit
from eo_batch.models.weights import WeightFiles, read_weights

CALL_BYTES = 500
"""Memory per pixel of the network's side in float32 at the published sizes: the measured peak of a call beside the weights."""


@dataclass(frozen=True, eq=False)
class RSRefSeg2Engine(Engine[RSRefSeg2]):
    """The network, and the features of what it was asked.

    Parameters
    ----------
    prompts : threads and tokens -> their features.
    """

    segmenter: str = "rsrefseg2"
    prompts: dict[tuple[int, bytes], PromptFeatures] = field(default_factory=dict)

    @property
    def side_px(self) -> int:
        """Side of the square that it looks at."""
        return self.network.config.image_px

    @property
    def call_bytes(self) -> int:
        """Of one call beside the weights and beside what it keeps."""
        return CALL_BYTES * self.side_px**2 * self.dtype.itemsize // 4

    @property
    def feature_bytes(self) -> int:
        """Of what is kept of one window for all prompts."""
        config = self.network.config
        drawn = (
            config.sam_channels * config.sam_grid**2 * (1 + 1 + 2)
        )  # grids of 1, 4 and 16 times the places, with fewer channels
        return self.dtype.itemsize * (drawn + config.width * config.grid**2)

    def hear(self, ids: Tensor, *, threads: int) -> PromptFeatures:
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

    def see(self, pictures: Sequence[NDArray[np.uint8]], *, threads: int) -> tuple[Maps, ...]:
        """What no prompt changes of pictures (h, w, 3) of one shape: one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def look(some: Sequence[NDArray[np.uint8]]) -> Maps:
            squares = staged([fit(picture, self.side_px).transpose(2, 0, 1) for picture in some], self.device)

            def compute() -> Maps:
                seen = self.network.encode_images(sent(squares, self.device).float() / 255)
                return Maps(tuple(getattr(seen, name) for name in PARTS))

            return self.call(compute, threads=threads, what=f"pictures of {self.side_px} px", windows=len(some))

        return tuple(look(pictures[some]) for some in self.windows_apart(len(pictures)))

    def answer(self, windows: Maps, words: PromptFeatures, size_yx: tuple[int, int], rules: Any, *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU, resized as its training did.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def decide() -> Tensor:
            logits = self.network.decode(ImageFeatures(*windows.maps), words)
            return fetched(enlarge(logits, self.side_px, *size_yx)[:, 0])

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows))


def open_engine(files: WeightFiles, *, device: str, precision: str) -> RSRefSeg2Engine:
    """The network of `files`; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[RSRefSeg2, dict[str, Any]]:
        network = _load(files).requires_grad_(False)
        network.place(place, dtype)
        return network, {}

    return open_once(RSRefSeg2Engine, (files,), load, device=device, precision=precision)


def _load(files: WeightFiles) -> RSRefSeg2:
    where = str(files.weights)
    try:
        config = RSRefSeg2Config.from_dict(files.config)
    except (ConfigError, TypeError) as error:
        fix = "Convert the checkpoint again: eo-batch models convert FILE --network rsrefseg2."
        raise ModelError("model-load", "does not describe an RSRefSeg 2 network", where=where, why=str(error), fix=fix) from None
    tensors, _ = read_weights(files.weights)
    return RSRefSeg2.from_state(tensors, config, where=where)
