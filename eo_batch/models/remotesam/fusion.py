"""Language meets image: every token asks the words of the prompt (the pixel-word attention of LAVT, arXiv 2112.02244)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eo_batch.models.arithmetic import ROWS, linear

INSTANCE_EPS = 1e-5
PADDING_SCORE = -10000.0
"""Added to the attention to padding tokens."""


class Words(NamedTuple):
    """What one stage asks of a prompt: the part of its fusion that no image changes.

    Parameters
    ----------
    key : (P, C, T), scaled by C ** -0.5; zero at padding.
    value : (P, T, C), after the output projection; the projection of zero at padding.
    score : (P, 1, T), float32: 0 for a token, -10000 for padding.
    """

    key: Tensor
    value: Tensor
    score: Tensor


class WordAttention(nn.Module):
    """One-head attention from image tokens to words. Instance norms and softmax are computed in float32."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.f_key = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.f_query = nn.Sequential(nn.Conv1d(dim, dim, 1))
        self.f_value = nn.Sequential(nn.Conv1d(text_dim, dim, 1))
        self.W = nn.Sequential(nn.Conv1d(dim, dim, 1))

    def words(self, hidden: Tensor, mask: Tensor) -> Words:
        """Keys and values of text features (P, T, text_dim); mask (P, T), 1 for a token.

        The output projection W is linear and the attention sums to one, so W may act on the values: W(sum a v) = sum a W(v).
        """
        known = mask.to(hidden.dtype)[..., None]
        key = pointwise(self.f_key[0], hidden) * known
        value = pointwise(self.W[0], pointwise(self.f_value[0], hidden) * known)
        score = (1 - mask.float())[:, None] * PADDING_SCORE
        return Words(key.transpose(1, 2) * key.shape[-1] ** -0.5, value, score)

    def query(self, x: Tensor) -> Tensor:
        """What the tokens ask, (B, HW, C), before its instance norm."""
        return pointwise(self.f_query[0], x)

    def forward(self, query: Tensor, words: Words) -> Tensor:
        """What the words answer to normalised queries, (B, HW, C), before its instance norm."""
        score = (query @ words.key).float() + words.score
        return score.softmax(-1).to(query.dtype) @ words.value


class LanguageFusion(nn.Module):
    """Image tokens, each changed by what the words say about it."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.vis_project = nn.Sequential(nn.Conv1d(dim, dim, 1))
        self.image_lang_att = WordAttention(dim, text_dim)
        self.project_mm = nn.Sequential(nn.Conv1d(dim, dim, 1))

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The part that no prompt changes: projected tokens, and queries before their instance norm, each (B, HW, C)."""
        return pointwise(self.vis_project[0], x, activation="gelu"), self.image_lang_att.query(x)

    def fuse(self, look: Tensor, said: Tensor) -> Tensor:
        """Fused tokens (B, HW, C) of what `look` gave and the normalised answer of the words."""
        return pointwise(self.project_mm[0], look * said, activation="gelu")


def pointwise(conv: nn.Conv1d, x: Tensor, *, activation: str = "none") -> Tensor:
    """A convolution of width one as what it is on tokens (..., C): a linear layer."""
    return linear(x, conv.weight[..., 0], conv.bias, activation=activation)


class InstanceNorm:
    """Makes tokens (B, HW, C) have mean 0 and variance 1 over HW, in float32 (arXiv 1607.08022, without scale)."""

    def __init__(self, x: Tensor) -> None:
        self._mean = x.mean(1, keepdim=True, dtype=torch.float32)
        squares = [(part.float() - self._mean).square().sum(1, keepdim=True) for part in x.split(ROWS, 1)]
        variance = torch.stack(squares).sum(0) / x.shape[1]
        self._scale = torch.rsqrt(variance + INSTANCE_EPS)

    def __call__(self, x: Tensor) -> Tensor:
        """Some or all of the tokens, normalised by the figures of all."""
        return ((x.float() - self._mean) * self._scale).to(x.dtype)
