"""The blocks of a Swin transformer for dense maps (arXiv 2103.14030): any grid, padded to whole attention windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.arithmetic import ROWS, Linear, by_rows, is_fast, linear
from eo_batch.models.remotesam.config import PATCH_PX
from eo_batch.models.remotesam.windows import WindowBand, window_bands


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
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, ceil(h/2), ceil(w/2), 2C) of tokens (B, h, w, C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        cells = torch.cat(corners, -1)
        (merged,) = by_rows(lambda part: (self.reduction(self.norm(part)),), cells.flatten(1, 2))
        return merged.unflatten(1, cells.shape[1:3])


class WindowAttention(nn.Module):
    """Self-attention inside square windows of tokens, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.scale = (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", torch.zeros(window**2, window**2, dtype=torch.int64))
        self.reset_buffers()
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def reset_buffers(self) -> None:
        """Write which row of the table each pair (query, key) of a window reads."""
        side = torch.arange(self.window)
        row, col = torch.meshgrid(side, side, indexing="ij")
        dy = row.reshape(-1, 1) - row.reshape(1, -1) + self.window - 1
        dx = col.reshape(-1, 1) - col.reshape(1, -1) + self.window - 1
        self.relative_position_index.copy_(dy * (2 * self.window - 1) + dx)

    def position_bias(self) -> Tensor:
        """What is added to the attention of every window, (1, heads, query, key)."""
        size = self.window**2
        table = self.relative_position_bias_table[self.relative_position_index.reshape(-1)]
        return table.reshape(size, size, self.heads).permute(2, 0, 1)[None]

    def forward(self, x: Tensor, band: WindowBand, bias: Tensor) -> Tensor:
        """Attended tokens of a band, (B, n, C), in its order; query, key and value of padding are the layer's bias."""
        batch, _, dim = x.shape
        qkv = self.qkv(x)
        if band.is_padded:
            padded = self.qkv.bias.to(qkv.dtype).repeat(batch, band.count * self.window**2, 1)
            qkv = padded.index_copy_(1, band.slots, qkv)
        qkv = qkv.reshape(batch, band.count, self.window**2, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        parts = []
        for first, end, mask in band.groups:
            q, k, v = (part[:, first:end].flatten(0, 1) for part in qkv)
            score = (bias if mask is None else bias + mask).to(q.dtype)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=score, scale=self.scale)
            parts.append(attended.transpose(1, 2).reshape(batch, -1, dim))
        attended = torch.cat(parts, 1)
        return self.proj(attended[:, band.slots] if band.is_padded else attended)


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of the same shape."""
        return self.fc2(linear(x, self.fc1.weight, self.fc1.bias, activation="gelu"))


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
        height, width = x.shape[1:3]
        tokens, bias = x.flatten(1, 2), self.attn.position_bias()
        out = torch.empty_like(tokens)
        rows = ROWS if is_fast(x) else height * width
        for band in window_bands(height, width, self.window, self.shift, rows, x.device):
            own = tokens[:, band.tokens]
            out.index_copy_(1, band.tokens, own + self.attn(self.norm1(own), band, bias))
        (out,) = by_rows(lambda part: (part + self.mlp(self.norm2(part)),), out)
        return out.unflatten(1, (height, width))
