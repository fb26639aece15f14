"""The sizes of an RSRefSeg network: SAM, a text/image encoder (SigLIP, or CLIP), and the bridge between them.

The sections carry the names that Hugging Face transformers gives its configs, so that a published config.json can be read as it
is. Whatever is not given has the default of that library.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError

Table = Mapping[str, Any]


@dataclass(frozen=True)
class _Whole:
    """A whole number with its default and its bounds; None where it follows from another one."""

    default: int | None
    most: int
    least: int = 1


@dataclass(frozen=True)
class _Real:
    default: float
    most: float = 1.0
    least: float = 0.0


@dataclass(frozen=True)
class _Flag:
    default: bool


@dataclass(frozen=True)
class _OneOf:
    default: str
    known: tuple[str, ...] = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@dataclass(frozen=True)
class _Indexes:
    """Whole numbers, each at most once, in order."""

    default: tuple[int, ...]


_Rule = _Whole | _Real | _Flag | _OneOf | _Indexes
WIDTH, LAYERS, HEADS, SIDE, MLP, WORDS = 8192, 128, 128, 4096, 65536, 1 << 20
"""No size may be larger: a hostile file must not ask for all memory."""


def _tower(width: int, mlp: int, heads: int, act: str, eps: float) -> dict[str, _Rule]:
    return {
        "hidden_size": _Whole(width, WIDTH),
        "intermediate_size": _Whole(mlp, MLP),
        "num_hidden_layers": _Whole(12, LAYERS),
        "num_attention_heads": _Whole(heads, HEADS),
        "hidden_act": _OneOf(act),
        "layer_norm_eps": _Real(eps),
        "attention_dropout": _Real(0.0),
    }


_TANH, _QUICK = "gelu_pytorch_tanh", "quick_gelu"
_SAM: Mapping[str, Mapping[str, _Rule]] = {
    "vision_config": {
        "hidden_size": _Whole(768, WIDTH),
        "output_channels": _Whole(256, WIDTH),
        "num_hidden_layers": _Whole(12, LAYERS),
        "num_attention_heads": _Whole(12, HEADS),
        "num_channels": _Whole(3, 3, 3),
        "image_size": _Whole(1024, SIDE),
        "patch_size": _Whole(16, 64),
        "hidden_act": _OneOf("gelu"),
        "layer_norm_eps": _Real(1e-6),
        "attention_dropout": _Real(0.0),
        "qkv_bias": _Flag(True),
        "use_abs_pos": _Flag(True),
        "use_rel_pos": _Flag(True),
        "window_size": _Whole(14, 256),
        "global_attn_indexes": _Indexes((2, 5, 8, 11)),
        "num_pos_feats": _Whole(128, WIDTH),
        "mlp_dim": _Whole(None, MLP),
    },
    "prompt_encoder_config": {
        "hidden_size": _Whole(256, WIDTH),
        "image_size": _Whole(1024, SIDE),
        "patch_size": _Whole(16, 64),
        "mask_input_channels": _Whole(16, 1024),
        "num_point_embeddings": _Whole(4, 64),
        "hidden_act": _OneOf("gelu"),
        "layer_norm_eps": _Real(1e-6),
    },
    "mask_decoder_config": {
        "hidden_size": _Whole(256, WIDTH),
        "hidden_act": _OneOf("relu"),
        "mlp_dim": _Whole(2048, MLP),
        "num_hidden_layers": _Whole(2, LAYERS),
        "num_attention_heads": _Whole(8, HEADS),
        "attention_downsample_rate": _Whole(2, 64),
        "num_multimask_outputs": _Whole(3, 64),
        "iou_head_depth": _Whole(3, 64, 2),
        "iou_head_hidden_dim": _Whole(256, WIDTH),
        "layer_norm_eps": _Real(1e-6),
    },
}
_SIGLIP: Mapping[str, Mapping[str, _Rule]] = {
    "text_config": _tower(768, 3072, 12, _TANH, 1e-6)
    | {
        "vocab_size": _Whole(32000, WORDS),
        "max_position_embeddings": _Whole(64, 4096),
        "projection_size": _Whole(None, WIDTH),
    },
    "vision_config": _tower(768, 3072, 12, _TANH, 1e-6)
    | {"num_channels": _Whole(3, 3, 3), "image_size": _Whole(224, SIDE), "patch_size": _Whole(16, 256)},
}
_CLIP: Mapping[str, Mapping[str, _Rule]] = {
    "": {"projection_dim": _Whole(512, WIDTH)},
    "text_config": _tower(512, 2048, 8, _QUICK, 1e-5)
    | {"vocab_size": _Whole(49408, WORDS), "max_position_embeddings": _Whole(77, 4096)},
    "vision_config": _tower(768, 3072, 12, _QUICK, 1e-5)
    | {"num_channels": _Whole(3, 3, 3), "image_size": _Whole(224, SIDE), "patch_size": _Whole(32, 256)},
}
_RULES = MappingProxyType({"sam": _SAM, "siglip": _SIGLIP, "clip": _CLIP})


@dataclass(frozen=True)
class RSRefSegConfig:
    """Sizes of one network.

    Parameters
    ----------
    sam : arguments of transformers' SamConfig: vision_config, prompt_encoder_config, mask_decoder_config.
    siglip : arguments of SiglipConfig: text_config, vision_config; the published text/image encoder.
    clip : arguments of CLIPConfig instead of `siglip`: text_config, vision_config, projection_dim.
    down_spatial_times : times the prompter halves the grid of patches; what is left are the prompts of SAM.
    with_dense_feat : SAM also gets the map of agreement with the whole sentence, as its mask prompt.
    lora_r, lora_alpha : rank, and scale over rank, of the low-rank updates inside checkpoints of a training. The rank can be read
        from such a file, alpha is not in it.

    Raises
    ------
    ConfigError : `config-unknown-key`; `config-invalid`: a size that is none, too large, or does not fit the others.
    """

    sam: Table = field(default_factory=dict)
    siglip: Table | None = None
    down_spatial_times: int = 2
    with_dense_feat: bool = True
    lora_r: int = 16
    lora_alpha: float = 16
    clip: Table | None = None

    def __post_init__(self) -> None:
        if self.siglip is not None and self.clip is not None:
            raise _invalid("clip", "is given beside siglip: a network has one text/image encoder")
        chosen = "siglip" if self.clip is None else "clip"
        object.__setattr__(self, "sam", _complete("sam", self.sam))
        object.__setattr__(self, chosen, _complete(chosen, getattr(self, chosen) or {}))
        for name, rule in _OWN.items():
            _check(name, getattr(self, name), rule)
        if not self.lora_alpha > 0:
            raise _invalid("lora_alpha", f"must be positive, not {self.lora_alpha!r}")
        _fill(self)
        _check_sam(self.sam)
        _check_encoder(chosen, self.encoder)

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def b(cls) -> RSRefSegConfig:
        """RSRefSeg-b: SAM ViT-B and SigLIP so400m-patch14-384; 984 million parameters."""
        return cls(sam=_sam(768, 12, 12, (2, 5, 8, 11)), siglip=_so400m())

    @classmethod
    def l(cls) -> RSRefSegConfig:  # noqa: E743
        """RSRefSeg-l: SAM ViT-L and SigLIP so400m-patch14-384; 1.21 billion parameters."""
        return cls(sam=_sam(1024, 24, 16, (5, 11, 17, 23)), siglip=_so400m())

    @classmethod
    def from_foundation(cls, sam: Table, *, siglip: Table | None = None, clip: Table | None = None, **own: Any) -> RSRefSegConfig:
        """The config of a network on foundation models, from their config.json files as transformers writes them.

        Parameters
        ----------
        sam, siglip, clip : what the files hold; settings that shape no weight and no number are left behind.
        own : the parameters of this class that are not theirs.

        Raises
        ------
        ConfigError : as the class.
        """
        given = {"sam": sam, "siglip": siglip, "clip": clip}
        known: dict[str, Any] = {name: _known(name, table) for name, table in given.items() if table is not None}
        return cls(**known, **own)

    @property
    def encoder(self) -> Table:
        """Sizes of the text/image encoder, whichever it is."""
        table = self.siglip if self.clip is None else self.clip
        assert table is not None
        return table

    @property
    def image_px(self) -> int:
        """Side of the square input in pixels: SAM's."""
        return int(self.sam["vision_config"]["image_size"])

    @property
    def encoder_px(self) -> int:
        """Side in pixels of the smaller copy that the text/image encoder sees."""
        return int(self.encoder["vision_config"]["image_size"])

    @property
    def grid(self) -> int:
        """Side of the text/image encoder's grid of patches; what is left over of the image is not seen."""
        return self.encoder_px // int(self.encoder["vision_config"]["patch_size"])

    @property
    def width(self) -> int:
        """Channels that patches and words share, in which they are compared."""
        return int(self.encoder["projection_dim"] if self.clip is not None else self.encoder["vision_config"]["hidden_size"])

    @property
    def sam_grid(self) -> int:
        """Side of SAM's grid of patches."""
        return self.image_px // int(self.sam["vision_config"]["patch_size"])

    @property
    def sam_width(self) -> int:
        """Channels of SAM's image embedding and prompts."""
        return int(self.sam["vision_config"]["output_channels"])

    @property
    def low_res_px(self) -> int:
        """Side of the answer: four times SAM's grid."""
        return 4 * self.sam_grid

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.encoder["text_config"]["max_position_embeddings"])

    @property
    def vocabulary(self) -> int:
        """Tokens that the text encoder knows."""
        return int(self.encoder["text_config"]["vocab_size"])

    @property
    def layers(self) -> int:
        """Transformer layers of all parts together."""
        parts = (*self.sam.values(), *(part for part in self.encoder.values() if isinstance(part, Mapping)))
        return sum(int(part.get("num_hidden_layers", 0)) for part in parts)

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of all sizes."""
        return digest(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """All sizes as JSON values; `from_dict` gives the same config back."""
        parts = {name: _plain(getattr(self, name)) for name in ("sam", "siglip", "clip") if getattr(self, name) is not None}
        return parts | {name: getattr(self, name) for name in _OWN}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RSRefSegConfig:
        """The config of `values`; what is not named keeps its default.

        Raises
        ------
        ConfigError : as the class.
        """
        if not isinstance(values, Mapping):
            raise ConfigError("config-invalid", "is no table of sizes", where="config", fix="Give a table.")
        _refuse_unknown("config", values, (*_RULES, *_OWN))
        return cls(**values)


_OWN: Mapping[str, _Rule] = MappingProxyType(
    {
        "down_spatial_times": _Whole(2, 12, 0),
        "with_dense_feat": _Flag(True),
        "lora_r": _Whole(16, 4096),
        "lora_alpha": _Real(16, 65536),
    }
)


def _complete(name: str, given: Any) -> Table:
    """Every setting of a part: as given, or its default."""
    rules = _RULES[name]
    if not isinstance(given, Mapping):
        raise _invalid(name, f"must be a table, not {given!r:.80}")
    _refuse_unknown(name, given, (*(section for section in rules if section), *rules.get("", {})))
    made: dict[str, Any] = {}
    for section, known in rules.items():
        where = f"{name}.{section}" if section else name
        table = given.get(section, {}) if section else {key: given[key] for key in known if key in given}
        if not isinstance(table, Mapping):
            raise _invalid(where, f"must be a table, not {table!r:.80}")
        _refuse_unknown(where, table, tuple(known))
        values = {key: _check(f"{where}.{key}", table.get(key, rule.default), rule) for key, rule in known.items()}
        made |= {section: values} if section else values
    return made


def _check(where: str, value: Any, rule: _Rule) -> Any:
    if isinstance(rule, _Whole):
        is_number = isinstance(value, int) and not isinstance(value, bool) and rule.least <= value <= rule.most
        if not is_number and not (value is None and rule.default is None):
            raise _invalid(where, f"must be whole and between {rule.least} and {rule.most}, not {value!r:.80}")
    elif isinstance(rule, _Real):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not rule.least <= value <= rule.most:
            raise _invalid(where, f"must be a number between {rule.least} and {rule.most}, not {value!r:.80}")
    elif isinstance(rule, _Flag):
        if not isinstance(value, bool):
            raise _invalid(where, f"must be true or false, not {value!r:.80}")
    elif isinstance(rule, _OneOf):
        if value not in rule.known:
            raise _invalid(where, f"must be one of {', '.join(rule.known)}, not {value!r:.80}")
    else:
        are_whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not are_whole or list(value) != sorted({v for v in value if 0 <= v < LAYERS}):
            raise _invalid(where, f"must be rising whole numbers from 0 to {LAYERS - 1}, not {value!r:.80}")
        return tuple(value)
    return value


def _fill(config: RSRefSegConfig) -> None:
    """Sizes that follow from others, as transformers has them."""
    vision = dict(config.sam["vision_config"])
    if vision["mlp_dim"] is None:
        vision["mlp_dim"] = 4 * vision["hidden_size"]
        object.__setattr__(config, "sam", dict(config.sam) | {"vision_config": vision})
    if config.siglip is not None and config.siglip["text_config"]["projection_size"] is None:
        text = dict(config.siglip["text_config"])
        text["projection_size"] = text["hidden_size"]
        object.__setattr__(config, "siglip", dict(config.siglip) | {"text_config": text})


def _check_sam(sam: Table) -> None:
    vision, prompts, decoder = sam["vision_config"], sam["prompt_encoder_config"], sam["mask_decoder_config"]
    _check_heads("sam.vision_config", vision["num_attention_heads"], vision["hidden_size"])
    if vision["image_size"] % vision["patch_size"]:
        raise _invalid("sam.vision_config.image_size", f"must be a multiple of patch_size = {vision['patch_size']}")
    if any(index >= vision["num_hidden_layers"] for index in vision["global_attn_indexes"]):
        raise _invalid("sam.vision_config.global_attn_indexes", f"names a layer beyond {vision['num_hidden_layers'] - 1}")
    for name in ("image_size", "patch_size"):
        if prompts[name] != vision[name]:
            raise _invalid(f"sam.prompt_encoder_config.{name}", f"must be that of vision_config, {vision[name]}")
    channels = vision["output_channels"]
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        if sam[name]["hidden_size"] != channels:
            raise _invalid(f"sam.{name}.hidden_size", f"must be output_channels of vision_config, {channels}")
    if 2 * vision["num_pos_feats"] != channels:
        raise _invalid("sam.vision_config.num_pos_feats", f"must be half of output_channels = {channels}")
    if channels % 8:
        raise _invalid("sam.vision_config.output_channels", f"must be a multiple of 8, not {channels}")
    if prompts["mask_input_channels"] % 4:
        raise _invalid("sam.prompt_encoder_config.mask_input_channels", "must be a multiple of 4")
    if channels % decoder["attention_downsample_rate"]:
        raise _invalid("sam.mask_decoder_config.attention_downsample_rate", f"does not divide {channels} channels")
    _check_heads("sam.mask_decoder_config", decoder["num_attention_heads"], channels // decoder["attention_downsample_rate"])


def _check_encoder(name: str, encoder: Table) -> None:
    text, vision = encoder["text_config"], encoder["vision_config"]
    for section, part in (("text_config", text), ("vision_config", vision)):
        _check_heads(f"{name}.{section}", part["num_attention_heads"], part["hidden_size"])
    if vision["image_size"] < vision["patch_size"]:
        raise _invalid(f"{name}.vision_config.image_size", f"is smaller than a patch of {vision['patch_size']} px")
    if name == "siglip":
        for key in ("hidden_size", "projection_size"):
            if text[key] != vision["hidden_size"]:
                raise _invalid(
                    f"siglip.text_config.{key}", f"must be that of vision_config, {vision['hidden_size']}: the two are compared"
                )


def _check_heads(where: str, heads: int, width: int) -> None:
    if width % heads:
        raise _invalid(f"{where}.num_attention_heads", f"{heads} heads do not divide {width} channels")


def _known(name: str, table: Table) -> dict[str, Any]:
    """The settings of a published config.json that this module knows."""
    if not isinstance(table, Mapping):
        raise _invalid(name, f"must be a table, not {table!r:.80}")
    made: dict[str, Any] = {key: table[key] for key in _RULES[name].get("", {}) if key in table}
    for section, known in _RULES[name].items():
        part = table.get(section)
        if section and isinstance(part, Mapping):
            made[section] = {key: part[key] for key in known if key in part}
    return made


def _refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in sorted(str(name) for name in given):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            what, fix = f'there is no size "{name[:80]}"', f"{hint}Known: {', '.join(known)}."
            raise ConfigError("config-unknown-key", what, where=where if where == "config" else f"config.{where}", fix=fix)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _sam(width: int, layers: int, heads: int, everywhere: tuple[int, ...]) -> Table:
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width}
    return {"vision_config": vision | {"global_attn_indexes": everywhere}}


def _so400m() -> Table:
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    return {"text_config": tower, "vision_config": tower | {"image_size": 384, "patch_size": 14}}


def _invalid(name: str, what: str) -> ConfigError:
    fix = "See RSRefSegConfig for the sizes that fit together."
    return ConfigError("config-invalid", what, where=f"config.{name}", fix=fix)
