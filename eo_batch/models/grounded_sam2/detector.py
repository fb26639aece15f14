"""Grounding DINO: boxes around what a phrase names (arXiv 2303.05499).

Words and picture are fused from the first layer behind the backbones on. So of a window only the maps of the Swin backbone, and
of a phrase only the states of the text encoder, can be computed once. The library has no argument for either: a copy of the
network, with the same weights, is asked in which the two backbones give what is known.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eo_batch.core.errors import ModelError
from eo_batch.models.preparation import SIDES_PX, Preparation, is_count, read_preparation
from eo_batch.models.weights.folders import CONFIG, FolderFiles, read_folder
from eo_batch.models.weights.networks import build_network, config_of

BEGIN, END, STOP, ASKS = 101, 102, 1012, 1029
"""Numbers of [CLS], [SEP], the full stop and the question mark, which the network itself goes by: those of BERT, lower case."""
BACKBONE, WORDS = "swin", "bert"
"""Kinds of the two backbones that are known."""
SHORTEST_PX, LONGEST_PX = 800, 1333
"""Sides of the picture that it looks at, where no file says so."""


@dataclass(frozen=True)
class Phrase:
    """What no window changes of a prompt.

    Parameters
    ----------
    ids : int64 (1, tokens), with marks.
    states : of the text encoder, (1, tokens, channel).
    is_word : bool (tokens,): the token is no mark and no full stop.
    """

    ids: Tensor
    states: Tensor
    is_word: Tensor


@dataclass(frozen=True)
class Framing:
    """How a picture is prepared for the detector.

    Parameters
    ----------
    preparation : all but its size.
    shortest_px, longest_px : the shorter side becomes the one, unless the longer one would exceed the other.
    """

    preparation: Preparation
    shortest_px: int
    longest_px: int

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 (1, 3, y, x) of a picture uint8 (h, w, 3)."""
        return replace(self.preparation, size_yx=self.size_of(*picture.shape[:2]))(picture)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that a picture gets: its proportions stay (the rule of DETR, arXiv 2005.12872)."""
        short, long = sorted((height, width))
        exact: float = self.shortest_px
        if long / short * self.shortest_px > self.longest_px:
            exact = self.longest_px * short / long
        side = max(1, round(exact))
        if short == side:
            return height, width
        other = max(1, int(exact * long / short))
        return (side, other) if height <= width else (other, side)


class _KnownPicture(nn.Module):
    """Stands for the backbone of pictures: gives the maps that it is made of."""

    def __init__(self, maps: tuple[Tensor, ...], position_embedding: nn.Module) -> None:
        super().__init__()
        self.maps, self.position_embedding = maps, position_embedding

    def forward(self, *_: Any) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        seen = [(one, torch.ones((len(one), *one.shape[2:]), dtype=torch.bool, device=one.device)) for one in self.maps]
        return seen, [self.position_embedding(one, mask).to(one.dtype) for one, mask in seen]


class _KnownWords(nn.Module):
    """Stands for the text encoder: gives the states that it is made of."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.states)


def read_phrase(network: Any, ids: Tensor) -> Phrase:
    """What no window changes of a prompt, int64 (tokens,) with its marks.

    A full stop before the end mark closes the phrase; without one the network would take every word for a phrase of its own.
    """
    from transformers.models.grounding_dino.modeling_grounding_dino import generate_masks_with_special_tokens_and_transfer_map

    if ids[-2] != STOP:
        ids = torch.cat([ids[:-1], ids.new_tensor([STOP]), ids[-1:]])
    asked = ids[None].to(network.device)
    sees, places = generate_masks_with_special_tokens_and_transfer_map(asked, special_tokens=network.model.special_tokens)
    states = network.model.text_backbone(asked, sees[:, None], torch.zeros_like(asked), places).last_hidden_state
    is_mark = torch.isin(ids, torch.tensor([BEGIN, END, STOP, ASKS]))
    return Phrase(asked, states, ~is_mark.to(asked.device))


def look(network: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    """Maps of the Swin backbone of windows (n, 3, y, x), fine to coarse."""
    return tuple(network.model.backbone.conv_encoder.model(pixels, return_dict=True).feature_maps)


def detect(network: Any, maps: tuple[Tensor, ...], size_yx: tuple[int, int], phrase: Phrase) -> tuple[Tensor, Tensor]:
    """(logits (n, box, token), boxes (n, box, 4)) of windows whose prepared pictures have `size_yx`.

    Boxes are centre x, centre y, width, height, in shares of the picture; logits beyond the phrase's tokens are -infinity.
    """
    count = len(maps[0])
    _check_places(network, maps, size_yx)
    asked = _with_known(network, maps, phrase.states.expand(count, -1, -1))
    picture = maps[0].new_empty(1).expand(count, 3, *size_yx)  # only its shape is looked at
    found = asked(pixel_values=picture, input_ids=phrase.ids.expand(count, -1))
    return found.logits, found.pred_boxes


def load_detector(files: FolderFiles) -> tuple[Any, Framing]:
    """The network of `files` in float32 on the CPU, and how it wants its pictures.

    Raises
    ------
    ModelError : `model-load`.
    """
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    where = str(files.folder / CONFIG)
    parts = {name: files.config.get(name) for name in ("backbone_config", "text_config")}
    for (name, part), kind in zip(parts.items(), (BACKBONE, WORDS), strict=True):
        if not isinstance(part, Mapping) or part.get("model_type", kind) != kind:
            fix = "Give the folder of a Grounding DINO with a Swin backbone, as its authors published it."
            raise ModelError("model-load", f"its {name} describes no {kind}", where=where, fix=fix)
    # Older files also name a backbone to be fetched from elsewhere: it is described here.
    said = {name: value for name, value in files.config.items() if "backbone" not in name} | parts
    network = build_network(
        GroundingDinoForObjectDetection, config_of(GroundingDinoConfig, said, where=where), read_folder(files), where=where
    )
    return network, _framing(files)


def _with_known(network: Any, maps: tuple[Tensor, ...], states: Tensor) -> Any:
    """The network with the same weights, its backbones replaced; the network itself stays as it is, others are asking it."""
    inner = copy.copy(network.model)
    seen = _KnownPicture(maps, network.model.backbone.position_embedding)
    inner._modules = {**network.model._modules, "backbone": seen, "text_backbone": _KnownWords(states)}
    outer = copy.copy(network)
    outer._modules = {**network._modules, "model": inner}
    return outer


def _check_places(network: Any, maps: tuple[Tensor, ...], size_yx: tuple[int, int]) -> None:
    """Refuse a picture with fewer places than the detector asks for boxes."""
    shapes = [tuple(one.shape[2:]) for one in maps]
    while len(shapes) < network.config.num_feature_levels:
        shapes.append(tuple((side - 1) // 2 + 1 for side in shapes[-1]))
    if sum(height * width for height, width in shapes) < network.config.num_queries:
        what = f"a picture of {size_yx[1]} x {size_yx[0]} px is too narrow for the detector"
        raise ModelError("model-input", what, where='segmenter "grounded-sam2"', fix="Use windows that are nearer to a square.")


def _framing(files: FolderFiles) -> Framing:
    size: Any = files.processing.get("size")
    size = size if isinstance(size, Mapping) else {}
    shortest, longest = size.get("shortest_edge", SHORTEST_PX), size.get("longest_edge", LONGEST_PX)
    if not all(is_count(side, SIDES_PX.stop - 1) and side in SIDES_PX for side in (shortest, longest)):
        what = f"shortest_edge and longest_edge are not {SIDES_PX.start} to {SIDES_PX.stop - 1:,} px"
        raise ModelError("model-load", what, where=str(files.folder))
    preparation = read_preparation({**files.processing, "size": shortest}, where=str(files.folder))
    return Framing(preparation, shortest, max(shortest, longest))
