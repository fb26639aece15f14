"""The bridge from SigLIP 2 to SAM 2: a sentence is split in two, each half refines the patches, what is left becomes prompts.

After arXiv 2507.06231 ("cascaded second-order prompter"). Every step adds its answer to what it had and normalises the sum. Where
a query, a patch or a prompt stands is added to what asks and to what is asked, never to what is answered.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.rsrefseg2.config import RSRefSeg2Config


class Attention(nn.Module):
    """Attention with several heads between features of two widths."""

    def __init__(self, asking: int, asked: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(asking, inner)
        self.k_proj = nn.Linear(asked, inner)
        self.v_proj = nn.Linear(asked, inner)
        self.out_proj = nn.Linear(inner, asking)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Answers (B, n, asking) to queries (B, n, asking) from keys and values (B, m, asked)."""
        given = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        parts = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in given)
        return cast(Tensor, self.out_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers and a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, n, width) of features (B, n, width)."""
        return cast(Tensor, self.outer(F.gelu(self.inner(x))))


class Step(nn.Module):
    """Attention and, where `has_mlp`, an MLP; each added to what came in and normalised."""

    def __init__(self, asking: int, asked: int, config: RSRefSeg2Config, *, has_mlp: bool = True) -> None:
        super().__init__()
        self.attention = Attention(asking, asked, config.prompter_inner, config.prompter_heads)
        self.norm = nn.LayerNorm(asking)
        self.has_mlp = has_mlp
        if has_mlp:
            self.mlp = Mlp(asking, config.prompter_mlp)
            self.mlp_norm = nn.LayerNorm(asking)

    def forward(self, x: Tensor, place: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Features (B, n, asking) of `x`, which stand at `place`; without key and value they ask themselves."""
        query = x + place
        x = self.norm(x + self.attention(query, query if key is None else key, x if value is None else value))
        return cast(Tensor, self.mlp_norm(x + self.mlp(x))) if self.has_mlp else x


class TextBlock(nn.Module):
    """Two sets of queries look at themselves, at the words, and at each other."""

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__()
        width = config.width
        self.own_1 = Step(width, width, config, has_mlp=False)
        self.own_2 = Step(width, width, config, has_mlp=False)
        self.words_1 = Step(width, width, config)
        self.words_2 = Step(width, width, config)
        self.other_1 = Step(width, width, config)
        self.other_2 = Step(width, width, config)

    def forward(self, one: Tensor, two: Tensor, words: Tensor, place_1: Tensor, place_2: Tensor) -> tuple[Tensor, Tensor]:
        """Both sets (B, q, D), of words (B, L, D); the second one sees what the first became."""
        one, two = self.own_1(one, place_1), self.own_2(two, place_2)
        one, two = self.words_1(one, place_1, words, words), self.words_2(two, place_2, words, words)
        one = self.other_1(one, place_1, two + place_2, two)
        return one, self.other_2(two, place_2, one + place_1, one)


class ImageBlock(nn.Module):
    """Queries look at themselves, then patches at the queries."""

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__()
        self.own = Step(config.width, config.width, config, has_mlp=False)
        self.patches = Step(config.width, config.width, config)

    def forward(self, patches: Tensor, queries: Tensor, patch_places: Tensor, query_places: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, D) and queries (B, q, D)."""
        queries = self.own(queries, query_places)
        return self.patches(patches, patch_places, queries + query_places, queries), queries


class PromptBlock(ImageBlock):
    """As `ImageBlock`; then prompts look at themselves, at the queries, and at the patches."""

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__(config)
        channels, width = config.sam_channels, config.width
        self.prompts_own = Step(channels, channels, config, has_mlp=False)
        self.prompts_queries = Step(channels, width, config)
        self.prompts_patches = Step(channels, width, config)

    def look(
        self, prompts: Tensor, places: Tensor, patches: Tensor, queries: Tensor, patch_places: Tensor, query_places: Tensor
    ) -> Tensor:
        """Prompts (B, p, C) that have seen patches and queries, as `forward` gave them."""
        prompts = self.prompts_own(prompts, places)
        prompts = self.prompts_queries(prompts, places, queries + query_places, queries)
        return cast(Tensor, self.prompts_patches(prompts, places, patches + patch_places, patches))


class CascadedPrompter(nn.Module):
    """Prompts for SAM 2 from patches and words.

    The first set of queries refines the patches, the second one refines them again and makes `prompts` sparse prompts. The dense
    prompt is the cosine of the refined patches, convolved and enlarged, with the whole sentence.
    """

    def __init__(self, config: RSRefSeg2Config) -> None:
        super().__init__()
        width, channels = config.width, config.sam_channels
        self.config = config
        self.query_places_1 = nn.Parameter(torch.empty(config.queries, width))
        self.query_places_2 = nn.Parameter(torch.empty(config.queries, width))
        self.patch_places = nn.Parameter(torch.empty(1, width, config.grid, config.grid))
        self.prompts = nn.Parameter(torch.empty(config.prompts, channels))
        self.prompt_places = nn.Parameter(torch.empty(config.prompts, channels))
        self.text_blocks = nn.ModuleList(TextBlock(config) for _ in range(config.text_blocks))
        self.image_blocks = nn.ModuleList(ImageBlock(config) for _ in range(config.image_blocks))
        self.prompt_blocks = nn.ModuleList(PromptBlock(config) for _ in range(config.prompt_blocks))
        self.sparse = Mlp(channels, config.prompter_mlp)
        self.dense_inner = nn.Conv2d(width, width // 2, 3, padding=1)
        self.dense_norm = nn.BatchNorm2d(width // 2)
        self.dense_outer = nn.Conv2d(width // 2, width, 3, padding=1)

    def split(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """The two sets of queries (1, q, D) of a sentence's words (1, L, D): means of its parts, then refined."""
        one = F.adaptive_avg_pool1d(words.transpose(1, 2), self.config.queries).transpose(1, 2)
        two = one
        for block in self.text_blocks:
            one, two = block(one, two, words, self.query_places_1, self.query_places_2)
        return one, two

    def refine(self, patches: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        """Sparse prompts (B, p, C) and refined patches (B, N, D), of patches (B, N, D) and both sets of queries (B, q, D)."""
        places = self.patch_places.flatten(2).transpose(1, 2)
        for block in self.image_blocks:
            patches, one = block(patches, one, places, self.query_places_1)
        prompts = self.prompts.expand(len(patches), -1, -1)
        for block in self.prompt_blocks:
            patches, two = block(patches, two, places, self.query_places_2)
            prompts = cast(PromptBlock, block).look(prompts, self.prompt_places, patches, two, places, self.query_places_2)
        return self.sparse(prompts), patches

    def dense(self, refined: Tensor, sentence: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """The mask that SAM is prompted with, (B, 1, h, w) float32: exp(scale) * cosine + bias.

        Parameters
        ----------
        refined : (B, N, D) of `refine`.
        sentence : (B, D).
        scale, bias : (1,) of the text/image encoder.
        """
        side, config = self.config.low_res_px, self.config
        x = self.dense_inner(refined.transpose(1, 2).unflatten(2, (config.grid, config.grid)))
        x = F.gelu(self.dense_norm(x.to(self.dense_norm.weight.dtype))).to(x.dtype)
        maps = self.dense_outer(x).float()
        # a product with the sentence may be enlarged instead of the maps, their length may not
        unit = sentence.float() / sentence.float().norm(dim=1, keepdim=True)
        product = _enlarge(torch.einsum("bchw,bc->bhw", maps, unit)[:, None], side)
        cosine = product / _enlarge(maps, side).norm(dim=1, keepdim=True)
        return scale.float().exp() * cosine + bias.float()


def _enlarge(maps: Tensor, side: int) -> Tensor:
    """Maps (B, C, side, side), bilinear, the centres of the corner patches at the corners."""
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=True)
