"""SAM 3 in memory: how its files become a network, and what is asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.models.devices import fetched, sent, staged
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.finder import Maps
from eo_batch.models.instances import gate, join
from eo_batch.models.preparation import Preparation, read_preparation
from eo_batch.models.refusals import refused
from eo_batch.models.weights.folders import CONFIG, FolderFiles, read_folder
from eo_batch.models.weights.networks import build_network, config_of

DETECTOR, TRACKER = "detector_model.", ("tracker_model.", "tracker_neck.")
"""Beginnings of names of tensors: the published files hold a tracker of videos too, which is not used."""
DEFAULTS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
"""How its authors prepare pictures, where no file says so."""
CALL_BYTES = 480
"""Memory per pixel of its picture of a call at the published size in float32, as measured at 1,008 px."""


@dataclass(frozen=True)
class Sam3Words:
    """What no window changes of a prompt: features of its tokens (1, token, channel), and which are there (1, token)."""

    features: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Sam3Rules:
    """How an answer becomes a score.

    Parameters
    ----------
    semantic : of the map of the whole concept, not of its objects.
    apart : objects that touch are kept apart.
    """

    semantic: bool = False
    apart: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Sam3Engine(Engine[Any]):
    """`transformers.Sam3Model`, how it wants its pictures, and the features of what it was asked."""

    segmenter: str = "sam3"
    preparation: Preparation = field(default_factory=Preparation)
    prompts: dict[tuple[int, bytes], Sam3Words] = field(default_factory=dict)

    @property
    def side_px(self) -> int:
        """Side of the square that it looks at."""
        return self.preparation.size_yx[0]

    @property
    def positions(self) -> int:
        """Tokens of a prompt that it reads, marks included."""
        return int(self.network.config.text_config.max_position_embeddings)

    @property
    def feature_bytes(self) -> int:
        """Of the maps of one window: all that the detector looks at."""
        config = self.network.config.vision_config
        grid = self.side_px // config.backbone_config.patch_size
        numbers = sum(int(grid * scale) ** 2 for scale in config.scale_factors[:-1]) * config.fpn_hidden_size
        return int(numbers * self.dtype.itemsize)

    @property
    def call_bytes(self) -> int:
        """Of one call beside the weights and beside what it keeps."""
        return int(CALL_BYTES * self.side_px**2 * self.dtype.itemsize / 4)

    def hear(self, ids: Tensor, *, threads: int) -> Sam3Words:
        """Features of a prompt, int64 (tokens,) with its marks; computed at its first asking.

        Behind its end the text is filled up to the length that the network was trained with, and the filling masked: so its
        authors ask.
        """
        key = threads, ids.numpy().tobytes()
        if key not in self.prompts:
            read = torch.full((1, self.positions), int(ids[-1]), dtype=torch.int64)
            read[0, : len(ids)] = ids
            mask = (torch.arange(self.positions) < len(ids)).long()[None]
            with self.computing(threads, f"{len(ids)} tokens"), refused(self.segmenter):
                read, mask = read.to(self.device), mask.to(self.device)
                told = self.network.get_text_features(input_ids=read, attention_mask=mask, return_dict=True)
                self.prompts[key] = Sam3Words(told.pooler_output, mask)
        return self.prompts[key]

    def see(self, pictures: Sequence[NDArray[np.uint8]], *, threads: int) -> tuple[Maps, ...]:
        """Maps of features of pictures (h, w, 3), fine to coarse: one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def look(some: Sequence[NDArray[np.uint8]]) -> Maps:
            pixels = staged([self.preparation(picture)[0] for picture in some], self.device)

            def compute() -> Maps:
                with refused(self.segmenter):
                    seen = self.network.get_vision_features(sent(pixels, self.device).to(self.dtype))
                    return Maps(tuple(seen.fpn_hidden_states[:-1]))  # the last one is not looked at

            return self.call(compute, threads=threads, what=f"pictures of {self.side_px} px", windows=len(some))

        return tuple(look(pictures[some]) for some in self.windows_apart(len(pictures)))

    def answer(self, windows: Maps, words: Sam3Words, size_yx: tuple[int, int], rules: Sam3Rules, *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU; see `models.instances`.

        An object's confidence is sigmoid(its logit) * sigmoid(the logit that the concept is there at all), as its authors do.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def decide() -> Tensor:
            with refused(self.segmenter):
                found = self.detect(windows, words)
                is_there = torch.sigmoid(found.presence_logits.float())
                if rules.semantic:
                    whole = found.semantic_seg[:, 0]
                    return fetched(torch.stack([gate(whole[n], is_there[n, 0], size_yx) for n in range(len(windows))]))
                sure, masks = torch.sigmoid(found.pred_logits.float()) * is_there, found.pred_masks
                return fetched(torch.stack([join(sure[n], masks[n], size_yx, apart=rules.apart) for n in range(len(windows))]))

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows))

    def detect(self, windows: Maps, words: Sam3Words) -> Any:
        """The network's own answer for features of windows and of one prompt: `Sam3ImageSegmentationOutput`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

        count, place = len(windows), self.network.vision_encoder.neck.position_encoding
        where = tuple(place(one.shape, one.device, one.dtype) for one in windows.maps)
        unused = windows.maps[-1]
        seen = Sam3VisionEncoderOutput(
            fpn_hidden_states=(*windows.maps, unused),
            fpn_position_encoding=(*where, where[-1]),  # the last ones are left out
        )
        told = BaseModelOutputWithPooling(pooler_output=words.features.expand(count, -1, -1))
        return self.network(vision_embeds=seen, text_embeds=told, attention_mask=words.mask.expand(count, -1))


def open_engine(files: FolderFiles, *, device: str, precision: str) -> Sam3Engine:
    """The network of `files`; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[torch.nn.Module, dict[str, Any]]:
        from transformers import Sam3Config, Sam3Model

        config = config_of(Sam3Config, _detector(files.config), where=str(files.folder / CONFIG))
        side = getattr(config.vision_config.backbone_config, "image_size", None)
        said = {**DEFAULTS, **files.processing, "size": side}  # it cannot look at another size
        preparation = read_preparation(said, where=str(files.folder))
        tensors = {name.removeprefix(DETECTOR): one for name, one in read_folder(files).items() if not name.startswith(TRACKER)}
        network = build_network(Sam3Model, config, tensors, where=str(files.folder)).to(place, dtype)
        return network, {"preparation": preparation}

    return open_once(Sam3Engine, (files,), load, device=device, precision=precision)


def _detector(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the config says of the detector of images."""
    inner = said.get("detector_config", said)
    return inner if isinstance(inner, Mapping) else {}
