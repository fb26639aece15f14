"""The network against numbers that the published training code gave, with weights made by a formula.

Tolerances, float32: masks and prompts 2e-4, features 1e-4, both absolute; at most 1 pixel of a mask in 10,000 differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import rsrefseg_state, waves

from eo_batch.models.rsrefseg import RSRefSeg, RSRefSegConfig
from eo_batch.models.rsrefseg.pictures import enlarge

pytestmark = pytest.mark.shared
FEATURES, MASKS, MASK_SHARE = 1e-4, 2e-4, 1e-4
SMALL = ("tinyA_base", "tinyB_base", "tinyA_nodense", "tinyA_down1")


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    folder = shared.parent / "golden" / "rsrefseg"
    if not folder.is_dir():
        pytest.skip(f"no reference numbers in {folder}")
    return folder


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@dataclass(frozen=True)
class Case:
    """One file, and the network and the image that it is about."""

    arrays: Any
    config: RSRefSegConfig
    network: RSRefSeg
    image: Any

    def __getitem__(self, name: str) -> Any:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def prompts(self) -> list[Any]:
        names = sorted(name for name in self.arrays.files if name.endswith("input_ids"))
        return [self[name] for name in names]


def shapes_of(golden: Path, name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads((golden / name).read_text()).items()}


def config_of(golden: Path, arrays: Any) -> RSRefSegConfig:
    sizes = json.loads((golden / "configs.json").read_text())[str(arrays["config"])]
    return RSRefSegConfig(
        **sizes,
        down_spatial_times=int(arrays["down_spatial_times"]),
        with_dense_feat=bool(arrays["with_dense_feat"]),
        lora_r=int(arrays["lora_r"]),
        lora_alpha=int(arrays["lora_alpha"]),
    )


@cache
def read(golden: Path, name: str) -> Case:
    arrays = np.load(golden / f"{name}.npz", allow_pickle=False)
    config = config_of(golden, arrays)
    kind = str(arrays["config"])
    file = "state_dict.json" if kind == "b" else f"state_dict_{kind}_d{config.down_spatial_times}_r{config.lora_r}.json"
    state = rsrefseg_state(shapes_of(golden, file), int(arrays["weight_seed"]))
    side = int(arrays["image_size"])
    return Case(arrays, config, RSRefSeg.from_upstream(state, config), image_of(side, int(arrays["image_seed"])))


def image_of(side: int, seed: int) -> Any:
    return torch.from_numpy(waves(side, side, seed)).permute(2, 0, 1)[None] / 255


def close(ours: Any, truth: Any, tolerance: float) -> None:
    truth = truth.reshape(ours.shape)
    assert float((ours - truth).abs().max()) <= tolerance


@pytest.mark.parametrize("name", SMALL)
def test_masks_are_the_reference_ones(golden: Path, name: str) -> None:
    case = read(golden, name)
    answers = case.network.decode(case.network.encode_images(case.image), case.network.encode_prompts(case.prompts()))
    for number in range(len(case.prompts())):
        answer = answers[:, number : number + 1]
        close(answer[0, 0], case[f"p{number}_low_res_masks"], MASKS)
        height, width = case.arrays[f"p{number}_ori_shape"]
        full = enlarge(answer, case.config.image_px, int(height), int(width))[0, 0]
        assert float(((torch.sigmoid(full) > 0.5).numpy() != case.arrays[f"p{number}_pred"]).mean()) <= MASK_SHARE
        close(torch.sigmoid(full)[::4, ::4], case[f"p{number}_probs_sub"], MASKS)
