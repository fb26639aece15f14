"""Small networks of RSRefSeg 2 with weights made by a formula, and what the published training code answered with them.

`golden/README.md` says how the numbers were made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import named_normal, rsrefseg_value, waves

from eo_batch.models.rsrefseg2 import RSRefSeg2, RSRefSeg2Config

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Case:
    """One file of reference numbers, and the network, the picture and the checkpoint that it is about."""

    numbers: Mapping[str, Any]
    config: RSRefSeg2Config
    state: Mapping[str, Any]
    network: RSRefSeg2
    picture: Any

    def __getitem__(self, name: str) -> Any:
        return torch.from_numpy(np.asarray(self.numbers[name]))

    @property
    def prompts(self) -> list[Any]:
        """Tokens of each prompt."""
        return [self[f"p{number}_ids"] for number in range(int(self.numbers["n_prompts"]))]


@pytest.fixture
def read() -> Callable[[str], Case]:
    """The case of a name."""
    return _read


@pytest.fixture
def shapes() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """Every name and shape of a checkpoint: "tiny_a", "tiny_b", or "full", the published size."""
    return _shapes


@cache
def _read(name: str) -> Case:
    numbers = dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))
    config = _config(json.loads(str(numbers["config"])))
    gain = float(numbers["mask_gain"])
    seed, shapes = int(numbers["weight_seed"]), _shapes(name.removesuffix("_stable"))
    state = {key: _tensor(key, shape, seed, gain) for key, shape in shapes.items()}
    height, width, look = (int(number) for number in numbers["picture"])
    return Case(numbers, config, state, RSRefSeg2.from_upstream({"state_dict": state}, config), waves(height, width, look))


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    numbers = np.load(GOLDEN / "keys.npz", allow_pickle=False)
    return {key: tuple(shape) for key, shape in json.loads(str(numbers[name])).items()}


def _tensor(key: str, shape: tuple[int, ...], seed: int, gain: float) -> Any:
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("positional_encoding_gaussian_matrix"):
        made = named_normal(f"{seed}:{key}", shape).astype(np.float32)
    elif key.endswith("pos_embed_window"):
        made = (0.1 * named_normal(f"{seed}:{key}", shape)).astype(np.float32)
    elif ".output_hypernetworks_mlps.0.layers.2." in key:
        n = named_normal(f"{seed}:{key}", shape)
        made = ((n / np.sqrt(shape[1]) if len(shape) == 2 else 0.1 * n) * gain).astype(np.float32)
    else:
        made = rsrefseg_value(key, shape, seed)
    return torch.from_numpy(np.asarray(made)).reshape(shape)


def _config(said: Mapping[str, Any]) -> RSRefSeg2Config:
    """Ours for a config in the words of the training code and of the libraries it uses."""
    sam, bridge = said["sam"], said["prompter"]
    words, image = said["siglip"]["text"], said["siglip"]["vision"]
    return RSRefSeg2Config(
        image_px=said["image_px"],
        sam_width=sam["embed_dim"],
        sam_heads=sam["num_heads"],
        sam_blocks=tuple(sam["stages"]),
        sam_windows=tuple(sam["window_spec"]),
        sam_everywhere=tuple(sam["global_att_blocks"]),
        sam_background=sam["bkg"][0],
        sam_channels=sam["d_model"],
        width=image["hidden_size"],
        mlp=image["intermediate_size"],
        heads=image["num_attention_heads"],
        image_layers=image["num_hidden_layers"],
        text_layers=words["num_hidden_layers"],
        encoder_px=image["image_size"],
        patch_px=image["patch_size"],
        vocabulary=words["vocab_size"],
        most_tokens=words["max_position_embeddings"],
        queries=bridge["text_queries"],
        prompts=bridge["prompts"],
        text_blocks=bridge["depths"][0],
        image_blocks=bridge["depths"][1],
        prompt_blocks=bridge["depths"][2],
        prompter_heads=bridge["heads"],
        prompter_inner=bridge["inner"],
        prompter_mlp=bridge["mlp"],
        lora_r=said["lora_r"],
        lora_alpha=said["lora_alpha"],
    )
