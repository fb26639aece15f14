"""The network at a small size: against the library's own modules, in parts, in training, with CLIP, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula import rsrefseg_state
from tinyref import tiny_config
from torch import nn
from transformers import CLIPConfig, CLIPModel, SamConfig, SamModel, SiglipConfig, SiglipModel

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.rsrefseg import AttnPrompter, RSRefSeg, RSRefSegConfig
from eo_batch.models.rsrefseg.layers import TABLE_NUMBERS
from eo_batch.models.rsrefseg.mapping import upstream_shapes
from eo_batch.models.rsrefseg.training import TRAINED, mask_loss, trained_parameters

SENTENCES = [[4, 9, 21, 1], [7, 1], [30, 3, 3, 12, 8, 25, 1]]
TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {
    "projection_dim": 20,
    "text_config": TOWER | {"vocab_size": 60, "max_position_embeddings": 16},
    "vision_config": TOWER | {"image_size": 24, "patch_size": 4},
}


def small(**own: Any) -> RSRefSegConfig:
    """The small network, with a mask prompt of more than one channel: normalising one leaves nothing."""
    sam = dict(tiny_config().sam)
    return tiny_config(
        sam=sam | {"prompt_encoder_config": dict(sam["prompt_encoder_config"]) | {"mask_input_channels": 16}}, **own
    )


@cache
def network_of(config: RSRefSegConfig) -> RSRefSeg:
    if config.clip is None:
        with torch.device("meta"):
            shapes = upstream_shapes(RSRefSeg(config).state_dict(), config)
        return RSRefSeg.from_upstream(rsrefseg_state(shapes, seed=3), config)
    torch.manual_seed(7)
    made = RSRefSeg.from_config(config)
    with torch.no_grad():
        made.encoder.logit_scale.fill_(2)  # so that agreement is neither 0 nor 1
        for name, weight in made.named_parameters():
            if name.startswith("sam.") and "norm" not in name:
                weight.normal_(std=0.3)
    return made


@pytest.fixture(params=["siglip", "clip"])
def network(request: pytest.FixtureRequest) -> RSRefSeg:
    return network_of(small() if request.param == "siglip" else small(siglip=None, clip=CLIP))


def images(count: int, seed: int = 1) -> Any:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def prompts() -> list[Any]:
    return [torch.tensor(ids) for ids in SENTENCES]


@cache
def plain_parts(network: RSRefSeg) -> tuple[Any, Any]:
    """The library's models with the weights of `network`, as the library builds and computes them."""
    config = network.config
    sam = SamModel(SamConfig(**{name: dict(part) for name, part in config.sam.items()}, attn_implementation="eager")).eval()
    if config.clip is None:
        encoder = SiglipModel(SiglipConfig(**{name: dict(part) for name, part in config.encoder.items()})).eval()
    else:
        sizes: dict[str, Any] = {name: dict(part) for name, part in config.encoder.items() if name != "projection_dim"}
        sizes["text_config"] |= {"eos_token_id": 1, "bos_token_id": None, "pad_token_id": None}
        encoder = CLIPModel(CLIPConfig(**sizes, projection_dim=config.width)).eval()
    state = network.state_dict()
    for model, start in ((sam, "sam."), (encoder, "encoder.")):
        mine = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        missing, unexpected = model.load_state_dict(mine, strict=False)
        assert not unexpected
        assert all("shared_embedding" in name or name.startswith("vision_model.head.") for name in missing)
    return sam, encoder


@torch.no_grad()
def plainly(network: RSRefSeg, image: Any, ids: Any) -> Any:
    """Logits (1, 1, h, w): the whole way in the library's modules and torch's operations, one pair at a time."""
    config, prompter = network.config, network.prompter
    sam, encoder = plain_parts(network)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    embedding = sam.vision_encoder((image - mean) / std).last_hidden_state
    if config.clip is None:
        pixels = F.interpolate((image - 0.5) / 0.5, config.encoder_px, mode="bilinear")
        patches = encoder.vision_model(pixels).last_hidden_state
        text = encoder.text_model(ids[None])
        words, sentence, bias = text.last_hidden_state[0], text.pooler_output[0], encoder.logit_bias
    else:
        mean, std = (torch.tensor(v)[:, None, None] for v in (network.encoder.mean, network.encoder.std))
        pixels = F.interpolate((image - mean) / std, config.encoder_px, mode="bilinear")
        vision = encoder.vision_model(pixels).last_hidden_state[:, 1:]
        patches = encoder.visual_projection(encoder.vision_model.post_layernorm(vision))
        words = encoder.text_projection(encoder.text_model(ids[None]).last_hidden_state)[0]
        sentence, bias = encoder.get_text_features(ids[None]).pooler_output[0], 0.0
    side, scale = config.grid, encoder.logit_scale.exp()
    v = patches[0].T.reshape(-1, side, side)
    local = [torch.sigmoid(scale * F.cosine_similarity(v, word[:, None, None], dim=0) + bias) for word in words]
    logit = scale * F.cosine_similarity(v, sentence[:, None, None], dim=0) + bias
    seen = torch.cat([(v + sum(v * a for a in local) / len(words)) / 2, v * torch.sigmoid(logit), v])[None]
    x = F.gelu(prompter.channel.bn(prompter.channel.conv(seen)))
    steps = (torch.arange(side) + 0.5) / side
    y, xs = torch.meshgrid(steps, steps, indexing="ij")
    x = x + sam.shared_image_embedding(torch.stack([xs, y], -1)).permute(2, 0, 1)
    for layer in prompter.spatial[:-1]:
        x = F.gelu(layer.bn(layer.conv(x)))
    sparse = prompter.spatial[-1].conv(x).flatten(2).transpose(1, 2)
    mask = F.interpolate(logit[None, None], config.low_res_px, mode="bilinear") if config.with_dense_feat else None
    _, dense = sam.prompt_encoder(None, None, None, mask)
    places = sam.get_image_wide_positional_embeddings()
    logits, _ = sam.mask_decoder(embedding, places, sparse[:, None], dense, multimask_output=False)
    return logits[:, 0]


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(siglip=None, clip=CLIP),
        small(with_dense_feat=False),
        small(down_spatial_times=0),
        small(down_spatial_times=4, siglip=None, clip=CLIP),
    ],
    ids=["siglip", "clip", "no dense path", "no halving", "one prompt"],
)
def test_logits_are_those_of_the_librarys_modules(config: RSRefSegConfig) -> None:
    network = network_of(config)
    answers = network.decode(network.encode_images(images(2)), network.encode_prompts(prompts()))
    assert answers.shape == (2, 3, 32, 32)
    for number, image in enumerate(images(2)):
        for place, ids in enumerate(prompts()):
            truth = plainly(network, image[None], ids)[0, 0]
            assert float((answers[number, place] - truth).abs().max()) < 1e-4 * max(1.0, float(truth.std()))


def test_few_rows_of_places_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(small())
    whole = network.encode_images(images(1)).embedding
    for numbers in (1, 9 * 64, 2 * 64 * 64):  # a row, some rows, two heads
        monkeypatch.setitem(TABLE_NUMBERS, "cpu", numbers)
        assert torch.allclose(network.encode_images(images(1)).embedding, whole, atol=1e-5)


def test_parts_give_what_pairs_give(network: RSRefSeg) -> None:
    parts = network.decode(network.encode_images(images(3)), network.encode_prompts(prompts()))
    pairs = network(images(3), prompts()).detach()
    assert pairs.shape == (3, 1, 32, 32)
    for number in range(3):
        assert torch.allclose(parts[number, number], pairs[number, 0], atol=1e-4)


def test_prompts_do_not_change_each_other(network: RSRefSeg) -> None:
    seen, some = network.encode_images(images(1)), prompts()
    together = network.decode(seen, network.encode_prompts(some))
    apart = [network.decode(seen, network.encode_prompts([ids])) for ids in reversed(some)]
    assert torch.equal(together, torch.cat(apart[::-1], 1))
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-3


def test_images_do_not_change_each_other_wherever_they_stand(network: RSRefSeg) -> None:
    some, asked = images(3), network.encode_prompts(prompts()[:1])
    together = network.decode(network.encode_images(some), asked)
    turned = network.decode(network.encode_images(some[[2, 0, 1]].clone()), asked)
    alone = network.decode(network.encode_images(some[1:2].clone()), asked)
    assert torch.equal(together[[2, 0, 1]], turned)
    assert torch.equal(together[1:2], alone)


def test_a_network_survives_its_state_dict_and_a_copy(network: RSRefSeg) -> None:
    asked, some = prompts()[:1], images(1)
    truth = network.decode(network.encode_images(some), network.encode_prompts(asked))
    again = RSRefSeg.from_state({name: tensor.clone() for name, tensor in network.state_dict().items()}, network.config)
    for other in (again, copy.deepcopy(network)):
        assert torch.equal(other.decode(other.encode_images(some), other.encode_prompts(asked)), truth)
        assert not any(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))


def test_places_follow_their_matrix() -> None:
    network = copy.deepcopy(network_of(small()))
    some, asked = images(1), prompts()[:1]
    first = network.decode(network.encode_images(some), network.encode_prompts(asked))
    with torch.no_grad():
        network.sam.shared_image_embedding.positional_embedding.mul_(0.5)
    second = network.decode(network.encode_images(some), network.encode_prompts(asked))
    assert torch.allclose(second, network(some, asked).detach(), atol=1e-4)
    assert not torch.allclose(first, second, atol=1e-3)


def test_training_after_inference_mode_works(network: RSRefSeg) -> None:
    made = copy.deepcopy(network)
    with torch.inference_mode():
        made.decode(made.encode_images(images(1)), made.encode_prompts(prompts()[:1]))
    made(images(1), prompts()[:1]).sum().backward()
    assert made.prompter.channel.conv.weight.grad is not None


def test_gradients_reach_what_is_trained(network: RSRefSeg) -> None:
    made = copy.deepcopy(network).train()
    chosen = trained_parameters(made)
    assert {name for name, weight in made.named_parameters() if weight.requires_grad} == set(chosen)
    assert all(name.startswith(TRAINED) for name in chosen)
    mask_loss(made(images(2), prompts()[:2]), torch.ones(2, 64, 64)).backward()
    reached = {name for name, weight in chosen.items() if weight.grad is not None and bool(weight.grad.abs().sum() > 0)}
    assert {name for name in chosen if name.startswith("prompter.")} <= reached | {"prompter.channel.conv.bias"}
    unused = ("point_embed", "not_a_point", "no_mask", "iou_prediction", "hypernetworks_mlps.1", "mlps.2", "mlps.3")
    assert {name for name in chosen if not any(part in name for part in unused)} <= reached


def test_gradients_reach_the_foundation_models_too(network: RSRefSeg) -> None:
    made = copy.deepcopy(network).train().requires_grad_(True)
    mask_loss(made(images(2), prompts()[:2]), torch.ones(2, 64, 64)).backward()
    for weight in (
        made.sam.vision_encoder.layers[0].attn.rel_pos_h,
        made.encoder.vision_model.encoder.layers[0].mlp.fc1.weight,
        made.encoder.text_model.encoder.layers[0].self_attn.q_proj.weight,
        made.encoder.logit_scale,
    ):
        assert weight.grad is not None
        assert torch.isfinite(weight.grad).all()
        assert float(weight.grad.abs().sum()) > 0


def test_a_fresh_bridge_learns() -> None:
    torch.manual_seed(5)
    made = copy.deepcopy(network_of(small()))
    made.prompter.initialise()
    chosen = trained_parameters(made.train())
    some = images(2)
    labels = (F.avg_pool2d(some[:, 0], 31, 1, 15) > 0.5).long()
    labels[:, :4] = 255
    optimiser, losses = torch.optim.AdamW(chosen.values(), lr=3e-3), []
    for _ in range(8):
        loss = mask_loss(made(some, prompts()[:2]), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_ignored_pixels_add_nothing_to_the_loss_but_count() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    whole = mask_loss(logits, torch.tensor([[[1, 1]]]), weight=1)
    assert float(whole) == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2)
    assert float(mask_loss(logits, torch.tensor([[[1, 255]]]))) == pytest.approx(5 * np.log1p(np.exp(-2)) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_give_nearly_the_same_mask(network: RSRefSeg, dtype: torch.dtype) -> None:
    short = copy.deepcopy(network).requires_grad_(False)
    short.place(torch.device("cpu"), dtype)
    truth = network.decode(network.encode_images(images(2)), network.encode_prompts(prompts()))
    ours = short.decode(short.encode_images(images(2)), short.encode_prompts(prompts()))
    assert ours.dtype == torch.float32
    assert torch.isfinite(ours).all()
    assert float((ours - truth).abs().mean() / truth.std()) < (0.1 if dtype == torch.bfloat16 else 0.02)
    assert short.sam.vision_encoder.layers[0].attn.qkv.weight.dtype == dtype
    assert short.encoder.text_model.final_layer_norm.weight.dtype == torch.float32
    assert short.sam.shared_image_embedding.positional_embedding.dtype == torch.float32
    assert short.prompter.channel.bn.running_var.dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 3, 63, 64), (1, 4, 64, 64), (3, 64, 64), (1, 3, 128, 128)])
def test_images_of_another_size_are_refused(network: RSRefSeg, shape: tuple[int, ...]) -> None:
    for call in (network.encode_images, lambda some: network(some, prompts()[:1])):
        with pytest.raises(ModelError, match="3, 64, 64") as caught:
            call(torch.zeros(shape))
        assert caught.value.code == "model-shape"


@pytest.mark.parametrize("wrong", [torch.zeros(0, 3, 64, 64), torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)])
def test_no_images_and_bytes_are_refused(network: RSRefSeg, wrong: Any) -> None:
    with pytest.raises(ModelError, match="from 0 to 1") as caught:
        network.encode_images(wrong)
    assert caught.value.code == "model-shape"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_tokens_may_be_of_any_whole_type(network: RSRefSeg, dtype: torch.dtype) -> None:
    whole, short = (network.encode_prompts([ids.to(kind) for ids in prompts()]) for kind in (torch.int64, dtype))
    for one, other in zip(whole.prompts, short.prompts, strict=True):
        assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_prompts_that_do_not_fit_are_refused(network: RSRefSeg) -> None:
    most = network.config.most_tokens
    for ids in (
        torch.ones(most + 1).long(),
        torch.ones(0).long(),
        torch.ones(2, 3).long(),
        torch.ones(3),
        torch.ones(3).bool(),
    ):
        with pytest.raises(ModelError, match=f"L from 1 to {most}"):
            network.encode_prompts([ids])
    for number in (-1, network.config.vocabulary):
        with pytest.raises(ModelError, match="Use the tokenizer"):
            network.encode_prompts([torch.tensor([number, 1])])
    with pytest.raises(ModelError, match="no pairs"):
        network(images(2), prompts()[:1])
    one = torch.tensor(SENTENCES[0])
    for both in zip(network.encode_prompts([one]).prompts[0], network.encode_prompts([one[None]]).prompts[0], strict=True):
        assert torch.equal(*both)
    longest = network.encode_prompts([torch.ones(most).long()])
    assert torch.isfinite(network.decode(network.encode_images(images(1)), longest)).all()


def test_published_sizes_are_built_at_once_and_have_the_published_number_of_weights() -> None:
    counts = {}
    for name, config in (("b", RSRefSegConfig.b()), ("l", RSRefSegConfig.l())):
        with torch.device("meta"):
            network = RSRefSeg(config)
        counts[name] = sum(weight.numel() for weight in network.parameters())
        assert isinstance(network.prompter, AttnPrompter)
        assert sum(w.numel() for w in network.prompter.parameters()) == 885_248 + 1_246_464
        assert (config.grid, config.most_tokens, config.low_res_px) == (27, 64, 256)
    head = 1152 + 4 * (1152**2 + 1152) + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152  # of the image half of SigLIP: not built
    updates = {"b": 2_416_640 + 2 * 4_018_176, "l": 6_352_896 + 2 * 4_018_176}
    assert {name: count + head + updates[name] for name, count in counts.items()} == {
        "b": 984_280_674 + 256,
        "l": 1_206_824_290 + 256,
    }


def test_config_survives_json_and_pickle() -> None:
    for config in (tiny_config(), tiny_config(siglip=None, clip=CLIP), RSRefSegConfig(), RSRefSegConfig.l()):
        assert RSRefSegConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
        assert pickle.loads(pickle.dumps(config)) == config
        assert hash(copy.deepcopy(config)) == hash(config)
    assert len({RSRefSegConfig.b().digest, RSRefSegConfig.l().digest, RSRefSegConfig(clip={}).digest}) == 3


def test_published_config_files_are_understood() -> None:
    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
    siglip = {
        "architectures": ["SiglipModel"],
        "text_config": tower | {"model_type": "siglip_text_model"},
        "vision_config": tower | {"image_size": 384, "patch_size": 14},
    }
    sam = {"model_type": "sam", "prompt_encoder_config": {"image_embedding_size": 64}, "initializer_range": 0.02}
    assert RSRefSegConfig.from_foundation(sam, siglip=siglip) == RSRefSegConfig.b()
    assert RSRefSegConfig.from_foundation(sam, clip={"projection_dim": 64}).width == 64


def test_settings_of_the_library_that_shape_nothing_may_be_given() -> None:
    plain = tiny_config()
    given = json.loads(json.dumps(plain.as_dict()))
    given["sam"] |= {"model_type": "sam", "initializer_range": 0.02}
    given["sam"]["vision_config"] |= {"mlp_ratio": 2, "mlp_dim": None}
    given["siglip"]["text_config"] |= {"pad_token_id": 1, "model_type": "siglip_text_model"}
    assert RSRefSegConfig(**given).sam["vision_config"]["mlp_dim"] == 48
    given["sam"]["vision_config"] = plain.sam["vision_config"]
    assert RSRefSegConfig(**given) == plain
    from_arrays = tiny_config(lora_r=np.int64(2), with_dense_feat=np.bool_(True), down_spatial_times=np.array(2))
    assert from_arrays.digest == plain.digest
    assert RSRefSegConfig(lora_alpha=16).digest == RSRefSegConfig(lora_alpha=16.0).digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("down_spatial_times", -1),
        ("down_spatial_times", 2.0),
        ("with_dense_feat", 1),
        ("lora_r", 0),
        ("lora_alpha", 0),
        ("lora_alpha", float("nan")),
        ("sam", []),
        ("siglip", "b"),
        ("clip", {}),
        ("sam.vision_config", 3),
        ("sam.vision_config.hidden_size", 1 << 30),
        ("sam.vision_config.hidden_size", None),
        ("sam.vision_config.num_hidden_layers", 10**6),
        ("sam.vision_config.num_attention_heads", 5),
        ("sam.vision_config.image_size", 100),
        ("sam.vision_config.image_size", [64, 64]),
        ("sam.vision_config.num_channels", 4),
        ("sam.vision_config.global_attn_indexes", [2]),
        ("sam.vision_config.global_attn_indexes", [1, 0]),
        ("sam.vision_config.global_attn_indexes", 1),
        ("sam.vision_config.hidden_act", "eval"),
        ("sam.vision_config.layer_norm_eps", float("inf")),
        ("sam.vision_config.use_rel_pos", "yes"),
        ("sam.vision_config.num_pos_feats", 16),
        ("sam.prompt_encoder_config.patch_size", 16),
        ("sam.prompt_encoder_config.hidden_size", 24),
        ("sam.prompt_encoder_config.mask_input_channels", 6),
        ("sam.mask_decoder_config.attention_downsample_rate", 3),
        ("sam.mask_decoder_config.iou_head_depth", 1),
        ("siglip.text_config.hidden_size", 32),
        ("siglip.text_config.projection_size", 32),
        ("siglip.vision_config.image_size", 3),
        ("siglip.vision_config.num_attention_heads", 7),
    ],
)
def test_sizes_that_do_not_fit_are_refused(path: str, value: object) -> None:
    values = json.loads(json.dumps(tiny_config().as_dict()))
    *outer, last = path.split(".")
    place = values
    for name in outer:
        place = place[name]
    place[last] = value
    with pytest.raises(ConfigError) as caught:
        RSRefSegConfig.from_dict(values)
    assert caught.value.code == "config-invalid"
    assert caught.value.where.startswith("config.")


@pytest.mark.parametrize(
    ("values", "where", "hint"),
    [
        ({"siglipp": {}}, "config", "siglip"),
        ({"sam": {"vision": {}}}, "config.sam", "vision_config"),
        ({"sam": {"vision_config": {"hiden_size": 3}}}, "config.sam.vision_config", "hidden_size"),
        ({"clip": {"projection": 3}}, "config.clip", "projection_dim"),
    ],
)
def test_unknown_sizes_are_refused_with_a_hint(values: dict[str, Any], where: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f'Did you mean "{hint}"') as caught:
        RSRefSegConfig.from_dict(values)
    assert (caught.value.code, caught.value.where) == ("config-unknown-key", where)


def test_linear_layers_are_replaced_once() -> None:
    network = network_of(small())
    assert not any(type(module) is nn.Linear for module in network.modules())
