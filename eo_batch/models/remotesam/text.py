"""The text encoder: BERT without pooler (arXiv 1810.04805), last hidden state of every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from eo_batch.models.remotesam.config import RemoteSAMConfig


class TextEncoder(BertModel):
    """BERT of `config`'s sizes; keys are those of the published checkpoint."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        sizes = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.text_dim,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=config.text_ffn_dim,
            max_position_embeddings=config.text_positions,
            type_vocab_size=2,
            layer_norm_eps=1e-12,
            hidden_act="gelu",
        )
        sizes._attn_implementation = "sdpa"
        super().__init__(sizes, add_pooling_layer=False)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features (B, T, text_dim) of tokens (B, T) int64; mask 1 where there is a token, 0 where there is padding."""
        answer = self(input_ids=input_ids, attention_mask=attention_mask)
        features: Tensor = answer.last_hidden_state
        return features

    def reset_buffers(self) -> None:
        """Write the position and type numbers, which no checkpoint holds."""
        embeddings: nn.Module = self.embeddings
        embeddings.position_ids.copy_(torch.arange(self.config.max_position_embeddings)[None])
        embeddings.token_type_ids.zero_()
