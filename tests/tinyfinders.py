"""Small SAM 3, Grounding DINO and SAM 2 with random weights, written by the transformers library as it writes every network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers.utils import logging as said

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import FinderSegmenter
from eo_batch.models.registry import load_segmenter

RGB = ("red", "green", "blue")
WORDS = ["a", "bright", "dark", "field", "of", "lake", "left", "on", "ship", "the", "water", "solar", "panel"]
SAM3_SIDE = 56
said.disable_progress_bar()


def make_sam3(folder: Path, *, seed: int = 0, queries: int = 6, **changed: Any) -> Path:
    """A SAM 3 that looks at pictures of 56 px; returns the folder.

    Parameters
    ----------
    changed : parts of its config instead of the right ones.
    """
    from transformers import Sam3Config, Sam3Model

    size = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    vit = {"model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": SAM3_SIDE, "patch_size": 14, "window_size": 2}
    words = {"vocab_size": len(WORDS) + 3, "num_hidden_layers": 2, "projection_dim": 16, "max_position_embeddings": 32}
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    parts: dict[str, Any] = {
        "vision_config": {
            "backbone_config": {**vit, **size, "global_attn_indexes": [1], "pretrain_image_size": 28},
            "fpn_hidden_size": 32,
        },
        "text_config": {"model_type": "clip_text_model", "hidden_act": "gelu", **size, **words, **marks},
        "geometry_encoder_config": {**size, "num_layers": 1, "roi_size": 3},
        "detr_encoder_config": {**size, "num_layers": 2},
        "detr_decoder_config": {**size, "num_layers": 2, "num_queries": queries},
        "mask_decoder_config": {"hidden_size": 32, "num_attention_heads": 2},
    }
    network = Sam3Model(Sam3Config(**{**parts, **changed}))
    stir(network, seed)
    network.save_pretrained(folder)
    write_tokenizer(folder, "<|startoftext|>", "<|endoftext|>")
    picture = {"size": {"height": SAM3_SIDE, "width": SAM3_SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": picture, "processor_class": "Sam3Processor"}))
    return folder


def stir(network: torch.nn.Module, seed: int) -> None:
    """Random weights under which everything has a say: a network fresh from its class answers nearly the same to all."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=chance)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(noise * 0.2)


def write_tokenizer(folder: Path, begin: str, end: str, *, unknown: str = "[UNK]") -> None:
    """A `tokenizer.json` that knows `WORDS`, lower-cased and cut at blanks and punctuation."""
    words = [unknown, begin, end, *WORDS]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([begin, end, unknown])
    made.save(str(folder / "tokenizer.json"))


def load(name: str, *, window_px: int = 48, bands: tuple[str, ...] = RGB, **options: Any) -> FinderSegmenter:
    """The segmenter of this name with these options."""
    segmenter = load_segmenter(ModelSpec(name=name, window_px=window_px, options=options), bands)
    assert isinstance(segmenter, FinderSegmenter)
    return segmenter


def windows(n: int = 3, height: int = 48, width: int = 48, seed: int = 0) -> NDArray[np.float32]:
    """Reflectance of smooth colours with noise, each a whole step of 1/255 of the stretch, so that rounding is no question."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 48
    waves = [np.sin(6 * x + k) * np.cos(5 * y - k) for k in range(3 * n)]
    colours = 120 + 80 * np.reshape(waves, (n, 3, height, width)) + rng.normal(0, 10, (n, 3, height, width))
    return (np.rint(colours) / 255 * 0.25).astype(np.float32)


def prompts_of(*texts: str) -> PromptSet:
    """Prompts with these texts."""
    return PromptSet(tuple(Prompt(text) for text in texts))


def answers(segmenter: FinderSegmenter, images: NDArray[np.float32], *texts: str) -> NDArray[np.float32]:
    """Logits of windows and prompts."""
    return segmenter.decode(segmenter.encode_images(images), segmenter.encode_prompts(prompts_of(*texts)))
