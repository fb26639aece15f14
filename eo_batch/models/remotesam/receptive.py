"""The receptive branch: a gate on every token from the local pattern of mean activations.

A one-channel net of two rounds; each round adds a 1x1 convolution, a 1x1 and 3x3 convolution, and the input itself, each
with batch normalisation (the form of RepVGG, arXiv 2101.03697).
"""

from __future__ import annotations

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReceptiveBranch(nn.Module):
    """A factor between 0 and 1 for every token; needs a square grid."""

    def __init__(self) -> None:
        super().__init__()
        self.repblock = RepBlock()

    def forward(self, x: Tensor) -> Tensor:
        """Factors (B, HW, 1) of tokens (B, HW, C)."""
        batch, count, _ = x.shape
        side = isqrt(count)
        mean = x.float().mean(-1).reshape(batch, 1, side, side).to(x.dtype)
        return self.repblock(mean).reshape(batch, count, 1)


class RepBlock(nn.Module):
    """The one-channel net; names end in `_2` in its second round."""

    def __init__(self) -> None:
        super().__init__()
        for suffix in ("", "_2"):
            self.add_module(f"brb_3x3{suffix}", _Local())
            self.add_module(f"brb_1x1{suffix}", _Point())
            self.add_module(f"brb_identity{suffix}", nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        """Gate (B, 1, h, w) of a map (B, 1, h, w)."""
        return torch.sigmoid(self._round(F.relu(self._round(x, "")), "_2"))

    def _round(self, x: Tensor, suffix: str) -> Tensor:
        branches = [self.get_submodule(f"brb_{name}{suffix}") for name in ("1x1", "3x3", "identity")]
        total: Tensor = branches[0](x) + branches[1](x) + branches[2](x)
        return total


class _Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _Local(nn.Module):
    """Zeros are padded after the inner normalisation, so the edge is not what one folded convolution would give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1)
        self.conv2 = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x))))
