"""From the text/image encoder to SAM: where a sentence agrees with an image becomes prompts (arXiv 2501.06809, AttnPrompter).

The filters that words put on the patches are one number per patch, and the convolution after them is linear; so the costly part,
convolving the patches, belongs to the image (`AttnPrompter.maps`), and a prompt only weights its result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.rsrefseg.config import RSRefSegConfig

VIEWS = 3
"""The patches as the words see them, as the sentence sees them, and as they are."""


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, GELU; the convolution alone at the end of the prompter."""

    def __init__(self, inside: int, outside: int, kernel: int, *, is_last: bool = False) -> None:
        super().__init__()
        stride, padding = (2, 1) if kernel > 1 else (1, 0)
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=is_last)
        if not is_last:
            self.bn = nn.BatchNorm2d(outside)
        self.is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, outside, h', w') of maps (B, inside, h, w)."""
        x = self.conv(x)
        return x if self.is_last else self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution; normalised in the number type of its statistics."""
        return F.gelu(self.bn(x.to(self.bn.weight.dtype))).to(x.dtype)


class AttnPrompter(nn.Module):
    """Prompts for SAM from the agreement of patches with words and with the sentence.

    Parameters
    ----------
    config : `down_spatial_times` halvings of the grid; `with_dense_feat`: a map for SAM's mask prompt as well.
    """

    def __init__(self, config: RSRefSegConfig) -> None:
        super().__init__()
        width, times = config.sam_width, config.down_spatial_times
        self.with_dense_feat = config.with_dense_feat
        self.dense_px = config.low_res_px
        self.channel = ConvNorm(VIEWS * config.width, width, 1)
        halvings = [ConvNorm(width, width, 3) for _ in range(times)]
        self.spatial = nn.ModuleList([*halvings, ConvNorm(width, width, 1, is_last=True)])

    def maps(self, patches: Tensor) -> Tensor:
        """The linear part of the channel convolution (B, 3, C, n, n), one map per view, of patches (B, D, n, n)."""
        views = self.channel.conv.weight.chunk(VIEWS, dim=1)
        return torch.stack([F.conv2d(patches, weight) for weight in views], dim=1)

    def forward(self, maps: Tensor, words: Tensor, sentence: Tensor, grid: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sparse prompts (B, tokens, C) and the mask prompt (B, 1, side, side), None without the dense path.

        Parameters
        ----------
        maps : (B, 3, C, n, n) of `maps`.
        words : (B, n, n) float32, mean agreement of a patch with the words, 0 to 1.
        sentence : (B, n, n) float32, agreement with the sentence as a logit.
        grid : (1, C, n, n), SAM's encoding of the places of patches.
        """
        weights = torch.stack([(1 + words) / 2, torch.sigmoid(sentence)], dim=1).to(maps.dtype)
        mixed = maps[:, 0] * weights[:, :1] + maps[:, 1] * weights[:, 1:] + maps[:, 2]
        x = self.channel.finish(mixed) + grid
        for layer in self.spatial:
            x = layer(x)
        sparse = x.flatten(2).transpose(1, 2)
        if not self.with_dense_feat:
            return sparse, None
        size = (self.dense_px, self.dense_px)
        return sparse, F.interpolate(sentence[:, None], size, mode="bilinear", align_corners=False).to(maps.dtype)

    @torch.no_grad()
    def initialise(self) -> None:
        """First weights to train from: He normal over outputs for convolutions, normalisation without effect."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()


def agreement(directions: Tensor, words: Tensor, sentence: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Mean agreement of patches with the words (B, n, n), 0 to 1, and with the sentence as a logit (B, n, n); float32.

    Parameters
    ----------
    directions : (B, n, n, D) float32, patches of unit length.
    words, sentence : (L, D) and (D,) float32, of unit length; the end of the sentence is a word too.
    scale, bias : (1,) of the text/image encoder: logit = exp(scale) * cosine + bias.
    """
    queries = torch.cat([words, sentence[None]])
    logits = scale.float().exp() * torch.einsum("ld,byxd->blyx", queries, directions) + bias.float()
    return torch.sigmoid(logits[:, :-1]).mean(dim=1), logits[:, -1]
