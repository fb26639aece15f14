"""A RemoteSAM network that is a few hundred times smaller than the published one, and its vocabulary: for tests of whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from formula import remotesam_state
from toy import toy_pipeline

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.registry import load_segmenter
from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.remotesam.segmenter import RemoteSAMSegmenter
from eo_batch.models.weights.checkpoints import write_safetensors

RGB = ("red", "green", "blue")
SIDE = 64
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] a bright dark field fields in image lake left of on ship the water solar panel ##s . , ! x"
WORDS = VOCABULARY.split()


def tiny_config(**sizes: Any) -> RemoteSAMConfig:
    """Sizes of the small network."""
    small: dict[str, Any] = {
        "window_px": SIDE,
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "heads": (1, 2, 4, 8),
        "swin_window": 4,
        "cross_heads": 2,
        "cross_key_dim": 4,
        "cross_value_dim": 8,
        "decoder_dim": 16,
        "vocabulary": len(WORDS),
        "text_dim": 32,
        "text_layers": 2,
        "text_heads": 4,
        "text_ffn_dim": 64,
        "text_positions": 32,
    }
    return RemoteSAMConfig(**{**small, **sizes})


def make_tiny(
    folder: Path, *, name: str = "tiny", salt: str = "tiny:", change: Any = None, metadata: dict[str, str] | None = None
) -> Path:
    """Write weights by the formula and their vocabulary into `folder`; returns the weights.

    Parameters
    ----------
    change : called with the state dict before it is written.
    metadata : instead of the right ones.
    """
    config = tiny_config()
    state = remotesam_state(RemoteSAM.from_config(config), salt)
    if change is not None:
        change(state)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    right = {"architecture": "remotesam", "config": json.dumps(config.as_dict())}
    write_safetensors(path, state, right if metadata is None else metadata)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return path


def load_tiny(weights: Path, *, bands: tuple[str, ...] = RGB, window_px: int = SIDE, **options: Any) -> RemoteSAMSegmenter:
    """The segmenter of these weights."""
    spec = ModelSpec(name="remotesam", window_px=window_px, options={"weights": str(weights), **options})
    segmenter = load_segmenter(spec, bands)
    assert isinstance(segmenter, RemoteSAMSegmenter)
    return segmenter


def prompts_of(*texts: str) -> PromptSet:
    """Prompts with these texts."""
    return PromptSet(tuple(Prompt(text) for text in texts))


def tiny_pipeline(weights: Path, *, batch: int = 2, options: str = "", **settings: Any) -> str:
    """Text of a pipeline over the toy scenes that asks the small network; red is the toy's nir, blue its green."""
    text = toy_pipeline(model="remotesam", **{"window_px": SIDE, **settings})
    text = text.replace('bands = ["green", "nir"]', 'bands = ["red", "green", "blue"]\nassets = { red = "nir", blue = "green" }')
    text = text.replace("batch = 4", f"batch = {batch}")
    table = f'[model.options]\nweights = "{weights}"\nstretch_high = 0.6\n{options}\n'
    return text.replace("[output]", f"{table}[output]")
