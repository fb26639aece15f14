"""The text/image encoder: what RSRefSeg asks of SigLIP, and of CLIP where it takes SigLIP's place.

Only RSRefSeg on SigLIP was released. What stands here for CLIP is this package's reading of "any encoder of the CLIP family":
patches and words are normalised and projected as CLIP does with the pooled ones; its scale is taken; a bias, which CLIP does
not have, is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from eo_batch.models.rsrefseg.config import RSRefSegConfig


class Siglip(SiglipModel):
    """SigLIP without the pooling head of its image half."""

    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        vision = dict(sizes["vision_config"]) | {"vision_use_head": False}
        text = dict(sizes["text_config"]) | {"bos_token_id": None, "eos_token_id": None}  # a tokenizer's matter
        super().__init__(SiglipConfig(text_config=text, vision_config=vision))

    def see(self, pixels: Tensor) -> Tensor:
        """Patches (B, D, n, n) of normalised pixels (B, 3, side, side)."""
        return _on_grid(self.vision_model(pixel_values=pixels).last_hidden_state)

    def hear(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, L, D) and sentences (B, D) of tokens (B, L) int64, all of equal length."""
        answer = self.text_model(input_ids=ids)
        return answer.last_hidden_state, answer.pooler_output

    @property
    def bias(self) -> Tensor:
        """Added to every logit."""
        return cast(Tensor, self.logit_bias)

    @property
    def scale(self) -> Tensor:
        """Logarithm of what cosines are multiplied by, (1,)."""
        return cast(Tensor, self.logit_scale)


class Clip(CLIPModel):
    """CLIP, with patches and words in the space where it compares images and sentences."""

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        text = dict(sizes["text_config"]) | {"bos_token_id": None, "pad_token_id": None, "eos_token_id": 2}  # 2: asks for none
        vision, width = dict(sizes["vision_config"]), sizes["projection_dim"]
        super().__init__(CLIPConfig(text_config=text, vision_config=vision, projection_dim=width))

    def see(self, pixels: Tensor) -> Tensor:
        """Patches (B, D, n, n) of normalised pixels (B, 3, side, side), without the class token."""
        tokens = self.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
        return _on_grid(self.visual_projection(self.vision_model.post_layernorm(tokens)))

    def hear(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Words (B, L, D) and sentences (B, D) of tokens (B, L) int64, all of equal length; the last token ends the sentence."""
        words = self.text_projection(self.text_model(input_ids=ids).last_hidden_state)
        return words, words[:, -1]

    @property
    def bias(self) -> Tensor:
        """Added to every logit: CLIP has none."""
        return torch.zeros_like(self.logit_scale)

    @property
    def scale(self) -> Tensor:
        """Logarithm of what cosines are multiplied by."""
        return cast(Tensor, self.logit_scale)


def build_encoder(config: RSRefSegConfig) -> Siglip | Clip:
    """The text/image encoder of `config`."""
    return Siglip(config.encoder) if config.clip is None else Clip(config.encoder)


def make_positions(network: nn.Module) -> None:
    """Number the places again: tables that no file holds and that a network built without memory lacks."""
    for module in network.modules():
        for name in sorted(module._non_persistent_buffers_set):
            table = getattr(module, name)
            assert name == "position_ids", f"{type(module).__name__} has a table {name}"
            made = torch.arange(table.shape[-1]).expand(table.shape).clone()
            setattr(module, name, made if table.is_meta else made.to(table.device))


def _on_grid(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))
