"""The multimodal trunk: four Swin stages; language enters after each and flows on into the next."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from eo_batch.models.arithmetic import by_rows, linear
from eo_batch.models.remotesam.config import STAGES, RemoteSAMConfig
from eo_batch.models.remotesam.cross_scale import CrossScale
from eo_batch.models.remotesam.fusion import InstanceNorm, LanguageFusion, Words
from eo_batch.models.remotesam.receptive import ReceptiveBranch
from eo_batch.models.remotesam.swin import PatchEmbedding, PatchMerging, SwinBlock


class Seen(NamedTuple):
    """What a stage makes of its tokens before it hears the prompt.

    Parameters
    ----------
    grid : (h, w) of the tokens.
    carried : (B, HW, C), the tokens and their gated receptive branch; what the next stage gets, but for the prompt.
    look, query : (B, HW, C), what the fusion needs of the tokens.
    """

    grid: tuple[int, int]
    carried: Tensor
    look: Tensor
    query: Tensor


class Gate(nn.Sequential):
    """Tokens times a factor in (-1, 1) for every number of every token."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, dim, bias=False), nn.ReLU(), nn.Linear(dim, dim, bias=False), nn.Tanh())

    def forward(self, input: Tensor) -> Tensor:
        """Gated tokens (..., C): the factor times `input`."""
        return linear(linear(input, self[0].weight, activation="relu"), self[2].weight, activation="tanh") * input


class Stage(nn.Module):
    """Swin blocks, then fusion with the prompt, then the tokens of the next stage.

    The last stage has no next one: its two gates and its receptive branch are in the published weights and do nothing.
    """

    def __init__(self, config: RemoteSAMConfig, number: int) -> None:
        super().__init__()
        dim, heads, window = config.dims[number], config.heads[number], config.swin_window
        self.blocks = nn.ModuleList(
            [
                SwinBlock(dim, heads, window, config.mlp_ratio, is_shifted=bool(block % 2))
                for block in range(config.depths[number])
            ]
        )
        self.fusion = LanguageFusion(dim, config.text_dim)
        self.res_gate = Gate(dim)
        self.visual_residual = ReceptiveBranch()
        self.visual_gate = Gate(dim)
        self.downsample = PatchMerging(dim) if number < STAGES - 1 else None

    def see(self, x: Tensor) -> Seen:
        """The part before the prompt, of tokens (B, h, w, C)."""
        for block in self.blocks:
            x = block(x)
        grid, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if self.downsample is None:
            return Seen(grid, x, *by_rows(self.fusion.look, x))
        factor = self.visual_residual(x)
        return Seen(grid, *by_rows(lambda x, factor: (x + self.visual_gate(x * factor), *self.fusion.look(x)), x, factor))

    def hear(self, seen: Seen, words: Words, norm: nn.LayerNorm) -> tuple[Tensor, Tensor | None]:
        """Normalised fused tokens (B, HW, C), and the tokens (B, h', w', C') of the next stage."""
        asked = InstanceNorm(seen.query)
        (said,) = by_rows(lambda query: (self.fusion.image_lang_att(asked(query), words),), seen.query)
        answered = InstanceNorm(said)

        def fuse(look: Tensor, said: Tensor, carried: Tensor) -> tuple[Tensor, ...]:
            fused = self.fusion.fuse(look, answered(said))
            return (norm(fused),) if self.downsample is None else (norm(fused), carried + self.res_gate(fused))

        out, *following = by_rows(fuse, seen.look, said, seen.carried)
        if self.downsample is None:
            return out, None
        return out, self.downsample(following[0].unflatten(1, seen.grid))


class Trunk(nn.Module):
    """Pixels and words to the maps of four stages."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config.embed_dim)
        self.layers = nn.ModuleList([Stage(config, number) for number in range(STAGES)])
        for number, dim in enumerate(config.dims):
            self.add_module(f"norm{number}", nn.LayerNorm(dim))
        self.cim = CrossScale(config)

    def see(self, pixels: Tensor) -> Seen:
        """Everything of pixels (B, 3, H, W) that no prompt changes."""
        return self.layers[0].see(self.patch_embed(pixels))

    def hear(self, hidden: Tensor, mask: Tensor) -> list[Words]:
        """Everything of text features (P, T, text_dim) that no image changes, per stage."""
        return [stage.fusion.image_lang_att.words(hidden, mask) for stage in self.layers]

    def stages(self, seen: Seen, words: list[Words]) -> list[Tensor]:
        """Maps (B, C, h, w) of the four stages, finest first, before they meet in the cross-scale module."""
        maps = []
        for number, stage in enumerate(self.layers):
            normed, following = stage.hear(seen, words[number], self.get_submodule(f"norm{number}"))
            maps.append(normed.transpose(1, 2).unflatten(2, seen.grid))
            if following is not None:
                seen = self.layers[number + 1].see(following)
        return maps

    def forward(self, seen: Seen, words: list[Words]) -> list[Tensor]:
        """Maps (B, C, h, w) for the decoder, finest first."""
        return self.cim(self.stages(seen, words))
