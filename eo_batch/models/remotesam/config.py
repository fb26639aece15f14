"""The sizes of a RemoteSAM network: the published ones by default, smaller ones for tests and experiments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError

PATCH_PX = 4
"""Side in pixels of the square that becomes one token."""

STAGES = 4
"""Stages of the trunk; each halves the grid of the one before."""

LARGEST = 1 << 20
"""No size may be larger: a hostile file must not ask for all memory."""


@dataclass(frozen=True)
class RemoteSAMConfig:
    """Sizes of one network; defaults are those of the published weights.

    Parameters
    ----------
    window_px : side of the square input in pixels; a multiple of 32, at least 64. It fixes the shape of weights.
    embed_dim : channels of the first stage; every stage doubles them; a multiple of 4.
    depths : transformer blocks of the four stages.
    heads : attention heads of the four stages; each divides the channels of its stage.
    swin_window : side in tokens of the attention windows; even.
    mlp_ratio : hidden channels of a block's MLP over its channels.
    cross_heads, cross_key_dim, cross_value_dim : attention of the cross-scale module, channels per head.
    decoder_dim : channels of the decoder.
    vocabulary, text_dim, text_layers, text_heads, text_ffn_dim, text_positions : sizes of the BERT text encoder.
    text_tokens : tokens of a prompt, padding included; at most `text_positions`.

    Raises
    ------
    ConfigError : `config-invalid`: a size that is no positive integer, too large, or does not fit the others.
    """

    window_px: int = 896
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    swin_window: int = 12
    mlp_ratio: int = 4
    cross_heads: int = 8
    cross_key_dim: int = 32
    cross_value_dim: int = 64
    decoder_dim: int = 512
    vocabulary: int = 30522
    text_dim: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_ffn_dim: int = 3072
    text_positions: int = 512
    text_tokens: int = 20

    def __post_init__(self) -> None:
        for name in ("depths", "heads"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != STAGES:
                raise _invalid(name, f"must be {STAGES} whole numbers, one per stage, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for field in fields(self):
            value = getattr(self, field.name)
            for size in value if isinstance(value, tuple) else (value,):
                if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= LARGEST:
                    raise _invalid(field.name, f"must be whole and between 1 and {LARGEST}, not {size!r}")
        if self.window_px < 64 or self.window_px % 32:
            raise _invalid("window_px", f"must be a multiple of 32 and at least 64, not {self.window_px}")
        if self.embed_dim % 4:
            raise _invalid("embed_dim", f"must be a multiple of 4, not {self.embed_dim}")
        if self.swin_window % 2:
            raise _invalid("swin_window", f"must be even, not {self.swin_window}")
        for heads, dim in zip(self.heads, self.dims, strict=True):
            if dim % heads:
                raise _invalid("heads", f"{heads} heads do not divide a stage of {dim} channels")
        if self.text_dim % self.text_heads:
            raise _invalid("text_heads", f"{self.text_heads} heads do not divide text_dim = {self.text_dim}")
        if self.text_tokens > self.text_positions:
            raise _invalid("text_tokens", f"{self.text_tokens} tokens are more than text_positions = {self.text_positions}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        return tuple(self.embed_dim << stage for stage in range(STAGES))

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the token grid of the four stages."""
        return tuple(self.window_px // PATCH_PX >> stage for stage in range(STAGES))

    @property
    def cross_dim(self) -> int:
        """Channels of the cross-scale module: a quarter of all stages' together."""
        return sum(self.dims) // 4

    @property
    def cross_tokens(self) -> tuple[int, int]:
        """Tokens that the cross-scale module gives out, and those its attention sees: the same, and two coarser grids."""
        side = self.grids[-1]
        half, third = (side - 1) // 2 + 1, (side - 1) // 3 + 1
        return side**2, side**2 + half**2 + third**2

    @property
    def smallest_px(self) -> int:
        """Smallest side of an input: what is cut off must leave the number of patches the same."""
        return self.window_px - PATCH_PX + 1

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of all sizes."""
        return digest(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """All sizes as JSON values; `from_dict` gives the same config back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RemoteSAMConfig:
        """The config of `values`; what is not named keeps its default.

        Raises
        ------
        ConfigError : `config-unknown-key`; or `config-invalid` as the class.
        """
        known = [field.name for field in fields(cls)]
        for name in sorted(str(name) for name in values):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f'Did you mean "{close[0]}"? ' if close else ""
                raise ConfigError(
                    "config-unknown-key",
                    f'a RemoteSAM network has no size "{name}"',
                    where="config",
                    fix=f"{hint}Known: {', '.join(known)}.",
                )
        return cls(**values)


def _invalid(name: str, what: str) -> ConfigError:
    return ConfigError("config-invalid", what, where=f"config.{name}", fix="See RemoteSAMConfig for the sizes that fit together.")
