"""SAM's and SigLIP's layers, computed with less memory and time; the weights and, up to rounding, the numbers are the library's.

Plainly computed, a layer of SAM that sees the whole picture adds a table (heads, 4096, 4096) to its scores: 0.8 GB at the
published sizes. Here some rows of some heads are computed at a time. Linear layers are `arithmetic`'s.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import GELUActivation, GELUTanh
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.sam.modeling_sam import SamMLPBlock, SamVisionAttention
from transformers.models.siglip.modeling_siglip import SiglipMLP

from eo_batch.models.arithmetic import Linear, by_rows, linear

TABLE_NUMBERS = {"cpu": 1 << 22}
"""Most numbers of the table at once, so that they stay in a processor's cache."""
OTHER_TABLE_NUMBERS = 1 << 28
FUSED = {GELUActivation: "gelu", GELUTanh: "gelu_tanh", nn.ReLU: "relu"}
"""The library's activations -> `arithmetic`'s."""


def use_fast_layers(network: nn.Module) -> None:
    """Let the layers of `network` compute as this module says."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif isinstance(module, SamVisionAttention):
            module.__class__ = PlacedAttention
        elif isinstance(module, SamMLPBlock):
            module.__class__ = SamMlp
        elif isinstance(module, (SiglipMLP, CLIPMLP)):
            module.__class__ = EncoderMlp


class PlacedAttention(SamVisionAttention):
    """Attention with relative places (arXiv 2112.01526), some rows of some heads at a time."""

    def forward(self, hidden_states: Tensor, output_attentions: Any = None) -> tuple[Tensor, None]:
        """Features (B, h, w, C) of features (B, h, w, C)."""
        batch, height, width, _ = hidden_states.shape
        count, heads = height * width, self.num_attention_heads
        parts = self.qkv(hidden_states).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.reshape(3, batch * heads, count, -1).unbind(0)
        rows, cols = (_between(self.rel_pos_h, height), _between(self.rel_pos_w, width)) if self.use_rel_pos else (None, None)
        room = TABLE_NUMBERS.get(query.device.type, OTHER_TABLE_NUMBERS)
        some_heads = max(1, room // count**2)
        some_rows = height if some_heads > 1 else min(height, max(1, room // (width * count)))
        made = torch.empty_like(query)
        for first in range(0, batch * heads, some_heads):
            here = slice(first, first + some_heads)
            for row in range(0, height, some_rows):
                places, of_rows = slice(row * width, (row + some_rows) * width), slice(row, row + some_rows)
                near = None if rows is None else rows[of_rows]
                made[here, places] = self._attend(query[here, places], key[here], value[here], near, cols)
        joined = made.reshape(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
        return self.proj(joined.reshape(batch, height, width, -1)), None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
        table = None
        if rows is not None and cols is not None:
            by_place = query.unflatten(1, (len(rows), len(cols)))
            of_rows = torch.einsum("bhwc,hkc->bhwk", by_place, rows)
            of_cols = torch.einsum("bhwc,wkc->bhwk", by_place, cols)
            table = (of_rows[..., None] + of_cols[..., None, :]).reshape(len(query), 1, query.shape[1], -1)
        dropout = self.dropout if self.training else 0.0
        query, key, value = query[:, None], key[:, None], value[:, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=table, dropout_p=dropout, scale=self.scale)[:, 0]


class SamMlp(SamMLPBlock):
    """Two linear layers, some places at a time."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Features of features (..., C)."""
        return _between_linear(hidden_states, self.lin1, self.act, self.lin2)


class EncoderMlp(SiglipMLP):
    """Two linear layers, some tokens at a time."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Features of features (..., C)."""
        return _between_linear(hidden_states, self.fc1, self.activation_fn, self.fc2)


def _between_linear(x: Tensor, first: nn.Linear, activation: nn.Module, second: nn.Linear) -> Tensor:
    name = FUSED.get(type(activation))

    def compute(rows: Tensor) -> tuple[Tensor]:
        if name is None:
            return (second(activation(first(rows))),)
        return (second(linear(rows, first.weight, first.bias, activation=name)),)

    (made,) = by_rows(compute, x.reshape(1, -1, x.shape[-1]))
    return made.reshape(*x.shape[:-1], -1)


def _between(table: Tensor, side: int) -> Tensor:
    """Vectors (side, side, C) of every query place and key place, from those of their differences (2 side - 1, C)."""
    steps = torch.arange(side, device=table.device)
    return table[steps[:, None] - steps + side - 1]
