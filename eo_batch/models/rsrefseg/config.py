"""The sizes of an RSRefSeg network: SAM, a text/image encoder (SigLIP, or CLIP), and the bridge between them.

The sections carry the names that Hugging Face transformers gives its configs, so that a published config.json can be read as it
is. Whatever is not given has the default of that library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError
from eo_batch.models.rsrefseg.settings import (
    OWN,
    RULES,
    Table,
    check,
    check_encoder,
    check_sam,
    complete,
    invalid,
    known_settings,
    refuse_unknown,
)


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
            raise invalid("clip", "is given beside siglip: a network has one text/image encoder")
        chosen = "siglip" if self.clip is None else "clip"
        object.__setattr__(self, "sam", complete("sam", self.sam))
        object.__setattr__(self, chosen, complete(chosen, getattr(self, chosen) or {}))
        for name, rule in OWN.items():
            object.__setattr__(self, name, check(name, getattr(self, name), rule))
        if not self.lora_alpha > 0:
            raise invalid("lora_alpha", f"must be positive, not {self.lora_alpha!r}")
        _fill(self)
        check_sam(self.sam)
        check_encoder(chosen, self.encoder)

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
        known: dict[str, Any] = {name: known_settings(name, table) for name, table in given.items() if table is not None}
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
        return parts | {name: getattr(self, name) for name in OWN}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RSRefSegConfig:
        """The config of `values`; what is not named keeps its default.

        Raises
        ------
        ConfigError : as the class.
        """
        if not isinstance(values, Mapping):
            raise ConfigError("config-invalid", "is no table of sizes", where="config", fix="Give a table.")
        refuse_unknown("config", values, (*RULES, *OWN))
        return cls(**values)


def _fill(config: RSRefSegConfig) -> None:
    """Sizes that follow from others, as transformers has them."""
    vision = dict(config.sam["vision_config"])
    if vision["mlp_dim"] is None:
        vision["mlp_dim"] = int(vision["mlp_ratio"] * vision["hidden_size"])
        object.__setattr__(config, "sam", dict(config.sam) | {"vision_config": vision})
    if config.siglip is not None and config.siglip["text_config"]["projection_size"] is None:
        text = dict(config.siglip["text_config"])
        text["projection_size"] = text["hidden_size"]
        object.__setattr__(config, "siglip", dict(config.siglip) | {"text_config": text})


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
