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
from eo_batch.models.rsrefseg.mapping import our_name, their_name, upstream_shapes
from eo_batch.models.rsrefseg.pictures import enlarge, normalise, resize, resize_8bit
from eo_batch.models.rsrefseg.prompter import agreement
from eo_batch.models.rsrefseg.training import mask_loss

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
    named = {"down_spatial_times": int, "with_dense_feat": bool, "lora_r": int, "lora_alpha": int}
    return RSRefSegConfig(**sizes, **{name: kind(arrays[name]) for name, kind in named.items() if name in arrays})


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


@pytest.mark.parametrize("name", SMALL)
def test_features_of_image_and_prompts_are_the_reference_ones(golden: Path, name: str) -> None:
    case, config = read(golden, name), read(golden, name).config
    network = case.network
    close(case.image[0, :, ::8, ::8], case["model_input_sub"], 1e-6)
    encoder = network.encoder
    small = resize(normalise(case.image, encoder.mean, encoder.std), config.encoder_px, config.encoder_px)
    close(small[0, :, ::12, ::12], case["siglip_pixel_sub"], 1e-5)
    close(encoder.see(small)[0].flatten(1).T, case["siglip_patch_tokens"], FEATURES)
    images = network.encode_images(case.image)
    close(images.embedding[0].permute(2, 0, 1), case["sam_image_embedding"], FEATURES)
    close(network._places()[1][0], case["image_positional_embeddings"], FEATURES)
    for number, ids in enumerate(case.prompts()):
        words, sentence = encoder.hear(ids[None])
        close(words[0], case[f"p{number}_text_tokens"], FEATURES)
        close(sentence[0], case[f"p{number}_text_pooled"], FEATURES)


@pytest.mark.parametrize("name", SMALL)
def test_prompts_for_sam_are_the_reference_ones(golden: Path, name: str) -> None:
    case, network = read(golden, name), read(golden, name).network
    images, encoder = network.encode_images(case.image), network.encoder
    for number, prompt in enumerate(network.encode_prompts(case.prompts()).prompts):
        words, sentence = agreement(images.directions, *prompt, encoder.scale, encoder.bias)
        close(torch.sigmoid(sentence)[0], case[f"p{number}_global_activation"], FEATURES)
        sparse, mask = network.prompter(images.maps, words, sentence, network._places()[0])
        close(sparse[0], case[f"p{number}_sparse_prompt_embeddings"], MASKS)
        if number == 0:
            close(words[0], case["p0_local_activation"].mean(0), FEATURES)
            _, dense = network.sam.prompt_encoder(None, None, None, mask)
            close(dense[0], case["p0_dense_prompt_embeddings"], MASKS)
            assert (mask is None) == (not case.config.with_dense_feat)
            if mask is not None:
                close(mask[0], case["p0_mask_prompt"], MASKS)


def test_prompts_of_other_lengths_do_not_touch_a_prompt(golden: Path) -> None:
    case = read(golden, "tinyB_padded_batch")
    prompts = [ids[:length] for ids, length in zip(case["input_ids_padded"], case.arrays["lengths"], strict=True)]
    images = torch.cat([image_of(160, int(seed)) for seed in case.arrays["image_seeds"]])
    parts = case.network.decode(case.network.encode_images(images), case.network.encode_prompts(prompts))
    pairs = case.network(images, prompts)
    for number in range(2):
        close(parts[number, number], case[f"single{number}_low_res_masks"], MASKS)
        close(pairs[number, 0], case[f"single{number}_low_res_masks"], MASKS)


@pytest.mark.parametrize("labels", ["gt", "gt_ignore"])
def test_loss_is_the_reference_one(golden: Path, labels: str) -> None:
    case = read(golden, "tinyB_loss")
    logits = case.network(case.image, case.prompts())
    assert float(mask_loss(logits, case[labels][None])) == pytest.approx(
        float(case.arrays[f"{labels}__decode.loss_ce"]), abs=1e-5
    )


def test_pictures_are_resized_to_the_bit(golden: Path) -> None:
    arrays = np.load(golden / "preprocess_up.npz", allow_pickle=False)
    side = int(arrays["size"])
    picture = waves(int(arrays["height"]), int(arrays["width"]), int(arrays["image_seed"]))
    assert np.array_equal(resize_8bit(picture, side, side), arrays["resized_rgb"])


@pytest.mark.parametrize(
    ("file", "variant"), [("state_dict.json", "b"), ("state_dict_l.json", "l"), ("state_dict_tinyA_d1_r16.json", "tinyA")]
)
def test_names_and_shapes_are_those_of_the_training(golden: Path, file: str, variant: str) -> None:
    if variant in ("b", "l"):
        config = RSRefSegConfig.b() if variant == "b" else RSRefSegConfig.l()
        assert config == RSRefSegConfig(**json.loads((golden / "configs.json").read_text())[variant])
    else:
        config = RSRefSegConfig(**json.loads((golden / "configs.json").read_text())[variant], down_spatial_times=1)
    with torch.device("meta"):
        network = RSRefSeg(config)
    theirs = shapes_of(golden, file)
    assert upstream_shapes(network.state_dict(), config) == theirs
    assert all(our_name(name) is not None and their_name(str(our_name(name))) == name for name in theirs)


@pytest.mark.slow
def test_the_published_size_gives_the_reference_mask(golden: Path) -> None:
    case = read(golden, "full_b")
    images = case.network.encode_images(case.image)
    close(images.embedding[0, ::8, ::8].permute(2, 0, 1), case["sam_image_embedding_sub"], FEATURES)
    close(images.embedding[0].mean((0, 1)), case["sam_image_embedding_mean"], FEATURES)
    answer = case.network.decode(images, case.network.encode_prompts(case.prompts()))
    close(answer[0, 0], case["low_res_masks"], MASKS)
    full = enlarge(answer, case.config.image_px, 800, 800)[0, 0]
    differ = np.unpackbits(np.packbits((full > 0).numpy(), axis=-1) ^ case.arrays["pred"])
    assert float(differ.mean()) <= MASK_SHARE
    close(torch.sigmoid(full)[::8, ::8], case["probs_sub"], MASKS)
    read.cache_clear()  # 4 GB
