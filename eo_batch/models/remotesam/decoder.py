"""The decoder: from the coarsest map to the finest, then two logits per position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.remotesam.arithmetic import is_fast, linear
from eo_batch.models.remotesam.config import RemoteSAMConfig
from eo_batch.models.remotesam.rotated import RotatedConv
from eo_batch.models.remotesam.winograd import convolve

LEVELS = (4, 3, 2)
"""Names of the steps, coarsest first, as the keys spell them."""


class Decoder(nn.Module):
    """Three steps of: enlarge twice, join with the next finer map, convolve, convolve with rotated kernels."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        dim, previous = config.decoder_dim, config.dims[3]
        for level in LEVELS:
            self.add_module(f"conv1_{level}", nn.Conv2d(previous + config.dims[level - 2], dim, 3, padding=1, bias=False))
            self.add_module(f"bn1_{level}", nn.BatchNorm2d(dim))
            self.add_module(f"conv2_{level}", RotatedConv(dim))
            self.add_module(f"bn2_{level}", nn.BatchNorm2d(dim))
            previous = dim
        self.conv1_1 = nn.Conv2d(dim, 2, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, 2, h, w) on the finest grid; maps (B, C, h, w) of the four stages, finest first."""
        x = maps[3]
        for level in LEVELS:
            skip = maps[level - 2]
            if x.shape[2] < skip.shape[2] or x.shape[3] < skip.shape[3]:
                x = enlarge(x, skip.shape[2:])
            x = torch.cat((x, skip), 1)
            for step in (1, 2):
                x = _convolve(x, self.get_submodule(f"conv{step}_{level}"), self.get_submodule(f"bn{step}_{level}"))
        tokens = linear(x.permute(0, 2, 3, 1), self.conv1_1.weight[..., 0, 0], self.conv1_1.bias)
        return tokens.permute(0, 3, 1, 2)


def _convolve(x: Tensor, layer: nn.Module, norm: nn.BatchNorm2d) -> Tensor:
    """ReLU of the normalised convolution."""
    if norm.training or not is_fast(x):
        return F.relu(norm(layer(x)))
    kernels = layer.kernels(x) if isinstance(layer, RotatedConv) else layer.weight.expand(len(x), -1, -1, -1, -1)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    tokens = x.permute(0, 2, 3, 1)
    made = [convolve(own, kernel * scale[:, None, None, None], shift) for own, kernel in zip(tokens, kernels, strict=True)]
    return torch.stack(made).permute(0, 3, 1, 2)


def enlarge(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """The map (B, C, h, w) resized bilinearly, corners on corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
