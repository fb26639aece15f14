"""A RSRefSeg network that is some thousand times smaller than the real one, and its tokenizer: for tests of whole runs."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from toy import toy_pipeline

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.registry import load_segmenter
from eo_batch.models.rsrefseg import RSRefSeg, RSRefSegConfig
from eo_batch.models.rsrefseg.mapping import upstream_shapes
from eo_batch.models.rsrefseg.segmenter import RSRefSegSegmenter
from eo_batch.models.weights.checkpoints import write_safetensors

RGB = ("red", "green", "blue")
SIDE = 64
_WORDS = "a the of on left dark bright white field fields lake water ship boat boats beside pier solar panel panels image in"
PIECES: tuple[tuple[str, float], ...] = (
    *(("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)),
    *((f"\u2581{word}", -2.0 - 0.1 * place) for place, word in enumerate(_WORDS.split())),
    *((letter, -9.0 - 0.05 * place) for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz0123456789\u2581")),
    *((end, -5.0) for end in ("er", "ing", "ship", "panels", "es")),
)
"""Word pieces and their scores; a piece's number is its place, as in SigLIP's vocabulary </s> is 1."""


LOUDER = {"sam_mask_decoder.model.output_hypernetworks_mlps.0.proj_out.weight": 60, "prompter_down_spatial.2.conv.weight": 10}
"""Weights of the formula times this, so that logits lie on both sides of 0 and differ from prompt to prompt."""


def tiny_config(**own: Any) -> RSRefSegConfig:
    """Sizes of the small network; `own`: settings beside the two encoders'."""
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sam = {
        "vision_config": {
            **{"hidden_size": 24, "mlp_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 3},
            **{"image_size": SIDE, "patch_size": 8, "output_channels": 16, "num_pos_feats": 8, "global_attn_indexes": [1]},
        },
        "prompt_encoder_config": {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4},
        "mask_decoder_config": {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    }
    siglip = {
        "text_config": {**tower, "vocab_size": len(PIECES), "max_position_embeddings": 64},
        "vision_config": {**tower, "image_size": 30, "patch_size": 4},
    }
    return RSRefSegConfig(**{"sam": sam, "siglip": siglip, "lora_r": 2, "lora_alpha": 4, **own})


def upstream_value(key: str, shape: tuple[int, ...], seed: str) -> NDArray[Any]:
    """What the reference vectors' formula gives for a key of the training's checkpoints, some of it louder."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    same = key.replace(
        "sam_prompt_encoder.model.shared_embedding.", "backbone.base_model.model.shared_image_embedding."
    )  # the second copy of SAM's matrix
    n = np.random.Generator(np.random.PCG64(zlib.crc32(f"{seed}:{same}".encode()))).standard_normal(shape)
    if key.endswith("positional_embedding"):
        value = n
    elif key.endswith("pos_embed"):
        value = 0.1 * n
    elif key.endswith("logit_scale"):
        value = 3.5 + 0.1 * n
    elif key.endswith("logit_bias"):
        value = -1 + 0.1 * n
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(n)
    elif len(shape) >= 2:
        value = n / np.sqrt(np.prod(shape[1:]))
    else:
        value = 1 + 0.1 * n if key.endswith("weight") else 0.1 * n
    return np.asarray(LOUDER.get(key, 1) * value, np.float32)


def upstream_state(*, seed: str = "tiny") -> dict[str, Any]:
    """A checkpoint of the training by the formula: tensors by the training's names, low-rank updates apart."""
    return {key: tensor.clone() for key, tensor in _upstream_state(seed).items()}


@cache
def _upstream_state(seed: str) -> dict[str, Any]:
    import torch

    with torch.device("meta"):
        built = RSRefSeg(tiny_config()).state_dict()
    shapes = upstream_shapes(built, tiny_config())
    return {key: torch.from_numpy(upstream_value(key, shape, seed)) for key, shape in shapes.items()}


@cache
def _state(seed: str) -> dict[str, Any]:
    return RSRefSeg.from_upstream(_upstream_state(seed), tiny_config()).state_dict()


def write_tokenizer(folder: Path, pieces: tuple[tuple[str, float], ...] = PIECES) -> Path:
    """Write `tokenizer.json` with these pieces; returns its path."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(list(pieces), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<pad>", "</s>", "<unk>")])
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def make_tiny(
    folder: Path, *, name: str = "tiny", seed: str = "tiny", change: Any = None, metadata: dict[str, str] | None = None
) -> Path:
    """Write weights by the formula, as a conversion would, and their tokenizer into `folder`; returns the weights.

    Parameters
    ----------
    change : called with the state dict before it is written.
    metadata : instead of the right ones.
    """
    config = tiny_config()
    state = {name: tensor.clone() for name, tensor in _state(seed).items()}
    if change is not None:
        change(state)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    right = {"architecture": "rsrefseg", "config": json.dumps(config.as_dict())}
    write_safetensors(path, state, right if metadata is None else metadata)
    write_tokenizer(folder)
    return path


def load_tiny(weights: Path, *, bands: tuple[str, ...] = RGB, window_px: int = SIDE, **options: Any) -> RSRefSegSegmenter:
    """The segmenter of these weights."""
    spec = ModelSpec(name="rsrefseg", window_px=window_px, options={"weights": str(weights), **options})
    segmenter = load_segmenter(spec, bands)
    assert isinstance(segmenter, RSRefSegSegmenter)
    return segmenter


def prompts_of(*texts: str) -> PromptSet:
    """Prompts with these texts."""
    return PromptSet(tuple(Prompt(text) for text in texts))


def tiny_pipeline(weights: Path, *, batch: int = 2, options: str = "", **settings: Any) -> str:
    """Text of a pipeline over the toy scenes that asks the small network; red is the toy's nir, blue its green."""
    text = toy_pipeline(model="rsrefseg", **{"window_px": SIDE, **settings})
    text = text.replace('bands = ["green", "nir"]', 'bands = ["red", "green", "blue"]\nassets = { red = "nir", blue = "green" }')
    text = text.replace("batch = 4", f"batch = {batch}")
    table = f'[model.options]\nweights = "{weights}"\nstretch_high = 0.6\n{options}\n'
    return text.replace("[output]", f"{table}[output]")
