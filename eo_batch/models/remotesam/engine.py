"""RemoteSAM in memory: how its files become a network, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.devices import fetched, sent
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.kept import tensor_of
from eo_batch.models.remotesam.config import RemoteSAMConfig
from eo_batch.models.remotesam.initial import initialise
from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures, RemoteSAM
from eo_batch.models.remotesam.trunk import Seen
from eo_batch.models.weights import WeightFiles, check_tensors, load_strictly, read_weights

TOLERATED = ("text_encoder.embeddings.position_ids",)
"""Keys that other versions of the text encoder wrote and that mean nothing."""


@dataclass(frozen=True, eq=False)
class RemoteSAMEngine(Engine[RemoteSAM]):
    """The network, and the features of what it was asked.

    Parameters
    ----------
    prompts : threads and tokens -> their features.
    """

    segmenter: str = "remotesam"
    prompts: dict[tuple[int, bytes], PromptFeatures] = field(default_factory=dict)

    def encode_sentence(self, ids: Tensor, mask: Tensor, *, threads: int) -> PromptFeatures:
        """Features of one sentence, int64 (tokens,); computed at its first asking."""
        key = threads, ids.numpy().tobytes() + mask.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"):
                known = mask[None].to(self.device)
                hidden = self.network.text_encoder.hidden(ids[None].to(self.device), known)
                self.prompts[key] = PromptFeatures((tuple(self.network.backbone.hear(hidden.to(self.dtype), known)),))
        return self.prompts[key]

    def encode_pixels(self, pixels: Tensor, *, threads: int) -> tuple[ImageFeatures, ...]:
        """What no prompt changes of windows, float32 (n, 3, side, side): one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def see(some: Tensor) -> ImageFeatures:
            def compute() -> Seen:
                return self.network.backbone.see(sent(some, self.device).to(self.dtype))

            seen = self.call(compute, threads=threads, what=f"pictures of {some.shape[-1]} px", windows=len(some))
            return ImageFeatures((seen,), (some.shape[2], some.shape[3]))

        return tuple(see(pixels[some]) for some in self.windows_apart(len(pixels)))

    def load_seen(self, windows: Sequence[Mapping[str, NDArray[Any]]], *, threads: int) -> ImageFeatures:
        """One entry, as `encode_pixels` gives it, of what was kept of windows.

        Parameters
        ----------
        windows : with the fields of `Seen`, without their first axis; numbers as `array_of` gives them.

        Raises
        ------
        ModelError : `model-oom`.
        """
        side, (h, w) = self.network.config.window_px, windows[0]["grid"]
        kept = [torch.stack([tensor_of(window[name], self.dtype) for window in windows]) for name in Seen._fields[1:]]

        def send() -> ImageFeatures:
            carried, look, query = (sent(part, self.device) for part in kept)
            return ImageFeatures((Seen((int(h), int(w)), carried, look, query),), (side, side))

        return self.call(send, threads=threads, what="kept features", windows=len(windows))

    def answer(self, windows: ImageFeatures, prompt: PromptFeatures, *, threads: int) -> Tensor:
        """Foreground minus background of the windows of one entry, float32 (n, side, side) on the CPU.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def decide() -> Tensor:
            logits = self.network.decode(windows, prompt)[0]  # of the one entry; its windows are where a prompt's would be
            return fetched(logits[:, 1] - logits[:, 0])

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows.windows[0].look))


def open_engine(files: WeightFiles, *, device: str, precision: str) -> RemoteSAMEngine:
    """The network of `files`; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[RemoteSAM, dict[str, Any]]:
        network = _load(files).requires_grad_(False)
        place_network(network, place, dtype)
        return network, {}

    return open_once(RemoteSAMEngine, (files,), load, device=device, precision=precision)


def _load(files: WeightFiles) -> RemoteSAM:
    where = str(files.weights)
    try:
        config = RemoteSAMConfig.from_dict(files.config)
    except (ConfigError, TypeError) as error:
        raise _not_ours(where, str(error)) from None
    tensors, _ = read_weights(files.weights)
    if max(sum(config.depths), config.text_layers) > len(tensors):
        raise _not_ours(
            where, f"it describes {sum(config.depths) + config.text_layers:,} layers and holds {len(tensors):,} tensors"
        )
    try:
        with torch.device("meta"):
            network = RemoteSAM(config)
    except RuntimeError as error:  # sizes whose product is beyond all numbers
        raise _not_ours(where, str(error)[:200]) from None
    check_tensors(network.state_dict(), tensors, where=where, tolerated=TOLERATED)  # before anything of these sizes is made
    for module in network.modules():  # tables that the file must agree with, and what no file holds
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    initialise(network, only_buffers=True)
    load_strictly(network, tensors, where=where, tolerated=TOLERATED)  # weights become views of the file
    return network.eval()


def place_network(network: RemoteSAM, device: torch.device, dtype: torch.dtype) -> None:
    """Move a network to `device` and make its numbers `dtype`, but those that would lose by it.

    The text encoder stays in float32: half of the error of bfloat16 comes from it, and it is asked once per prompt and run. So
    does batch normalisation: a variance may lie beyond what float16 can hold.
    """
    network.to(device)
    exact = set(network.text_encoder.modules())
    for module in network.modules():
        if module in exact or isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _not_ours(where: str, why: str) -> ModelError:
    fix = "Fetch the weights again, or convert a checkpoint of RemoteSAM: eo-batch models convert FILE.pth."
    return ModelError("model-load", "does not describe a RemoteSAM network", where=where, why=why, fix=fix)
