"""The decoder: from the coarsest map to the finest, then two logits per position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.arithmetic import is_fast, linear
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
            for step, inputs in ((1, (x, skip)), (2, None)):
                layer, norm = self.get_submodule(f"conv{step}_{level}"), self.get_submodule(f"bn{step}_{level}")
                x = _convolve(inputs or (x,), layer, norm)
        tokens = linear(x.permute(0, 2, 3, 1), self.conv1_1.weight[..., 0, 0], self.conv1_1.bias)
        return tokens.permute(0, 3, 1, 2)


def _convolve(maps: tuple[Tensor, ...], layer: nn.Module, norm: nn.BatchNorm2d) -> Tensor:
    """ReLU of the normalised convolution of maps (B, C, h, w), channels together."""
    if norm.training or not is_fast(maps[0]):
        return F.relu(norm(layer(torch.cat(maps, 1))))
    batch = len(maps[0])
    kernels = layer.kernels(maps[0]) if isinstance(layer, RotatedConv) else layer.weight.expand(batch, -1, -1, -1, -1)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    out = maps[0].new_empty(batch, *maps[0].shape[2:], len(shift))
    for sample, kernel in enumerate(kernels):
        own = [x[sample].permute(1, 2, 0) for x in maps]
        convolve(own, kernel * scale[:, None, None, None], shift, out[sample])
    return out.permute(0, 3, 1, 2)


def enlarge(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """The map (B, C, h, w) resized bilinearly, corners on corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)
