"""SAM's mask decoder for one mask per image: its weights, in an order of work that copies little.

The library computes three more masks and a guess of their quality, and carries maps from channels first to channels last and
back. Here everything stays with channels last: an upsampling convolution whose stride is its kernel is a linear layer whose
answers are put in their places at the very end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamMaskDecoder

from eo_batch.models.arithmetic import by_rows, linear


def draw_mask(decoder: SamMaskDecoder, image: Tensor, places: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
    """Logits (B, 1, 4 g, 4 g) of SAM's first mask.

    Parameters
    ----------
    image : (B, g, g, C), SAM's embedding of the image.
    places : (1, C, g, g), its encoding of places.
    sparse : (B, tokens, C), prompts.
    dense : (B, C, g, g), what the mask prompt adds to the image.
    """
    side = image.shape[1]
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(len(image), -1, -1), sparse.to(own.dtype)], dim=1)
    seen = (image.flatten(1, 2) + dense.flatten(2).transpose(1, 2).contiguous()).transpose(1, 2).unflatten(2, (side, side))
    answered, keys = decoder.transformer(
        point_embeddings=tokens[:, None],
        image_embeddings=seen,
        image_positional_embeddings=places,
        attention_similarity=None,
    )
    filters = decoder.output_hypernetworks_mlps[0](answered[:, 0, 1])  # the tokens are: quality, first mask, others
    pixels = _enlarge(decoder, keys[:, 0]) @ filters[:, :, None]
    by_place = pixels.reshape(-1, side, side, 2, 2, 2, 2)  # y, x, then halves of y and x, twice
    return by_place.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 1, 4 * side, 4 * side)


def _enlarge(decoder: SamMaskDecoder, keys: Tensor) -> Tensor:
    """Features (B, 16 N, C / 8) of N places (B, N, C): 4 x 4 for each, the quarter of a place before the quarter of that."""
    first, norm, second = decoder.upscale_conv1, decoder.upscale_layer_norm, decoder.upscale_conv2

    def compute(rows: Tensor) -> tuple[Tensor]:
        x = linear(rows, _as_linear(first), first.bias.repeat(4)).unflatten(-1, (4, -1))
        x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        return (linear(x, _as_linear(second), second.bias.repeat(4), activation="gelu").flatten(2),)

    (made,) = by_rows(compute, keys)
    return made.reshape(len(keys), 16 * keys.shape[1], -1)


def _as_linear(layer: nn.ConvTranspose2d) -> Tensor:
    """Weights (4 out, in) of a transposed convolution of kernel and stride 2; its four places before its channels."""
    return layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
