"""The blocks of a Swin transformer for dense maps (arXiv 2103.14030): any grid, padded to whole attention windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.remotesam.config import PATCH_PX

SHIFT_MASK = -100.0
"""Added to attention between tokens that are neighbours only because the grid was rolled."""


class PatchEmbedding(nn.Module):
    """Pixels to tokens: one per square of 4 x 4 pixels; the right and bottom edge are padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH_PX, PATCH_PX)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens (B, h, w, C) of pixels (B, 3, H, W)."""
        height, width = pixels.shape[2:]
        pixels = F.pad(pixels, (0, -width % PATCH_PX, 0, -height % PATCH_PX))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Four tokens to one of twice the channels; odd grids are padded with zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, ceil(h/2), ceil(w/2), 2C) of tokens (B, h, w, C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(corners, -1)))


class WindowAttention(nn.Module):
    """Self-attention inside square windows of tokens, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", torch.zeros(window**2, window**2, dtype=torch.int64))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def reset_buffers(self) -> None:
        """Write which row of the table each pair (query, key) of a window reads."""
        side = torch.arange(self.window)
        row, col = torch.meshgrid(side, side, indexing="ij")
        dy = row.reshape(-1, 1) - row.reshape(1, -1) + self.window - 1
        dx = col.reshape(-1, 1) - col.reshape(1, -1) + self.window - 1
        self.relative_position_index.copy_(dy * (2 * self.window - 1) + dx)

    def position_bias(self) -> Tensor:
        """What is added to the attention of every window, (heads, query, key)."""
        size = self.window**2
        table = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
        return table.reshape(size, size, self.heads).permute(2, 0, 1)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attended tokens.

        Parameters
        ----------
        windows : (B * n, window * window, C), the n windows of each grid together.
        mask : (n, query, key), added to the attention; None: nothing.
        """
        count, size, dim = windows.shape
        q, k, v = self.qkv(windows).reshape(count, size, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.position_bias()[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(count, size, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Window attention and MLP, each with LayerNorm before and residual around; odd blocks shift the windows by half."""

    def __init__(self, dim: int, heads: int, window: int, mlp_ratio: int, *, is_shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if is_shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, h, w, C) of the same shape."""
        x = x + self._attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, cols = x.shape[1] // self.window, x.shape[2] // self.window
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(rows, cols, self.window, self.shift, x)
        x = x.reshape(batch, rows, self.window, cols, self.window, dim).transpose(2, 3)
        x = self.attn(x.reshape(-1, self.window**2, dim), mask)
        x = x.reshape(batch, rows, cols, self.window, self.window, dim).transpose(2, 3)
        x = x.reshape(batch, rows * self.window, cols * self.window, dim)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


def shift_mask(rows: int, cols: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Mask (rows * cols, query, key) that parts what rolling the grid has joined."""
    part = torch.zeros(rows * window, cols * window, device=like.device)
    for edge in (window, shift):
        part[-edge:] += 1
        part[:, -edge:] += 3
    part = part.reshape(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, -1)
    return torch.where(part[:, None] == part[:, :, None], 0.0, SHIFT_MASK).to(like.dtype)
