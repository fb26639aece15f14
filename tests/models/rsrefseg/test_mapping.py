"""Checkpoints of the training and foundation models: every name both ways, updates merged, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tinyref import tiny_config, upstream_state
from transformers import SamConfig, SamModel, SiglipConfig, SiglipModel

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg import RSRefSeg, RSRefSegConfig
from eo_batch.models.rsrefseg.mapping import ADAPTED, TABLE, is_dead, our_name, their_name, upstream_shapes

QKV = "backbone.base_model.model.model.layers.0.attn.qkv."
NECK = "backbone.base_model.model.model.neck.conv2."
HEAD = "clip_vision_encoder.base_model.model.model.head."


def refused(state: Any, config: RSRefSegConfig | None = None) -> ModelError:
    with pytest.raises(ModelError) as caught:
        RSRefSeg.from_upstream(state, config or tiny_config(), where="run.pth")
    assert caught.value.code == "model-load"
    assert caught.value.where == "run.pth"
    return caught.value


def test_every_name_of_ours_has_one_of_theirs_and_back() -> None:
    network = RSRefSeg.from_config(tiny_config(), is_trainable=False)
    ours = set(network.state_dict())
    assert {our_name(their_name(name)) for name in ours} == ours
    theirs = upstream_shapes(network.state_dict(), tiny_config())
    found = {str(our_name(name)).replace(".base_layer.", ".") for name in theirs if ".lora_" not in name and not is_dead(name)}
    assert found == ours
    assert all(any(name.startswith(start) for start, _ in TABLE) for name in theirs)
    assert our_name("decode_head.conv.weight") is None


def test_every_adapted_layer_has_both_updates() -> None:
    theirs = upstream_shapes(RSRefSeg.from_config(tiny_config(), is_trainable=False).state_dict(), tiny_config())
    layers = {name.partition(".lora_")[0] for name in theirs if ".lora_" in name}
    assert {name.partition(".base_layer.")[0] for name in theirs if ".base_layer." in name} == layers
    assert all({f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"} <= set(theirs) for layer in layers)
    assert len(layers) == 2 * 4 + 2 + 2 * 4 + 2 * 4 + 1 + 1  # SAM, its neck, both halves of SigLIP, the text head, the dead one
    assert len(ADAPTED) == 5


@pytest.mark.parametrize(("key", "dtype"), [("module", torch.float16), ("state_dict", torch.bfloat16), ("", torch.float32)])
def test_wrapped_and_short_checkpoints_give_the_same_network(key: str, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in upstream_state().items()}
    network = RSRefSeg.from_upstream({key: state, "epoch": 3} if key else state, tiny_config())
    exact = RSRefSeg.from_upstream({name: t.float() if t.is_floating_point() else t for name, t in state.items()}, tiny_config())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name]), name
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)


@pytest.mark.parametrize("key", ["", "state_dict"])
def test_an_export_to_float32_with_floating_counters_gives_the_same_network(key: str) -> None:
    state = upstream_state()
    state["prompter_down_channel.bn.num_batches_tracked"] += 1234
    exported = {name: tensor.float() for name, tensor in state.items()}  # as DeepSpeed's zero_to_fp32.py does with buffers
    same = RSRefSeg.from_upstream(state, tiny_config()).state_dict()
    network = RSRefSeg.from_upstream({key: exported} if key else exported, tiny_config())
    assert network.prompter.channel.bn.num_batches_tracked.dtype == torch.int64
    assert all(torch.equal(tensor, same[name]) for name, tensor in network.state_dict().items())


def test_merged_updates_are_what_two_layers_beside_each_other_give() -> None:
    config, state = tiny_config(lora_alpha=6), upstream_state()
    network = RSRefSeg.from_upstream(state, config)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    base = F.linear(x, state[f"{QKV}base_layer.weight"], state[f"{QKV}base_layer.bias"])
    beside = base + 6 / 2 * F.linear(F.linear(x, state[f"{QKV}lora_A.default.weight"]), state[f"{QKV}lora_B.default.weight"])
    maps = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    down = F.conv2d(maps, state[f"{NECK}lora_A.default.weight"], padding=1)
    convolved = F.conv2d(maps, state[f"{NECK}base_layer.weight"], padding=1) + 3 * F.conv2d(
        down, state[f"{NECK}lora_B.default.weight"]
    )
    with torch.no_grad():
        assert torch.allclose(network.sam.vision_encoder.layers[0].attn.qkv(x), beside, atol=1e-5)
        assert torch.allclose(network.sam.vision_encoder.neck.conv2(maps), convolved, atol=1e-5)
        assert not torch.allclose(base, beside, atol=1e-2)


def test_dead_weights_may_be_missing_and_change_nothing() -> None:
    state = upstream_state()
    without = {name: tensor for name, tensor in state.items() if not is_dead(name)}
    assert len(state) - len(without) == 14
    ours = RSRefSeg.from_upstream(state, tiny_config()).state_dict()
    assert not any("head" in name for name in ours if name.startswith("encoder.vision_model."))
    for name, tensor in RSRefSeg.from_upstream(without, tiny_config()).state_dict().items():
        assert torch.equal(tensor, ours[name])


@pytest.mark.parametrize(
    "name",
    [
        f"{QKV}lora_B.default.weight",
        f"{QKV}base_layer.bias",
        "prompter_down_channel.bn.running_var",
        "clip_text_encoder.base_model.model.logit_bias",
    ],
)
def test_missing_tensors_are_named(name: str) -> None:
    state = upstream_state()
    del state[name]
    assert f"1 missing: {name}" in str(refused(state))


@pytest.mark.parametrize("name", ["decode_head.x", f"{QKV}weight", "prompter_down_spatial.0.conv.bias", f"{HEAD}extra"])
def test_tensors_of_nothing_are_named(name: str) -> None:
    assert f"1 unexpected: {name}" in str(refused(upstream_state() | {name: torch.zeros(3)}))


def test_other_shapes_and_number_types_are_named() -> None:
    assert "wrong shape" in str(refused(upstream_state() | {f"{NECK}base_layer.weight": torch.zeros(16, 16, 1, 1)}))
    assert "wrong type" in str(refused(upstream_state() | {f"{QKV}base_layer.bias": torch.zeros(72, dtype=torch.int32)}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_r": 4}, "lora_r: 2 in the file, 4 in the config"),
        ({"down_spatial_times": 3}, "down_spatial_times: 2 in the file, 3 in the config"),
        ({"sam": RSRefSegConfig.l().sam}, "layers of SAM: 2 in the file, 24 in the config"),
    ],
)
def test_another_config_is_told_by_its_sizes(changed: dict[str, Any], said: str) -> None:
    assert said in str(refused(upstream_state(), tiny_config(**changed)))


def test_the_published_variants_are_told_apart() -> None:
    with torch.device("meta"):
        shapes = upstream_shapes(RSRefSeg(RSRefSegConfig.b()).state_dict(), RSRefSegConfig.b())
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    error = refused(state, RSRefSegConfig.l())
    assert "12 in the file, 24 in the config" in str(error)
    assert "RSRefSegConfig.b()" in error.fix


def test_another_alpha_gives_another_network() -> None:
    state = upstream_state()
    answers = []
    for alpha in (4, 8):
        network = RSRefSeg.from_upstream(state, tiny_config(lora_alpha=alpha))
        images = network.encode_images(torch.full((1, 3, 64, 64), 0.3))
        answers.append(network.decode(images, network.encode_prompts([torch.tensor([4, 5, 1])])))
    assert not torch.allclose(*answers, atol=1e-2)


def test_numbers_that_are_none_are_refused() -> None:
    state = upstream_state()
    state[f"{QKV}lora_A.default.weight"][0, 0] = torch.nan
    assert "sam.vision_encoder.layers.0.attn.qkv.weight holds NaN" in str(refused(state))
    short = upstream_state()
    short[f"{QKV}base_layer.bias"] = torch.full((72,), 1e6).half()
    assert "infinite" in str(refused(short))


def test_a_copy_that_is_none_is_refused() -> None:
    name = "sam_prompt_encoder.model.shared_embedding.positional_embedding"
    state = upstream_state()
    assert "is not the copy" in str(refused(state | {name: state[name] + 1}))


@pytest.mark.parametrize(
    "state",
    [
        *({}, {"epoch": 3}, {"module": {}}, {"state_dict": [torch.zeros(1)]}, [1, 2], {"a": torch.zeros(1)}),
        *({3: torch.zeros(1)}, {"a": torch.zeros(2, 2).to_sparse()}),
    ],
)
def test_what_is_no_checkpoint_is_refused(state: Any) -> None:
    refused(state)


def test_the_training_knows_no_clip() -> None:
    assert "config has CLIP" in str(refused(upstream_state(), tiny_config(siglip=None, clip={})))


def hub_models(config: RSRefSegConfig) -> tuple[SiglipModel, SamModel]:
    torch.manual_seed(3)
    siglip = SiglipModel(SiglipConfig(**{name: dict(part) for name, part in config.encoder.items()}))
    return siglip, SamModel(SamConfig(**{name: dict(part) for name, part in config.sam.items()}))


def test_foundation_models_keep_their_features_in_the_network() -> None:
    config = tiny_config()
    siglip, sam = hub_models(config)
    torch.nn.init.normal_(sam.vision_encoder.pos_embed)
    network = RSRefSeg.from_foundation(siglip.state_dict(), sam.state_dict(), config)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert torch.allclose(network.sam.vision_encoder(pixels)[0], sam.vision_encoder(pixels)[0], atol=1e-5)
        small = pixels[..., :30, :30]
        patches = siglip.vision_model(small).last_hidden_state
        assert torch.allclose(network.encoder.see(small).flatten(2).transpose(1, 2), patches, atol=1e-5)
    assert float(network.prompter.channel.conv.weight.detach().std()) > 0


def test_foundation_models_may_be_short_and_hold_what_older_libraries_wrote() -> None:
    config = tiny_config()
    siglip, sam = hub_models(config)
    encoder = {name: tensor.half() for name, tensor in siglip.state_dict().items()}
    encoder["text_model.embeddings.position_ids"] = torch.arange(64)[None]
    drawer = sam.state_dict()
    del drawer["shared_image_embedding.positional_embedding"]  # the tensor is written once, under either of its names
    network = RSRefSeg.from_foundation(encoder, drawer, config)
    assert network.encoder.logit_scale.dtype == torch.float32
    matrix = drawer["prompt_encoder.shared_embedding.positional_embedding"]
    assert torch.equal(network.sam.shared_image_embedding.positional_embedding, matrix)


def test_foundation_models_of_other_sizes_are_refused() -> None:
    config = tiny_config()
    siglip, sam = hub_models(config)
    for encoder, drawer in ((siglip.state_dict(), {}), ({}, sam.state_dict()), (sam.state_dict(), siglip.state_dict())):
        with pytest.raises(ModelError, match="model-load"):
            RSRefSeg.from_foundation(encoder, drawer, config)


def test_a_config_of_more_layers_than_tensors_is_refused_before_it_is_built() -> None:
    huge = {"vision_config": dict(tiny_config().sam["vision_config"]) | {"num_hidden_layers": 128}}
    config = tiny_config(sam=dict(tiny_config().sam) | huge)
    with pytest.raises(ModelError, match="the config has 134 layers"):
        RSRefSeg.from_state({"a": torch.zeros(1)}, config)
