"""CLIPSeg in memory: how its files become a network, and what is asked of it.

The picture's side ends with a few numbers per patch: the maps that the decoder makes of three layers of CLIP's picture encoder do
not depend on words. A prompt scales and shifts them, then the decoder draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.core.errors import ModelError
from eo_batch.models.devices import fetched, sent, staged
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.finder import Maps
from eo_batch.models.preparation import Preparation, read_preparation
from eo_batch.models.refusals import refused
from eo_batch.models.weights.folders import CONFIG, FolderFiles, read_folder
from eo_batch.models.weights.networks import build_network, config_of

TOLERATED = ("clip.text_model.embeddings.position_ids", "clip.vision_model.embeddings.position_ids")
"""Tables that older files hold and the network makes itself."""
CALL_BYTES = 500
"""Memory of a call per pixel of the network's square at the published sizes in float32, as measured at 352 px."""
PUBLISHED_WIDTH = 768


@dataclass(frozen=True, eq=False)
class ClipSegEngine(Engine[Any]):
    """`transformers.CLIPSegForImageSegmentation`, and the features of what it was asked.

    Parameters
    ----------
    preparation : what is done to a picture first.
    prompts : threads and tokens -> their features.
    """

    segmenter: str = "clipseg"
    preparation: Preparation = field(default_factory=Preparation)
    prompts: dict[tuple[int, bytes], Tensor] = field(default_factory=dict)

    @property
    def side_px(self) -> int:
        """Side of the square that it looks at."""
        return self.preparation.size_yx[0]

    @property
    def positions(self) -> int:
        """Tokens of a prompt that it reads, marks included."""
        return int(self.network.config.text_config.max_position_embeddings)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the picture encoder that the decoder reads, the last first."""
        return tuple(self.network.extract_layers)[::-1]

    @property
    def feature_bytes(self) -> int:
        """Of what is kept of one window for all prompts."""
        config = self.network.config
        patches = (self.side_px // config.vision_config.patch_size) ** 2
        return int(len(self.layers) * (patches + 1) * config.reduce_dim * self.dtype.itemsize)

    @property
    def call_bytes(self) -> int:
        """Of one call beside the weights and beside what it keeps."""
        width = self.network.config.vision_config.hidden_size / PUBLISHED_WIDTH
        return int(CALL_BYTES * width * self.side_px**2 * self.dtype.itemsize / 4)

    def hear(self, ids: Tensor, *, threads: int) -> Tensor:
        """What the text encoder makes of a prompt, int64 (tokens,) with its marks -> (1, features); computed at its first asking.

        The prompt is read at its own length: what would be filled in behind it is hidden from it anyway.

        Raises
        ------
        ModelError : `model-oom`.
        """
        key = threads, ids.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"), refused(self.segmenter):
                self.prompts[key] = self.network.clip.get_text_features(ids[None].to(self.device)).pooler_output
        return self.prompts[key]

    def see(self, pictures: Sequence[NDArray[np.uint8]], *, threads: int) -> tuple[Maps, ...]:
        """What no prompt changes of pictures (h, w, 3): one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def look(some: Sequence[NDArray[np.uint8]]) -> Maps:
            pixels = staged([self.preparation(picture)[0] for picture in some], self.device)

            def compute() -> Maps:
                with refused(self.segmenter):
                    return Maps(self._look(sent(pixels, self.device).to(self.dtype)))

            return self.call(compute, threads=threads, what=f"pictures of {self.side_px} px", windows=len(some))

        return tuple(look(pictures[some]) for some in self.windows_apart(len(pictures)))

    def answer(self, windows: Maps, words: Tensor, size_yx: tuple[int, int], rules: object, *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU: the network's square stretched to `size_yx`.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def decide() -> Tensor:
            with refused(self.segmenter):
                logits = self._draw(windows.maps, words)[:, None].float()
                large = torch.nn.functional.interpolate(logits, size=size_yx, mode="bilinear", align_corners=False)
                return fetched(large[:, 0])

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows))

    def _look(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The decoder's maps of layers of the picture encoder, the last layer first; later layers are not computed."""
        vision, kept = self.network.clip.vision_model, {}
        hidden = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
        for number, layer in enumerate(vision.encoder.layers[: max(self.layers) + 1]):
            hidden = layer(hidden, attention_mask=None)
            kept[number] = hidden
        reduces = zip(self.network.decoder.reduces, self.layers, strict=True)
        return tuple(reduce(kept[number]) for reduce, number in reduces)

    def _draw(self, maps: Sequence[Tensor], words: Tensor) -> Tensor:
        """Logits (n, side, side) of windows: a prompt scales and shifts one of the maps, layers mix them, patches grow to pixels.

        This is the decoder of the library from where its maps are made.
        """
        decoder, output = self.network.decoder, torch.zeros_like(maps[0])
        for number, (seen, layer) in enumerate(zip(maps, decoder.layers, strict=True)):
            output = seen + output if number else seen
            if number == decoder.conditional_layer:
                told = words.expand(len(seen), -1)
                output = (decoder.film_mul(told) * output.permute(1, 0, 2) + decoder.film_add(told)).permute(1, 0, 2)
            output = layer(output, attention_mask=None)
        patches = output[:, 1:].transpose(1, 2)
        grid = self.side_px // self.network.config.vision_config.patch_size
        logits: Tensor = decoder.transposed_convolution(patches.reshape(*patches.shape[:2], grid, grid))[:, 0]
        return logits


def open_engine(files: FolderFiles, *, device: str, precision: str) -> ClipSegEngine:
    """The network of `files`; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[torch.nn.Module, dict[str, Any]]:
        from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

        preparation = read_preparation(files.processing, where=str(files.folder))
        where = str(files.folder / CONFIG)
        config = config_of(CLIPSegConfig, files.config, where=where)
        _check(config, preparation, where=where)
        tensors = read_folder(files)
        network = build_network(CLIPSegForImageSegmentation, config, tensors, where=str(files.weights[0]), tolerated=TOLERATED)
        return network.to(place, dtype), {"preparation": preparation}

    return open_once(ClipSegEngine, (files,), load, device=device, precision=precision)


def _check(config: Any, preparation: Preparation, *, where: str) -> None:
    """Refuse what the decoder cannot draw with."""
    vision, (height, width) = config.vision_config, preparation.size_yx
    layers = tuple(config.extract_layers)
    rules = {
        "the picture must be a square of whole patches": height == width and height % int(vision.patch_size) == 0,
        "extract_layers must be different layers of the picture encoder": len(set(layers)) == len(layers) > 0
        and all(0 <= number < vision.num_hidden_layers for number in layers),
        "conditional_layer must be one of the decoder's": 0 <= config.conditional_layer < len(layers),
    }
    for rule, holds in rules.items():
        if not holds:
            fix = "Give the folder of a CLIPSeg network as its authors published it."
            raise ModelError("model-load", rule, where=where, fix=fix)
