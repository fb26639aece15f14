"""The network against numbers that the published training code gave, with weights made by a formula.

Tolerances are shares of the spread (standard deviation) of what is compared, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg2 import RSRefSeg2, RSRefSeg2Config
from eo_batch.models.rsrefseg2.mapping import our_name
from eo_batch.models.rsrefseg2.pictures import enlarge, fit, fitted

CASES = ("tiny_a", "tiny_a_stable", "tiny_b")
DETAILED = ("tiny_a", "tiny_b")
NEAR = 3e-4


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(ours: Any, truth: Any, share: float = NEAR) -> None:
    assert ours.shape == truth.shape
    assert float((ours - truth).abs().max()) <= share * float(truth.std())


def image_of(case: Any) -> Any:
    return torch.from_numpy(fit(case.picture, case.config.image_px)).permute(2, 0, 1)[None].float() / 255


def subsampled(answer: Any) -> Any:
    """As much of an answer as the file holds."""
    return answer if answer.shape[-1] <= 32 else answer[::2, ::2]


@pytest.mark.parametrize("name", CASES)
def test_masks_are_the_reference_ones(read: Callable[[str], Any], name: str) -> None:
    case = read(name)
    answers = case.network.decode(case.network.encode_images(image_of(case)), case.network.encode_prompts(case.prompts))
    height, width = case.picture.shape[:2]
    for number in range(len(case.prompts)):
        answer = answers[:, number : number + 1]
        close(subsampled(answer[0, 0]), case[f"p{number}_low"])
        full = enlarge(answer, case.config.image_px, height, width)[0, 0]
        truth = np.unpackbits(case.numbers[f"p{number}_pred"], axis=1)[:, :width]
        assert 0 < truth.mean() < 1
        assert np.array_equal((full > 0).numpy(), truth)


@pytest.mark.parametrize("name", DETAILED)
def test_what_images_give_is_the_reference(read: Callable[[str], Any], name: str) -> None:
    case = read(name)
    seen = case.network.encode_images(image_of(case))
    close(seen.embedding[0, ::4], case["image_embedding"])
    close(seen.fine[0, ::4, ::4, ::4], case["high_1"])
    close(seen.finest[0, ::4, ::8, ::8], case["high_0"])
    close(seen.patches[0, ::3], case["siglip_tokens"])


@pytest.mark.parametrize("name", DETAILED)
def test_prompts_that_sam_is_given_are_the_reference(read: Callable[[str], Any], name: str) -> None:
    case = read(name)
    seen, prompter, encoder = case.network.encode_images(image_of(case)), case.network.prompter, case.network.encoder
    for number, sentence in enumerate(case.network.encode_prompts(case.prompts).prompts):
        close(sentence.one[0], case[f"p{number}_queries_1"])
        close(sentence.two[0], case[f"p{number}_queries_2"])
        close(sentence.whole[0], case[f"p{number}_text_pooled"])
        sparse, refined = prompter.refine(seen.patches, sentence.one, sentence.two)
        close(sparse[0], case[f"p{number}_sparse"])
        close(refined[0, ::5], case[f"p{number}_refined"])
        mask = prompter.dense(refined, sentence.whole, encoder.scale, encoder.bias)
        close(mask[0, 0, ::4, ::4], case[f"p{number}_mask_prompt"])
        close(case.network.sam.prompt_encoder.mask_embed(mask)[0, ::4, ::2, ::2], case[f"p{number}_dense"])


def test_cases_cover_stable_masks_and_all_that_take_their_place(read: Callable[[str], Any]) -> None:
    chosen = {
        int(case.numbers[f"p{number}_chosen"]) for case in map(read, CASES) for number in range(int(case.numbers["n_prompts"]))
    }
    assert chosen == {0, 1, 2, 3}


@pytest.mark.parametrize("name", DETAILED)
def test_pictures_are_resized_in_their_shape_as_the_training_did(read: Callable[[str], Any], name: str) -> None:
    case = read(name)
    height, width = fitted(*case.picture.shape[:2], case.config.image_px)
    assert [height, width] == case.numbers["pixels_shape"].tolist()
    made = fit(case.picture, case.config.image_px)
    assert np.array_equal(made[:height:9, :width:9], case.numbers["pixels"])
    assert not made[height:].any()
    assert not made[:, width:].any()


@pytest.mark.parametrize(
    ("shape", "side", "made"),
    [((100, 131), 128, (98, 128)), ((131, 100), 128, (128, 98)), ((3, 1000), 128, (1, 128)), ((800, 800), 1024, (1024, 1024))],
)
def test_the_shorter_side_is_rounded_half_up_and_never_nothing(shape: tuple[int, int], side: int, made: tuple[int, int]) -> None:
    assert fitted(*shape, side) == made


def test_what_short_numbers_would_spoil_stays_long(read: Callable[[str], Any]) -> None:
    network = copy.deepcopy(read("tiny_a").network)
    network.place(torch.device("cpu"), torch.bfloat16)
    long = {name for name, tensor in network.state_dict().items() if tensor.dtype == torch.float32}
    assert {"sam.shared_image_embedding.positional_embedding", "encoder.logit_scale", "prompter.dense_norm.running_var"} < long
    assert {name.split(".")[1] for name in long if name.startswith("prompter.")} == {"text_blocks", "dense_norm"}
    assert network.sam.mask_decoder.iou_token.weight.dtype == torch.bfloat16


def test_prompts_together_answer_as_alone_to_the_bit(read: Callable[[str], Any]) -> None:
    case = read("tiny_a")
    seen = case.network.encode_images(image_of(case))
    together = case.network.decode(seen, case.network.encode_prompts(case.prompts))
    alone = [case.network.decode(seen, case.network.encode_prompts([ids])) for ids in reversed(case.prompts)]
    assert torch.equal(together, torch.cat(alone[::-1], dim=1))


def test_images_together_answer_as_alone_to_the_bit(read: Callable[[str], Any]) -> None:
    case = read("tiny_b")
    images = torch.cat([image_of(case), 1 - image_of(case)])
    prompts = case.network.encode_prompts(case.prompts)
    together = case.network.decode(case.network.encode_images(images), prompts)
    alone = [case.network.decode(case.network.encode_images(image), prompts) for image in images.split(1)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b", "full"])
def test_every_weight_of_a_checkpoint_has_its_place_and_every_place_its_weight(
    read: Callable[[str], Any], shapes: Callable[[str], Any], name: str
) -> None:
    config = RSRefSeg2Config() if name == "full" else read(name).config
    built = {key: tuple(tensor.shape) for key, tensor in RSRefSeg2._build(config).state_dict().items()}
    merged = {key.replace(".base_layer.", "."): shape for key, shape in shapes(name).items() if ".lora_" not in key}
    placed = {our_name(key): shape for key, shape in merged.items() if our_name(key) in built}
    assert placed == built
    assert len(placed) == sum(our_name(key) in built for key in merged)  # no two in one place


def test_the_published_size_has_as_many_parameters_as_others_count(shapes: Callable[[str], Any]) -> None:
    # 1447.13 M parameters of RSRefSeg 2 are what a later paper (DiCoR, 2026) measured
    counted = sum(
        int(np.prod(shape, dtype=np.int64))
        for key, shape in shapes("full").items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", "positional_encoding_gaussian_matrix"))
    )
    assert round(counted / 1e6, 2) == 1447.13


@pytest.mark.parametrize(
    "wrong", ["missing", "unexpected", "an update of nothing", "half an update", "another rank", "another scale"]
)
def test_other_checkpoints_are_refused_or_answer_otherwise(read: Callable[[str], Any], wrong: str) -> None:
    case = read("tiny_a")
    state, config = dict(case.state), case.config
    update = "clip_text_encoder.base_model.model.model.encoder.layers.0.self_attn.q_proj.lora_B.default.weight"
    if wrong == "missing":
        del state["prompter.img_pe"]
    elif wrong == "unexpected":
        state["prompter.queries1_to_img_attn_layers.0.norm_text_7.weight"] = torch.ones(3)
    elif wrong == "an update of nothing":
        state["prompter.sparse_prompt_mlp.layers.0.lora_A.default.weight"] = torch.ones(4, 32)
    elif wrong == "half an update":
        del state[update]
    elif wrong == "another rank":
        config = replace(config, lora_r=2)
    else:
        network = RSRefSeg2.from_upstream(state, replace(config, lora_alpha=4))
        queries = network.encode_prompts(case.prompts[:1]).prompts[0].one[0]
        assert float((queries - case["p0_queries_1"]).abs().max()) > 0.1
        return
    with pytest.raises(ModelError) as caught:
        RSRefSeg2.from_upstream(state, config)
    assert caught.value.code == "model-load"


def test_an_export_to_float32_with_floating_counters_is_taken(read: Callable[[str], Any]) -> None:
    case = read("tiny_a")
    network = RSRefSeg2.from_upstream({name: tensor.float() for name, tensor in case.state.items()}, case.config)
    assert all(torch.equal(tensor, case.network.state_dict()[name]) for name, tensor in network.state_dict().items())
    assert network.prompter.dense_norm.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("prompt", [[1] * 21, [], [96, 1], [-1, 1]])
def test_tokens_that_the_network_has_no_weights_for_are_refused(read: Callable[[str], Any], prompt: list[int]) -> None:
    with pytest.raises(ModelError) as caught:
        read("tiny_a").network.encode_prompts([torch.tensor(prompt, dtype=torch.int64)])
    assert caught.value.code == "model-shape"


def test_images_of_another_size_are_refused(read: Callable[[str], Any]) -> None:
    with pytest.raises(ModelError) as caught:
        read("tiny_a").network.encode_images(torch.zeros(1, 3, 64, 64))
    assert caught.value.code == "model-shape"
