"""Small SAM 3, Grounding DINO and SAM 2 with random weights, written by the transformers library as it writes every network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from toy import toy_pipeline
from transformers.utils import logging as said

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import FinderSegmenter
from eo_batch.models.registry import load_segmenter

RGB = ("red", "green", "blue")
WORDS = ["a", "bright", "dark", "field", "of", "lake", "left", "on", "ship", "the", "water", "solar", "panel"]
SAM3_SIDE, SIDE = 56, 64
"""Sides of the pictures that the small networks look at, in pixels."""
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


def make_detector(folder: Path, *, seed: int = 0, queries: int = 12, **changed: Any) -> Path:
    """A Grounding DINO that looks at pictures of 64 px; returns the folder."""
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    swin = SwinConfig(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4])
    size = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertConfig(vocab_size=1030 + len(WORDS), num_hidden_layers=1, max_position_embeddings=32, **size)
    parts: dict[str, Any] = {
        "backbone_config": swin,
        "text_config": bert,
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": queries,
        "max_text_len": 16,
    }
    network = GroundingDinoForObjectDetection(GroundingDinoConfig(**{**parts, **changed}))
    stir(network, seed)
    network.save_pretrained(folder)
    places = {"[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    write_tokenizer(folder, "[CLS]", "[SEP]", numbers=places | {word: 1030 + place for place, word in enumerate(WORDS)})
    picture = {"size": {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}, "do_pad": True, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture))
    return folder


def make_sam2(folder: Path, *, seed: int = 0, **changed: Any) -> Path:
    """A SAM 2 that looks at pictures of 64 px; returns the folder."""
    from transformers import Sam2Config, Sam2Model

    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    parts: dict[str, Any] = {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": hiera,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": SIDE},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    }
    network = Sam2Model(Sam2Config(**{**parts, **changed}))
    stir(network, seed)
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": SIDE, "width": SIDE}, "resample": 2}))
    return folder


MAKERS = {"sam3": make_sam3, "grounding-dino": make_detector, "sam2": make_sam2}


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


def write_tokenizer(folder: Path, begin: str, end: str, *, unknown: str = "[UNK]", numbers: dict[str, int] | None = None) -> None:
    """A `tokenizer.json` that knows `WORDS`, lower-cased and cut at blanks and punctuation."""
    words = {word: number for number, word in enumerate([unknown, begin, end, *WORDS])} if numbers is None else numbers
    made = Tokenizer(models.WordLevel(words, unk_token=unknown))
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


def finder_pipeline(name: str, options: dict[str, Any], *, batch: int = 2, **settings: Any) -> str:
    """Text of a pipeline over the toy scenes that asks a small network; red is the toy's nir, blue its green."""
    text = toy_pipeline(model=name, **{"window_px": 48, **settings}).replace("batch = 4", f"batch = {batch}")
    text = text.replace('bands = ["green", "nir"]', 'bands = ["red", "green", "blue"]\nassets = { red = "nir", blue = "green" }')
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in {"stretch_high": 0.6, **options}.items())
    return text.replace("[output]", f"[model.options]\n{lines}\n[output]")


def prompts_of(*texts: str) -> PromptSet:
    """Prompts with these texts."""
    return PromptSet(tuple(Prompt(text) for text in texts))


def answers(segmenter: FinderSegmenter, images: NDArray[np.float32], *texts: str) -> NDArray[np.float32]:
    """Logits of windows and prompts."""
    return segmenter.decode(segmenter.encode_images(images), segmenter.encode_prompts(prompts_of(*texts)))
