"""The sizes of an RSRefSeg 2 network; the defaults are those of the published weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError

STAGES = 4
"""Of SAM 2's image encoder; each but the first halves the grid and doubles the channels."""
FIRST_STRIDE, STRIDE = 4, 16
"""Pixels of a place of the first stage, and of SAM's image embedding."""
SIDE, WIDTH, WORDS, LAYERS = 4096, 8192, 1 << 20, 256
"""No side, width, vocabulary or number of layers may be larger: a hostile file must not ask for all memory."""


@dataclass(frozen=True)
class RSRefSeg2Config:
    """Sizes of one network.

    Parameters
    ----------
    image_px : side of the square input in pixels.
    sam_width, sam_heads : channels and heads of the first stage of SAM 2's image encoder (Hiera).
    sam_blocks : blocks of its four stages.
    sam_windows : sides of their attention windows.
    sam_everywhere : blocks, counted through all stages, that see the whole image.
    sam_background : side of the small map of places that is stretched over the image.
    sam_channels : of SAM's image embedding and prompts.
    width, mlp, heads : of both halves of SigLIP 2, the text/image encoder.
    image_layers, text_layers : of its halves.
    encoder_px, patch_px : side of the copy that its image half sees, and of a patch.
    vocabulary, most_tokens : tokens that its text half knows, and of the longest prompt.
    queries : of each of the two sets that a sentence is split into.
    prompts : sparse prompts that SAM is given.
    text_blocks, image_blocks, prompt_blocks : of the prompter's three steps.
    prompter_heads, prompter_inner, prompter_mlp : heads, channels and hidden channels of its attention.
    lora_r, lora_alpha : rank, and scale times rank, of the low-rank updates inside checkpoints of a training.

    Raises
    ------
    ConfigError : `config-invalid`: a size that is none, too large, or does not fit the others.
    """

    image_px: int = 1024
    sam_width: int = 144
    sam_heads: int = 2
    sam_blocks: tuple[int, ...] = (2, 6, 36, 4)
    sam_windows: tuple[int, ...] = (8, 4, 16, 8)
    sam_everywhere: tuple[int, ...] = (23, 33, 43)
    sam_background: int = 7
    sam_channels: int = 256
    width: int = 1152
    mlp: int = 4304
    heads: int = 16
    image_layers: int = 27
    text_layers: int = 27
    encoder_px: int = 512
    patch_px: int = 16
    vocabulary: int = 256_000
    most_tokens: int = 64
    queries: int = 3
    prompts: int = 9
    text_blocks: int = 2
    image_blocks: int = 2
    prompt_blocks: int = 2
    prompter_heads: int = 8
    prompter_inner: int = 512
    prompter_mlp: int = 512
    lora_r: int = 16
    lora_alpha: int = 16

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _whole_numbers(name, getattr(self, name)))
        for setting in fields(self):
            if setting.name not in _LISTS:
                _check_number(setting.name, getattr(self, setting.name))
        self._check_sam()
        for whole, part in (("width", "heads"), ("prompter_inner", "prompter_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise _invalid(whole, f"must be a multiple of {part} = {getattr(self, part)}")
        if self.encoder_px % self.patch_px:
            raise _invalid("encoder_px", f"must be a multiple of patch_px = {self.patch_px}")
        if self.width % 2:
            raise _invalid("width", "must be even")

    @property
    def grid(self) -> int:
        """Side of the text/image encoder's grid of patches."""
        return self.encoder_px // self.patch_px

    @property
    def sam_grid(self) -> int:
        """Side of SAM's image embedding."""
        return self.image_px // STRIDE

    @property
    def low_res_px(self) -> int:
        """Side of the answer, and of the map that SAM is prompted with."""
        return self.image_px // FIRST_STRIDE

    @property
    def sam_widths(self) -> tuple[int, ...]:
        """Channels of the stages of SAM's image encoder."""
        return tuple(self.sam_width << stage for stage in range(STAGES))

    @property
    def layers(self) -> int:
        """Layers and blocks of all parts together."""
        own = self.text_blocks + self.image_blocks + self.prompt_blocks
        return sum(self.sam_blocks) + self.image_layers + self.text_layers + own

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of all sizes."""
        return digest(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """All sizes as JSON values; `from_dict` gives the same config back."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RSRefSeg2Config:
        """The config of `values`; what is not named keeps its default.

        Raises
        ------
        ConfigError : `config-unknown-key`; as the class.
        """
        if not isinstance(values, Mapping):
            raise ConfigError("config-invalid", "is no table of sizes", where="config", fix="Give a table.")
        known = [setting.name for setting in fields(cls)]
        for name in sorted(str(name) for name in values):
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f'Did you mean "{close[0]}"? ' if close else ""
                what, fix = f'there is no size "{name[:80]}"', f"{hint}Known: {', '.join(known)}."
                raise ConfigError("config-unknown-key", what, where="config", fix=fix)
        return cls(**values)

    def _check_sam(self) -> None:
        for name in ("sam_blocks", "sam_windows"):
            if len(getattr(self, name)) != STAGES or not all(1 <= number <= LAYERS for number in getattr(self, name)):
                raise _invalid(name, f"must be {STAGES} numbers from 1 to {LAYERS}")
        blocks, first = sum(self.sam_blocks), self.image_px // FIRST_STRIDE
        if list(self.sam_everywhere) != sorted(number for number in set(self.sam_everywhere) if 0 <= number < blocks):
            raise _invalid("sam_everywhere", f"must be rising numbers from 0 to {blocks - 1}")
        starts = {sum(self.sam_blocks[:stage]) for stage in range(1, STAGES)}
        if starts & set(self.sam_everywhere):
            raise _invalid(
                "sam_everywhere", f"must not name the first block of a stage, such as {min(starts)}: it halves windows"
            )
        if self.image_px % (2 * STRIDE):
            raise _invalid("image_px", f"must be a multiple of {2 * STRIDE}")
        if any(window % 2 for window in self.sam_windows[:-1]):
            raise _invalid("sam_windows", "all but the last must be even: the next stage halves them")
        if first % self.sam_windows[0]:
            raise _invalid("sam_windows", f"the first one must divide {first}, the side of the first stage")
        if self.sam_width % self.sam_heads:
            raise _invalid("sam_width", f"must be a multiple of sam_heads = {self.sam_heads}")
        if self.sam_channels % 32:
            raise _invalid("sam_channels", "must be a multiple of 32")


_LISTS = ("sam_blocks", "sam_windows", "sam_everywhere")
_MOST = {"vocabulary": WORDS, "image_px": SIDE, "encoder_px": SIDE, "mlp": 8 * WIDTH, "prompter_mlp": 8 * WIDTH}
_FEW = ("image_layers", "text_layers", "text_blocks", "image_blocks", "prompt_blocks", "queries", "prompts", "sam_background")


def _check_number(name: str, value: Any) -> None:
    most = _MOST.get(name, LAYERS if name in _FEW else WIDTH)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _invalid(name, f"must be whole and between 1 and {most}, not {value!r:.80}")


def _whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    are_whole = isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not are_whole or len(value) > LAYERS:
        raise _invalid(name, f"must be a list of whole numbers, not {value!r:.80}")
    return tuple(value)


def _invalid(name: str, what: str) -> ConfigError:
    fix = "See RSRefSeg2Config for the sizes that fit together."
    return ConfigError("config-invalid", what, where=f"config.{name}", fix=fix)
