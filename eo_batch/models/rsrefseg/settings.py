"""What a setting of RSRefSeg's parts may be: names, defaults and bounds, as transformers has them for SAM, SigLIP and CLIP.

Everything is judged here before anything of these sizes is built: a config may come from a stranger's file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eo_batch.core.errors import ConfigError

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Whole:
    """A whole number with its default and its bounds; None where it follows from another one."""

    default: int | None
    most: int
    least: int = 1


@dataclass(frozen=True)
class Real:
    """A number with its default and its bounds."""

    default: float
    most: float = 1.0
    least: float = 0.0


@dataclass(frozen=True)
class Flag:
    """True or false."""

    default: bool


@dataclass(frozen=True)
class OneOf:
    """One of the names that are known."""

    default: str
    known: tuple[str, ...] = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@dataclass(frozen=True)
class Indexes:
    """Whole numbers, each at most once, in order."""

    default: tuple[int, ...]


Rule = Whole | Real | Flag | OneOf | Indexes
WIDTH, LAYERS, HEADS, SIDE, MLP, WORDS = 8192, 128, 128, 4096, 65536, 1 << 20
"""No size may be larger: a hostile file must not ask for all memory."""


def _tower(width: int, mlp: int, heads: int, act: str, eps: float) -> dict[str, Rule]:
    return {
        "hidden_size": Whole(width, WIDTH),
        "intermediate_size": Whole(mlp, MLP),
        "num_hidden_layers": Whole(12, LAYERS),
        "num_attention_heads": Whole(heads, HEADS),
        "hidden_act": OneOf(act),
        "layer_norm_eps": Real(eps),
        "attention_dropout": Real(0.0),
    }


_TANH, _QUICK = "gelu_pytorch_tanh", "quick_gelu"
_SAM: Mapping[str, Mapping[str, Rule]] = {
    "vision_config": {
        "hidden_size": Whole(768, WIDTH),
        "output_channels": Whole(256, WIDTH),
        "num_hidden_layers": Whole(12, LAYERS),
        "num_attention_heads": Whole(12, HEADS),
        "num_channels": Whole(3, 3, 3),
        "image_size": Whole(1024, SIDE),
        "patch_size": Whole(16, 64),
        "hidden_act": OneOf("gelu"),
        "layer_norm_eps": Real(1e-6),
        "attention_dropout": Real(0.0),
        "qkv_bias": Flag(True),
        "use_abs_pos": Flag(True),
        "use_rel_pos": Flag(True),
        "window_size": Whole(14, 256),
        "global_attn_indexes": Indexes((2, 5, 8, 11)),
        "num_pos_feats": Whole(128, WIDTH),
        "mlp_ratio": Real(4.0, 64.0),
        "mlp_dim": Whole(None, MLP),
    },
    "prompt_encoder_config": {
        "hidden_size": Whole(256, WIDTH),
        "image_size": Whole(1024, SIDE),
        "patch_size": Whole(16, 64),
        "mask_input_channels": Whole(16, 1024),
        "num_point_embeddings": Whole(4, 64),
        "hidden_act": OneOf("gelu"),
        "layer_norm_eps": Real(1e-6),
    },
    "mask_decoder_config": {
        "hidden_size": Whole(256, WIDTH),
        "hidden_act": OneOf("relu"),
        "mlp_dim": Whole(2048, MLP),
        "num_hidden_layers": Whole(2, LAYERS),
        "num_attention_heads": Whole(8, HEADS),
        "attention_downsample_rate": Whole(2, 64),
        "num_multimask_outputs": Whole(3, 64),
        "iou_head_depth": Whole(3, 64, 2),
        "iou_head_hidden_dim": Whole(256, WIDTH),
        "layer_norm_eps": Real(1e-6),
    },
}
_SIGLIP: Mapping[str, Mapping[str, Rule]] = {
    "text_config": _tower(768, 3072, 12, _TANH, 1e-6)
    | {
        "vocab_size": Whole(32000, WORDS),
        "max_position_embeddings": Whole(64, 4096),
        "projection_size": Whole(None, WIDTH),
    },
    "vision_config": _tower(768, 3072, 12, _TANH, 1e-6)
    | {"num_channels": Whole(3, 3, 3), "image_size": Whole(224, SIDE), "patch_size": Whole(16, 256)},
}
_CLIP: Mapping[str, Mapping[str, Rule]] = {
    "": {"projection_dim": Whole(512, WIDTH)},
    "text_config": _tower(512, 2048, 8, _QUICK, 1e-5)
    | {"vocab_size": Whole(49408, WORDS), "max_position_embeddings": Whole(77, 4096)},
    "vision_config": _tower(768, 3072, 12, _QUICK, 1e-5)
    | {"num_channels": Whole(3, 3, 3), "image_size": Whole(224, SIDE), "patch_size": Whole(32, 256)},
}
_WITHOUT_EFFECT = (
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "initializer_range", "initializer_factor"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "vision_use_head", "logit_scale_init_value"),
)
"""Settings of the library that shape no weight and no number here; they may be given and are not kept."""
RULES = MappingProxyType({"sam": _SAM, "siglip": _SIGLIP, "clip": _CLIP})
OWN: Mapping[str, Rule] = MappingProxyType(
    {
        "down_spatial_times": Whole(2, 12, 0),
        "with_dense_feat": Flag(True),
        "lora_r": Whole(16, 4096),
        "lora_alpha": Real(16, 65536),
    }
)


def complete(name: str, given: Any) -> Table:
    """Every setting of a part ("sam", "siglip", "clip"): as given, or its default.

    Raises
    ------
    ConfigError : `config-unknown-key`, `config-invalid`.
    """
    rules = RULES[name]
    given = _with_effect(name, given)
    refuse_unknown(name, given, (*(section for section in rules if section), *rules.get("", {})))
    made: dict[str, Any] = {}
    for section, known in rules.items():
        where = f"{name}.{section}" if section else name
        table = _with_effect(where, given.get(section, {})) if section else {key: given[key] for key in known if key in given}
        refuse_unknown(where, table, tuple(known))
        values = {key: check(f"{where}.{key}", table.get(key, rule.default), rule) for key, rule in known.items()}
        made |= {section: values} if section else values
    return made


def _with_effect(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise invalid(where, f"must be a table, not {given!r:.80}")
    return {name: value for name, value in given.items() if name not in _WITHOUT_EFFECT}


def check(where: str, value: Any, rule: Rule) -> Any:
    """`value` as it is kept.

    Raises
    ------
    ConfigError : `config-invalid`: `rule` does not allow it.
    """
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # a number of numpy
    if isinstance(rule, Whole):
        is_number = isinstance(value, int) and not isinstance(value, bool) and rule.least <= value <= rule.most
        if not is_number and not (value is None and rule.default is None):
            raise invalid(where, f"must be whole and between {rule.least} and {rule.most}, not {value!r:.80}")
    elif isinstance(rule, Real):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not rule.least <= value <= rule.most:
            raise invalid(where, f"must be a number between {rule.least} and {rule.most}, not {value!r:.80}")
        return float(value)
    elif isinstance(rule, Flag):
        if not isinstance(value, bool):
            raise invalid(where, f"must be true or false, not {value!r:.80}")
    elif isinstance(rule, OneOf):
        if value not in rule.known:
            raise invalid(where, f"must be one of {', '.join(rule.known)}, not {value!r:.80}")
    else:
        are_whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        if not are_whole or list(value) != sorted({v for v in value if 0 <= v < LAYERS}):
            raise invalid(where, f"must be rising whole numbers from 0 to {LAYERS - 1}, not {value!r:.80}")
        return tuple(value)
    return value


def check_sam(sam: Table) -> None:
    """Refuse sizes of SAM's parts that do not fit each other (`config-invalid`)."""
    vision, prompts, decoder = sam["vision_config"], sam["prompt_encoder_config"], sam["mask_decoder_config"]
    check_heads("sam.vision_config", vision["num_attention_heads"], vision["hidden_size"])
    if vision["image_size"] % vision["patch_size"]:
        raise invalid("sam.vision_config.image_size", f"must be a multiple of patch_size = {vision['patch_size']}")
    if any(index >= vision["num_hidden_layers"] for index in vision["global_attn_indexes"]):
        raise invalid("sam.vision_config.global_attn_indexes", f"names a layer beyond {vision['num_hidden_layers'] - 1}")
    for name in ("image_size", "patch_size"):
        if prompts[name] != vision[name]:
            raise invalid(f"sam.prompt_encoder_config.{name}", f"must be that of vision_config, {vision[name]}")
    channels = vision["output_channels"]
    for name in ("prompt_encoder_config", "mask_decoder_config"):
        if sam[name]["hidden_size"] != channels:
            raise invalid(f"sam.{name}.hidden_size", f"must be output_channels of vision_config, {channels}")
    if 2 * vision["num_pos_feats"] != channels:
        raise invalid("sam.vision_config.num_pos_feats", f"must be half of output_channels = {channels}")
    if channels % 8:
        raise invalid("sam.vision_config.output_channels", f"must be a multiple of 8, not {channels}")
    if prompts["mask_input_channels"] % 4:
        raise invalid("sam.prompt_encoder_config.mask_input_channels", "must be a multiple of 4")
    if channels % decoder["attention_downsample_rate"]:
        raise invalid("sam.mask_decoder_config.attention_downsample_rate", f"does not divide {channels} channels")
    check_heads("sam.mask_decoder_config", decoder["num_attention_heads"], channels // decoder["attention_downsample_rate"])


def check_encoder(name: str, encoder: Table) -> None:
    """Refuse sizes of the text/image encoder that do not fit each other (`config-invalid`)."""
    text, vision = encoder["text_config"], encoder["vision_config"]
    for section, part in (("text_config", text), ("vision_config", vision)):
        check_heads(f"{name}.{section}", part["num_attention_heads"], part["hidden_size"])
    if vision["image_size"] < vision["patch_size"]:
        raise invalid(f"{name}.vision_config.image_size", f"is smaller than a patch of {vision['patch_size']} px")
    if name == "siglip":
        for key in ("hidden_size", "projection_size"):
            if text[key] != vision["hidden_size"]:
                raise invalid(
                    f"siglip.text_config.{key}", f"must be that of vision_config, {vision['hidden_size']}: the two are compared"
                )


def check_heads(where: str, heads: int, width: int) -> None:
    """Refuse heads that do not divide the channels (`config-invalid`)."""
    if width % heads:
        raise invalid(f"{where}.num_attention_heads", f"{heads} heads do not divide {width} channels")


def known_settings(name: str, table: Table) -> dict[str, Any]:
    """The settings of a published config.json that this module knows."""
    if not isinstance(table, Mapping):
        raise invalid(name, f"must be a table, not {table!r:.80}")
    made: dict[str, Any] = {key: table[key] for key in RULES[name].get("", {}) if key in table}
    for section, known in RULES[name].items():
        part = table.get(section)
        if section and isinstance(part, Mapping):
            made[section] = {key: part[key] for key in known if key in part}
    return made


def refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse names that are not `known`, with the closest that is (`config-unknown-key`)."""
    for name in sorted(str(name) for name in given):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            what, fix = f'there is no size "{name[:80]}"', f"{hint}Known: {', '.join(known)}."
            raise ConfigError("config-unknown-key", what, where=where if where == "config" else f"config.{where}", fix=fix)


def invalid(name: str, what: str) -> ConfigError:
    """The error of a setting that cannot be what it is."""
    fix = "See RSRefSegConfig for the sizes that fit together."
    return ConfigError("config-invalid", what, where=f"config.{name}", fix=fix)
