"""RSRefSeg: an image and a sentence in, one logit per pixel out (arXiv 2501.06809).

More than 99 % of the work does not know the sentence: SAM's image encoder, SigLIP's image half, and the convolution of its
patches. `encode_images` is this part; `encode_prompts` is SigLIP's text half; `decode` is the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg.config import RSRefSegConfig
from eo_batch.models.rsrefseg.drawing import draw_mask
from eo_batch.models.rsrefseg.encoders import build_encoder, make_positions
from eo_batch.models.rsrefseg.layers import use_fast_layers
from eo_batch.models.rsrefseg.mapping import check_count, from_hub, from_upstream
from eo_batch.models.rsrefseg.pictures import SAM_MEAN, SAM_STD, normalise, resize
from eo_batch.models.rsrefseg.prompter import AttnPrompter, agreement
from eo_batch.models.rsrefseg.shapes import check_images, checked_tokens
from eo_batch.models.weights import ALIGNED_BYTES, load_strictly

_WHERE = "RSRefSeg"


@dataclass(frozen=True)
class PromptFeatures:
    """Prompts as the network needs them, made once for all images.

    Parameters
    ----------
    prompts : per prompt its words (L, D) and its sentence (D,), float32, of unit length.
    """

    prompts: tuple[tuple[Tensor, Tensor], ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class ImageFeatures:
    """Images as the network needs them, made once for all prompts.

    Parameters
    ----------
    embedding : (B, g, g, C), SAM's.
    directions : (B, n, n, D) float32, patches of the text/image encoder, of unit length.
    maps : (B, 3, C, n, n), the same patches through the prompter's channel convolution.
    """

    embedding: Tensor
    directions: Tensor
    maps: Tensor

    def __len__(self) -> int:
        return len(self.embedding)

    def split(self) -> Iterable[ImageFeatures]:
        """One image each, beginning in memory as tensors of torch do: products may round otherwise where they do not."""
        parts = ([_aligned(one) for one in part.split(1)] for part in (self.embedding, self.directions, self.maps))
        return (ImageFeatures(*one) for one in zip(*parts, strict=True))


class RSRefSeg(nn.Module):
    """The network: `sam` (SamModel), `encoder` (SiglipModel or CLIPModel) and `prompter`."""

    def __init__(self, config: RSRefSegConfig) -> None:
        super().__init__()
        self.config = config
        self.sam = SamModel(SamConfig(**{name: dict(part) for name, part in config.sam.items()}))
        del self.sam.prompt_encoder.shared_embedding  # only points need this copy, and there are none
        self.sam.shared_image_embedding.requires_grad_(False)
        self.encoder = build_encoder(config)
        self.prompter = AttnPrompter(config)
        use_fast_layers(self)
        self._grids: tuple[Tensor, tuple[Any, ...], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def from_config(cls, config: RSRefSegConfig, *, is_trainable: bool = True) -> RSRefSeg:
        """A network of these sizes, in evaluation mode, on the CPU.

        Parameters
        ----------
        is_trainable : give it first weights to train from, from torch's global random state; otherwise its weights hold
            no meaning until others are loaded, which is faster.
        """
        if is_trainable:
            network = cls(config)
            network.prompter.initialise()
            return network.eval()
        network = cls._build(config).to_empty(device="cpu")
        make_positions(network)
        return network.eval()

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], config: RSRefSegConfig, *, where: str = "weights") -> RSRefSeg:
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
        load_strictly(network, tensors, where=where)
        make_positions(network)
        return network.eval()

    @classmethod
    def from_upstream(cls, state: Mapping[str, Any], config: RSRefSegConfig, *, where: str = "checkpoint") -> RSRefSeg:
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

    @classmethod
    def from_foundation(
        cls, encoder: Mapping[str, Tensor], sam: Mapping[str, Tensor], config: RSRefSegConfig, *, where: str = "weights"
    ) -> RSRefSeg:
        """A network to train: foundation models as published, and a fresh prompter from torch's global random state.

        Parameters
        ----------
        encoder, sam : tensors of SiglipModel (or CLIPModel) and of SamModel by name, as on the Hugging Face hub.
        where : the files, for messages.

        Raises
        ------
        ModelError : `model-load`.
        """
        built = cls._build(config).state_dict()
        founded = from_hub(encoder, sam, built, where=where)
        prompter = AttnPrompter(config)
        prompter.initialise()
        fresh = {f"prompter.{name}": tensor for name, tensor in prompter.state_dict().items()}
        return cls.from_state(founded | fresh, config, where=where)

    def forward(self, images: Tensor, prompts: Sequence[Tensor]) -> Tensor:
        """Logits (B, 1, h, w) of B pairs of image and prompt.

        Parameters
        ----------
        images : (B, 3, S, S), red, green, blue, 0 to 1.
        prompts : B times tokens (L,), whole numbers, the end of the sentence included; never padded.

        Raises
        ------
        ModelError : `model-shape`: a shape the network has no weights for.
        """
        self._check_images(images)
        if len(images) != len(prompts):
            what = f"{len(images)} images and {len(prompts)} prompts are no pairs"
            raise ModelError("model-shape", what, where=_WHERE, fix="Give one prompt for each image.")
        words = [self._hear(ids) for ids in self._checked(prompts)]
        return self._answer(self._see(images), words)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> ImageFeatures:
        """Features of images (B, 3, S, S), red, green, blue, 0 to 1; on a CPU an image's do not depend on the others.

        Raises
        ------
        ModelError : `model-shape`.
        """
        self._check_images(images)
        if images.device.type != "cpu" or len(images) == 1:
            return self._see(images)
        seen = [self._see(image) for image in images.split(1)]
        parts = ([getattr(one, name) for one in seen] for name in ("embedding", "directions", "maps"))
        return ImageFeatures(*(torch.cat(part) for part in parts))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[Tensor]) -> PromptFeatures:
        """Features of prompts, each whole numbers (L,) or (1, L) with the end of the sentence; each is encoded alone.

        Raises
        ------
        ModelError : `model-shape`.
        """
        return PromptFeatures(tuple(self._hear(ids) for ids in self._checked(prompts)))

    @torch.no_grad()
    def decode(self, images: ImageFeatures, prompts: PromptFeatures) -> Tensor:
        """Logits (B, P, h, w), float32, of every prompt in every image; on a CPU one pair at a time."""
        side = self.config.low_res_px
        made = images.embedding.new_empty(len(images), len(prompts), side, side, dtype=torch.float32)
        some = [images] if images.embedding.device.type != "cpu" else list(images.split())
        for number, prompt in enumerate(prompts.prompts):
            first = 0
            for part in some:
                made[first : first + len(part), number] = self._answer(part, [prompt])[:, 0].float()
                first += len(part)
        return made

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network to `device` and make its numbers `dtype`, but those that would lose by it.

        Prompts are encoded once per run and compared in float32; batch normalisation keeps its statistics; SAM's encoding of
        places multiplies its matrix with numbers beyond what short ones resolve.
        """
        self.to(device)
        kept: set[nn.Module] = {self.encoder, *self.encoder.modules()} - set(self.encoder.vision_model.modules())
        if self.config.clip is not None:
            kept -= {self.encoder.visual_projection}
        kept.add(self.sam.shared_image_embedding)
        for module in self.modules():
            if module in kept or isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)

    @classmethod
    def _build(cls, config: RSRefSegConfig) -> RSRefSeg:
        """The network without memory."""
        with torch.device("meta"):
            return cls(config)

    def _see(self, images: Tensor) -> ImageFeatures:
        dtype, side = self.prompter.channel.conv.weight.dtype, self.config.encoder_px
        embedding = self.sam.vision_encoder(normalise(images, SAM_MEAN, SAM_STD).to(dtype)).last_hidden_state
        small = resize(normalise(images, self.encoder.mean, self.encoder.std), side, side)
        patches = self.encoder.see(small.to(dtype))
        return ImageFeatures(embedding.permute(0, 2, 3, 1), _unit(patches, 1).permute(0, 2, 3, 1), self.prompter.maps(patches))

    def _hear(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        words, sentence = self.encoder.hear(ids[None])
        return _unit(words[0], 1), _unit(sentence[0], 0)

    def _answer(self, images: ImageFeatures, prompts: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Logits (B, 1, h, w): of one prompt in all images, or of each image's own."""
        scale, bias = self.encoder.scale, self.encoder.bias
        seen = [images.directions] if len(prompts) == 1 else images.directions.split(1)
        pairs = [agreement(some, *prompt, scale, bias) for some, prompt in zip(seen, prompts, strict=True)]
        words, sentence = (torch.cat(part) for part in zip(*pairs, strict=True))
        of_patches, of_image = self._places()
        sparse, mask = self.prompter(images.maps, words, sentence, of_patches)
        _, dense = self.sam.prompt_encoder(None, None, None, mask)
        return draw_mask(self.sam.mask_decoder, images.embedding, of_image, sparse, dense)

    def _places(self) -> tuple[Tensor, Tensor]:
        """SAM's encoding of the places of patches (1, C, n, n) and of its own embedding (1, C, g, g)."""
        matrix = self.sam.shared_image_embedding.positional_embedding
        dtype = self.prompter.channel.conv.weight.dtype
        if torch.is_grad_enabled():
            return self._encode_places(dtype)
        state = matrix.data_ptr(), 0 if matrix.is_inference() else matrix._version, dtype
        known = self._grids
        if known is None or known[0] is not matrix or known[1] != state:
            known = self._grids = matrix, state, self._encode_places(dtype)
        return known[2]

    def _encode_places(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        table = self.sam.shared_image_embedding
        made = []
        for side in (self.config.grid, self.config.sam_grid):
            steps = (torch.arange(side, device=table.positional_embedding.device) + 0.5) / side
            y, x = torch.meshgrid(steps, steps, indexing="ij")
            made.append(table(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None].to(dtype))
        return made[0], made[1]

    def _check_images(self, images: Tensor) -> None:
        check_images(images, self.config.image_px, where=_WHERE)

    def _checked(self, prompts: Sequence[Tensor]) -> list[Tensor]:
        most, words = self.config.most_tokens, self.config.vocabulary
        return [checked_tokens(ids, most=most, words=words, where=_WHERE) for ids in prompts]


def _unit(vectors: Tensor, axis: int) -> Tensor:
    vectors = vectors.float()
    return vectors / vectors.norm(dim=axis, keepdim=True)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNED_BYTES else tensor
