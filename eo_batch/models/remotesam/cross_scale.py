"""The cross-scale module: all four stages talk to each other on the coarsest grid and gate every stage with the result.

It fixes the size of the window: two of its layers mix tokens, and so their weights know how many there are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.arithmetic import Linear, linear
from eo_batch.models.remotesam.config import RemoteSAMConfig


class Residual(nn.Module):
    """x + m(x)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        """The sum, in the shape of x."""
        return x + self.m(x)


class CrossScale(nn.Module):
    """Four maps in, the same four maps out, each gated by all."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        dim = config.cross_dim
        self.dims = config.dims
        self.down_channel = nn.Conv2d(4 * dim, dim, 1)
        self.up_channel = nn.Conv2d(dim, 4 * dim, 1)
        self.bn = nn.BatchNorm2d(dim)
        self.block = nn.ModuleList([_Block(config)])
        self.fusion = nn.ModuleList([ScaleGate(channels) for channels in config.dims])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Gated maps, finest first.

        Parameters
        ----------
        maps : (B, C, h, w) of the four stages, finest first.
        """
        x = _mix(self.down_channel, self.pool(maps))
        for block in self.block:
            x = block(x)
        parts = _mix(self.up_channel, self.bn(x)).split(self.dims, 1)
        return [gate(own, part) for gate, own, part in zip(self.fusion, maps, parts, strict=True)]

    @staticmethod
    def pool(maps: list[Tensor]) -> Tensor:
        """All maps on the coarsest grid, channels together."""
        size = maps[-1].shape[2:]
        return torch.cat([F.adaptive_avg_pool2d(x, size) for x in maps], 1)


class _Block(nn.Module):
    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        self.csa1 = Residual(ScaleAttention(config))
        self.intra_ff = Residual(_SliceFeedForward([dim // 4 for dim in config.dims]))
        self.csa2 = Residual(ScaleAttention(config))
        self.ff = Residual(FeedForward(config.cross_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.ff(self.csa2(self.intra_ff(self.csa1(x))))


class ScaleAttention(nn.Module):
    """Attention over the tokens of a map and of two coarser versions of it."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        dim = config.cross_dim
        self.bn1 = nn.BatchNorm2d(dim)
        self.DWConv1 = nn.Sequential(nn.Conv2d(dim, dim, 3, 2, 1, groups=dim), nn.BatchNorm2d(dim))
        self.DWConv2 = nn.Sequential(nn.Conv2d(dim, dim, 5, 3, 2, groups=dim), nn.BatchNorm2d(dim))
        self.attention = _TokenAttention(config)
        self.bn4 = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) of the same shape."""
        x = self.bn1(x)
        tokens = torch.cat([part.flatten(2) for part in (x, self.DWConv1(x), self.DWConv2(x))], 2).transpose(1, 2)
        attended = self.attention(tokens).transpose(1, 2).reshape(x.shape)
        return _mix(self.conv, F.hardswish(self.bn4(attended)))


class _TokenAttention(nn.Module):
    """The published weights were trained with two arrays read in another layout than they were written in; so is this."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        self.tokens, everything = config.cross_tokens
        self.side = config.grids[-1]
        self.heads, self.key_dim, self.value_dim = config.cross_heads, config.cross_key_dim, config.cross_value_dim
        inner = self.heads * self.value_dim
        self.qkv = _LinearNorm(config.cross_dim, self.heads * (2 * self.key_dim + self.value_dim))
        self.parallel_conv = nn.Sequential(nn.Hardswish(), nn.Conv2d(inner, inner, 3, padding=1, groups=inner))
        self.to_out = Linear(inner, config.cross_dim)
        self.proj = Linear(everything, self.tokens)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        inner = self.heads * self.value_dim
        qkv = self.qkv(x).reshape(batch, count, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.split((self.key_dim, self.key_dim, self.value_dim), -1)
        score = (q @ k.transpose(-1, -2)).float() * self.key_dim**-0.5
        attended = (score.softmax(-1).to(v.dtype) @ v).transpose(1, 2)
        # (B, token, channel) memory read as (B, channel, token), and (B, head, token, channel) memory read as a map.
        mixed = self.proj(attended.reshape(batch, count, inner).reshape(batch, inner, count))
        local = v[:, :, : self.tokens].reshape(batch, inner, self.side, self.side)
        return self.to_out((mixed + self.parallel_conv(local).flatten(2)).transpose(1, 2))


class _LinearNorm(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.c = Linear(dim, out, bias=False)
        self.bn = nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape(x.shape)


class FeedForward(nn.Module):
    """Widens the channels to twice, mixes neighbours, narrows them again."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv1 = nn.Conv2d(dim, 2 * dim, 1)
        self.bn2 = nn.BatchNorm2d(2 * dim)
        self.conv2 = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=dim)
        self.conv3 = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map of the same shape."""
        return _mix(self.conv3, F.relu6(self.conv2(self.bn2(_mix(self.conv1, self.bn1(x))))))


class _SliceFeedForward(nn.Module):
    """One feed-forward per stage's share of the channels."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims
        for number, dim in enumerate(dims, 1):
            self.add_module(f"ff{number}", Residual(FeedForward(dim)))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.dims, 1)
        return torch.cat([self.get_submodule(f"ff{number}")(part) for number, part in enumerate(parts, 1)], 1)


class ScaleGate(nn.Module):
    """A stage's own map, scaled and shifted by what the cross-scale block says about it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local_embedding = nn.Conv2d(dim, dim, 1)
        self.bn1 = nn.BatchNorm2d(dim)
        self.global_embedding = nn.Conv2d(dim, dim, 1)
        self.bn2 = nn.BatchNorm2d(dim)
        self.global_act = nn.Conv2d(dim, dim, 1)
        self.bn3 = nn.BatchNorm2d(dim)

    def forward(self, own: Tensor, shared: Tensor) -> Tensor:
        """Map in the shape of `own`; `shared` is resized bilinearly to it."""
        scale = F.relu6(self.bn3(_mix(self.global_act, shared)) + 3) / 6
        shift = self.bn2(_mix(self.global_embedding, shared))
        return torch.addcmul(_resize(shift, own), self.bn1(_mix(self.local_embedding, own)), _resize(scale, own))


def _mix(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution as a linear layer of every position."""
    return linear(x.permute(0, 2, 3, 1), conv.weight[..., 0, 0], conv.bias).permute(0, 3, 1, 2)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
