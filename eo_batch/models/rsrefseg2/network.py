"""RSRefSeg 2: an image and a sentence in, one logit per pixel out (arXiv 2507.06231).

What no sentence changes is SAM 2's image encoder and SigLIP 2's image half: `encode_images`. `encode_prompts` is its text half
and the splitting of its words. `decode` refines the patches by the sentence before it prompts SAM, and so costs far more than in
the first RSRefSeg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model

from eo_batch.models.rsrefseg.encoders import Siglip, make_positions
from eo_batch.models.rsrefseg.mapping import check_count
from eo_batch.models.rsrefseg.pictures import SAM_MEAN, SAM_STD, normalise, resize
from eo_batch.models.rsrefseg.shapes import check_images, checked_tokens
from eo_batch.models.rsrefseg2.config import FIRST_STRIDE, STRIDE, RSRefSeg2Config
from eo_batch.models.rsrefseg2.mapping import from_upstream
from eo_batch.models.rsrefseg2.prompter import CascadedPrompter
from eo_batch.models.weights import load_strictly

_WHERE = "RSRefSeg 2"
_POINTS = ("shared_embedding", "point_embed", "not_a_point_embed", "no_mask_embed")
"""Parts of SAM's prompt encoder that only points, boxes or a missing mask need."""


@dataclass(frozen=True)
class Sentence:
    """One prompt: the two sets of queries (1, q, D) that its words are split into, and the whole sentence (1, D)."""

    one: Tensor
    two: Tensor
    whole: Tensor


@dataclass(frozen=True)
class PromptFeatures:
    """Prompts as the network needs them, made once for all images."""

    prompts: tuple[Sentence, ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class ImageFeatures:
    """Images as the network needs them, made once for all prompts.

    Parameters
    ----------
    embedding : (B, C, g, g), SAM's.
    fine, finest : (B, C / 4, 2 g, 2 g) and (B, C / 8, 4 g, 4 g), what SAM draws edges with.
    patches : (B, N, D) of the text/image encoder.
    """

    embedding: Tensor
    fine: Tensor
    finest: Tensor
    patches: Tensor

    def __len__(self) -> int:
        return len(self.embedding)

    def split(self) -> Iterable[ImageFeatures]:
        """One image each."""
        parts = (getattr(self, name).split(1) for name in PARTS)
        return (ImageFeatures(*one) for one in zip(*parts, strict=True))


PARTS = tuple(part.name for part in fields(ImageFeatures))
"""What is kept of an image, each (B, ...)."""


class RSRefSeg2(nn.Module):
    """The network: `sam` (Sam2Model), `encoder` (SiglipModel) and `prompter`."""

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__()
        self.config = config
        self.sam = Sam2Model(_sam_config(config))
        for name in _POINTS:
            delattr(self.sam.prompt_encoder, name)
        self.encoder = Siglip(_siglip_sizes(config))
        self.prompter = CascadedPrompter(config)

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], config: RSRefSeg2Config, *, where: str = "weights") -> RSRefSeg2:
        """The network whose state dict is `tensors`, in evaluation mode; its weights are these tensors, not copies.

        Parameters
        ----------
        where : the file, for messages.

        Raises
        ------
        ModelError : `model-load`.
        """
        check_count(tensors, config.layers, where=where)
        network = cls._build(config)
        make_positions(network)
        load_strictly(network, tensors, where=where)
        return network.eval()

    @classmethod
    def from_upstream(cls, state: Mapping[str, Any], config: RSRefSeg2Config, *, where: str = "checkpoint") -> RSRefSeg2:
        """The network of a checkpoint of the published training code, low-rank updates merged, in float32.

        Parameters
        ----------
        state : tensors by name; or what holds them under `module` or `state_dict`.
        where : the file, for messages.

        Raises
        ------
        ModelError : `model-load`: not such a checkpoint, of other sizes, incomplete, NaN.
        """
        built = cls._build(config).state_dict()
        return cls.from_state(from_upstream(state, built, config, where=where), config, where=where)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Features of images (B, 3, S, S), red, green, blue, 0 to 1; on a CPU an image's do not depend on the others.

        Raises
        ------
        ModelError : `model-shape`.
        """
        check_images(images, self.config.image_px, where=_WHERE)
        if images.device.type != "cpu" or len(images) == 1:
            return self._see(images)
        seen = [self._see(image) for image in images.split(1)]
        return ImageFeatures(*(torch.cat([getattr(one, name) for one in seen]) for name in PARTS))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[Tensor]) -> PromptFeatures:
        """Features of prompts, each whole numbers (L,) or (1, L) with the end of the sentence; each is encoded alone.

        Raises
        ------
        ModelError : `model-shape`.
        """
        most, words = self.config.most_tokens, self.config.vocabulary
        checked = [checked_tokens(ids, most=most, words=words, where=_WHERE) for ids in prompts]
        return PromptFeatures(tuple(self._hear(ids) for ids in checked))

    @torch.no_grad()
    def decode(self, images: ImageFeatures, prompts: PromptFeatures) -> Tensor:
        """Logits (B, P, h, w), float32, of every prompt in every image; on a CPU one pair at a time."""
        side = self.config.low_res_px
        made = images.embedding.new_empty(len(images), len(prompts), side, side, dtype=torch.float32)
        some = [images] if images.embedding.device.type != "cpu" else list(images.split())
        for number, prompt in enumerate(prompts.prompts):
            first = 0
            for part in some:
                made[first : first + len(part), number] = self._answer(part, prompt)[:, 0].float()
                first += len(part)
        return made

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network to `device` and make its numbers `dtype`, but those that would lose by it.

        Prompts are encoded once per run, in float32; batch normalisation keeps its statistics; the encoding of places multiplies
        its matrix with numbers beyond what short ones resolve.
        """
        self.to(device)
        kept: set[nn.Module] = {self.encoder, *self.encoder.modules()} - set(self.encoder.vision_model.modules())
        kept |= {self.sam.shared_image_embedding, *self.prompter.text_blocks.modules()}
        for module in self.modules():
            if module in kept or isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)

    @classmethod
    def _build(cls, config: RSRefSeg2Config) -> RSRefSeg2:
        """The network without memory."""
        with torch.device("meta"):
            return cls(config)

    def _see(self, images: Tensor) -> ImageFeatures:
        dtype, side = self.prompter.patch_places.dtype, self.config.encoder_px
        maps = self.sam.vision_encoder(normalise(images, SAM_MEAN, SAM_STD).to(dtype)).fpn_hidden_states
        embedding = maps[2] + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)
        fine, finest = self.sam.mask_decoder.conv_s1(maps[1]), self.sam.mask_decoder.conv_s0(maps[0])
        small = resize(normalise(images, self.encoder.mean, self.encoder.std), side, side)
        return ImageFeatures(embedding, fine, finest, self.encoder.vision_model(pixel_values=small.to(dtype)).last_hidden_state)

    def _hear(self, ids: Tensor) -> Sentence:
        words, whole = self.encoder.hear(ids[None])
        return Sentence(*self.prompter.split(words), whole)

    def _answer(self, images: ImageFeatures, prompt: Sentence) -> Tensor:
        """Logits (B, 1, h, w) of one prompt in all images."""
        dtype, count = images.patches.dtype, len(images)
        one, two = (queries.to(dtype).expand(count, -1, -1) for queries in (prompt.one, prompt.two))
        sparse, refined = self.prompter.refine(images.patches, one, two)
        mask = self.prompter.dense(refined, prompt.whole.expand(count, -1), self.encoder.scale, self.encoder.bias)
        logits, *_ = self.sam.mask_decoder(
            image_embeddings=images.embedding,
            image_positional_embeddings=self.sam.get_image_wide_positional_embeddings().to(dtype).expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=self.sam.prompt_encoder.mask_embed(mask.to(dtype)),
            multimask_output=False,
            high_resolution_features=[images.finest, images.fine],
        )
        return logits[:, 0]


def _sam_config(config: RSRefSeg2Config) -> Sam2Config:
    widths, side, channels = config.sam_widths, config.low_res_px, config.sam_channels
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": config.sam_width,
        "num_attention_heads": config.sam_heads,
        "image_size": [config.image_px, config.image_px],
        "window_positional_embedding_background_size": [config.sam_background, config.sam_background],
        "blocks_per_stage": list(config.sam_blocks),
        "embed_dim_per_stage": list(widths),
        "num_attention_heads_per_stage": [config.sam_heads << stage for stage in range(len(widths))],
        "window_size_per_stage": list(config.sam_windows),
        "global_attention_blocks": list(config.sam_everywhere),
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": list(reversed(widths)),
        "backbone_feature_sizes": [[side >> level, side >> level] for level in range(3)],
        "fpn_hidden_size": channels,
    }
    prompts = {"hidden_size": channels, "image_size": config.image_px, "patch_size": STRIDE}
    assert side * FIRST_STRIDE == config.image_px
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config={"hidden_size": channels})


def _siglip_sizes(config: RSRefSeg2Config) -> Mapping[str, Any]:
    tower = {"hidden_size": config.width, "intermediate_size": config.mlp, "num_attention_heads": config.heads}
    words = {"vocab_size": config.vocabulary, "max_position_embeddings": config.most_tokens, "projection_size": config.width}
    image = {"image_size": config.encoder_px, "patch_size": config.patch_px}
    return {
        "text_config": tower | words | {"num_hidden_layers": config.text_layers},
        "vision_config": tower | image | {"num_hidden_layers": config.image_layers},
    }
