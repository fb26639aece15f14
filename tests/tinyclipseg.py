"""A CLIPSeg network a thousand times smaller than the published one, and CLIP's words in small, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toy import toy_pipeline

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.finder import FinderSegmenter
from eo_batch.models.registry import load_segmenter

RGB = ("red", "green", "blue")
SIDE, PATCH = 64, 16
MARKS = ("<|startoftext|>", "<|endoftext|>")
PAIRS = ("w a", "t e", "wa te", "wate r</w>", "r o", "a d</w>", "ro ad</w>", "f i", "e l", "fi el", "fiel d</w>", "o f</w>")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def byte_letters() -> list[str]:
    """The letter that stands for each of the 256 bytes, in the order of CLIP's vocabulary (as GPT-2 chose them)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + n) for n in range(256 - len(plain))]


def write_words(folder: Path) -> None:
    """`vocab.json` and `merges.txt`: all bytes, all bytes that end a word, the joined pairs, two marks."""
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in PAIRS), *MARKS]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(PAIRS) + "\n")


def make_tiny(folder: Path, *, seed: int = 5, **sizes: Any) -> Path:
    """Write a random network, how its pictures are prepared, and its words into `folder`; returns it."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    known = 512 + len(PAIRS) + len(MARKS)
    text = {"vocab_size": known, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"max_position_embeddings": 16, "bos_token_id": known - 2, "eos_token_id": known - 1, "pad_token_id": known - 1}
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": PATCH}
    decoder = {"reduce_dim": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24, "projection_dim": 24}
    settings = {"extract_layers": [0, 2, 3], "use_complex_transposed_convolution": True, **decoder, **sizes}
    torch.manual_seed(seed)
    network = CLIPSegForImageSegmentation(CLIPSegConfig(text_config=text, vision_config=vision, **settings))
    with torch.no_grad():
        for name, parameter in network.named_parameters():  # of norms only the shifts; so that words and pixels come through
            if parameter.ndim != 1 or float(parameter[0]) == 0:
                parameter.copy_(torch.randn(parameter.shape) * (0.02 if ".reduces." in name else 0.3))
    network.save_pretrained(folder)
    said: dict[str, Any] = {"do_resize": True, "size": {"height": SIDE, "width": SIDE}, "resample": 2}
    said |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    write_words(folder)
    return folder


def load_tiny(folder: Path, *, bands: tuple[str, ...] = RGB, window_px: int = SIDE, **options: Any) -> FinderSegmenter:
    """The segmenter of this folder."""
    spec = ModelSpec(name="clipseg", window_px=window_px, options={"weights": str(folder), **options})
    segmenter = load_segmenter(spec, bands)
    assert isinstance(segmenter, FinderSegmenter)
    return segmenter


def prompts_of(*texts: str) -> PromptSet:
    """Prompts with these texts."""
    return PromptSet(tuple(Prompt(text) for text in texts))


def tiny_pipeline(folder: str, *, batch: int = 2, options: str = "", **settings: Any) -> str:
    """Text of a pipeline over the toy scenes that asks the small network; red is the toy's nir, blue its green."""
    text = toy_pipeline(model="clipseg", **{"window_px": SIDE, "prompts": ("water", "road"), **settings})
    text = text.replace('bands = ["green", "nir"]', 'bands = ["red", "green", "blue"]\nassets = { red = "nir", blue = "green" }')
    text = text.replace("batch = 4", f"batch = {batch}")
    table = f'[model.options]\nweights = "{folder}"\nstretch_high = 0.6\n{options}\n'
    return text.replace("[output]", f"{table}[output]")
