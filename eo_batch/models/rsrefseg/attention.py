"""SAM's attention with relative places, without the table of all places in memory at once.

Plainly computed, a layer that sees the whole picture adds a table (heads, 4096, 4096) to its scores: 0.8 GB at the published
sizes. Here a few heads are computed at a time; the numbers are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamModel
from transformers.models.sam.modeling_sam import SamVisionAttention

TABLE_NUMBERS = 1 << 24
"""Most numbers of the table at once, unless one head has more."""


class PlacedAttention(SamVisionAttention):
    """The same weights, some heads at a time."""

    def forward(self, hidden_states: Tensor, output_attentions: Any = None) -> tuple[Tensor, None]:
        """Features (B, h, w, C) of features (B, h, w, C)."""
        batch, height, width, _ = hidden_states.shape
        count, heads = height * width, self.num_attention_heads
        parts = self.qkv(hidden_states).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.reshape(3, batch * heads, count, -1).unbind(0)
        rows = self._places(self.rel_pos_h, height) if self.use_rel_pos else None
        cols = self._places(self.rel_pos_w, width) if self.use_rel_pos else None
        step = max(1, TABLE_NUMBERS // count**2)
        made = [
            self._attend(query[first : first + step], key[first : first + step], value[first : first + step], rows, cols)
            for first in range(0, batch * heads, step)
        ]
        joined = torch.cat(made).reshape(batch, heads, height, width, -1).permute(0, 2, 3, 1, 4)
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

    @staticmethod
    def _places(table: Tensor, side: int) -> Tensor:
        """Vectors (side, side, C) of every query place and key place, from those of their differences (2 side - 1, C)."""
        steps = torch.arange(side, device=table.device)
        return table[steps[:, None] - steps + side - 1]


def use_placed_attention(sam: SamModel) -> None:
    """Replace the attention of every layer of SAM's image encoder; its weights must be set after this."""
    encoder = sam.vision_encoder
    for layer in encoder.layers:
        assert isinstance(layer.attn, nn.Module)
        layer.attn = PlacedAttention(encoder.config, layer.window_size)
