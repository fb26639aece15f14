"""Checkpoints of RSRefSeg's training become files of ours: every wrapper and number type, alpha, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinyref import make_tiny, tiny_config, upstream_state, write_tokenizer
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.rsrefseg import RSRefSeg, RSRefSegConfig
from eo_batch.models.rsrefseg.conversion import settings_of
from eo_batch.models.weights import WeightFiles, find_weights, read_weights
from eo_batch.models.weights.checkpoints import convert_checkpoint, find_architecture, write_safetensors

CONFIG = tiny_config().as_dict()


def convert(folder: Path, content: Any, *, config: dict[str, Any] | None = CONFIG) -> WeightFiles:
    """The file that a checkpoint with this content becomes."""
    torch.save(content, folder / "checkpoint.pth")
    return convert_checkpoint(folder / "checkpoint.pth", architecture=find_architecture("rsrefseg"), config=config)


def merged(state: dict[str, torch.Tensor], layer: str, scale: float) -> torch.Tensor:
    """W + scale B A of a layer by the training's name, in float64."""
    base, down, up = (state[f"{layer}.{part}.weight"].double() for part in ("base_layer", "lora_A.default", "lora_B.default"))
    return base + scale * torch.einsum("or,r...->o...", up.flatten(1), down)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "module"])
def test_every_wrapper_gives_the_network(tmp_path: Path, wrapper: str) -> None:
    state = upstream_state()
    found = convert(tmp_path, {wrapper: state, "epoch": 3} if wrapper else state)
    tensors, metadata = read_weights(found.weights)
    assert metadata["architecture"] == "rsrefseg"
    built = RSRefSeg.from_upstream(state, tiny_config()).state_dict()
    assert sorted(tensors) == sorted(built)
    for name, tensor in built.items():
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_merged_in_single_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    short = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in upstream_state().items()}
    tensors, _ = read_weights(convert(tmp_path, {"module": short}).weights)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    for theirs, ours in (
        ("backbone.base_model.model.model.layers.1.attn.qkv", "sam.vision_encoder.layers.1.attn.qkv"),
        ("backbone.base_model.model.model.neck.conv2", "sam.vision_encoder.neck.conv2"),
        ("clip_text_encoder.base_model.model.model.head", "encoder.text_model.head"),
    ):
        torch.testing.assert_close(tensors[f"{ours}.weight"].double(), merged(short, theirs, 4 / 2), rtol=1e-6, atol=1e-6)


def test_alpha_is_that_of_the_config_and_is_written_down(tmp_path: Path) -> None:
    found = convert(tmp_path, upstream_state(), config=CONFIG | {"lora_alpha": 6})
    assert found.config["lora_alpha"] == 6
    layer = "clip_vision_encoder.base_model.model.model.encoder.layers.0.self_attn.q_proj"
    tensor = read_weights(found.weights)[0]["encoder.vision_model.encoder.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(tensor.double(), merged(upstream_state(), layer, 6 / 2), rtol=1e-6, atol=1e-6)


def test_alpha_is_sixteen_where_nobody_says_otherwise() -> None:
    assert settings_of({}, None)["lora_alpha"] == 16
    assert settings_of({}, {"clip": {"projection_dim": 64}})["clip"]["projection_dim"] == 64
    assert settings_of({}, {"lora_alpha": 32})["sam"] == RSRefSegConfig.b().as_dict()["sam"]


@pytest.mark.parametrize(
    ("sam", "spatial", "update", "rank"),
    [
        ("backbone.base_model.model.model.", "prompter_down_spatial.", "layers.0.attn.qkv.lora_A.default.weight", 32),
        ("sam.vision_encoder.", "prompter.spatial.", "layers.0.attn.qkv.weight", 16),
    ],
)
def test_sizes_that_tensors_show_need_no_config(sam: str, spatial: str, update: str, rank: int) -> None:
    shown = settings_of(
        {
            f"{sam}pos_embed": torch.empty(1, 64, 64, 1024, device="meta"),
            f"{sam}{update}": torch.empty(32, 1024, device="meta"),
            **{f"{spatial}{k}.conv.weight": torch.empty(0) for k in range(2)},
            "prompter.channel.conv.weight" if sam == "sam.vision_encoder." else "": torch.empty(0),
        },
        None,
    )
    assert shown["sam"] == RSRefSegConfig.l().as_dict()["sam"]
    assert (shown["lora_r"], shown["lora_alpha"], shown["down_spatial_times"]) == (rank, 16, 1)


def test_a_network_saved_under_our_names_is_converted_too(tmp_path: Path) -> None:
    network = RSRefSeg.from_upstream(upstream_state(), tiny_config())
    tensors, _ = read_weights(convert(tmp_path, network.state_dict()).weights)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in network.state_dict().items())


def test_safetensors_with_the_names_of_the_training_are_converted_too(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "theirs.safetensors", upstream_state(), {"format": "pt"})
    rsrefseg = find_architecture("rsrefseg")
    with pytest.raises(ConfigError, match="is there already"):
        convert_checkpoint(tmp_path / "theirs.safetensors", architecture=rsrefseg, config=CONFIG)
    found = convert_checkpoint(
        tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", architecture=rsrefseg, config=CONFIG
    )
    tensors, same = read_weights(found.weights)[0], read_weights(convert(tmp_path, upstream_state()).weights)[0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in same.items())


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    one, two = (convert(folder, upstream_state()) for folder in (tmp_path, tmp_path / "again"))
    assert one.sha256 == two.sha256
    assert one.sha256 != find_weights(make_tiny(tmp_path / "other", seed="other")).sha256


def _forget(state: dict[str, Any]) -> None:
    del state["sam_mask_decoder.model.iou_token.weight"]


def _forget_update(state: dict[str, Any]) -> None:
    del state["clip_text_encoder.base_model.model.model.head.lora_B.default.weight"]


def _add(state: dict[str, Any]) -> None:
    state["decode_head.conv.weight"] = torch.zeros(1)


def _poison(state: dict[str, Any]) -> None:
    state["backbone.base_model.model.model.layers.1.attn.qkv.lora_B.default.weight"][3, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_forget, "1 missing: sam_mask_decoder.model.iou_token.weight"),
        (_forget_update, "1 missing: clip_text_encoder.base_model.model.model.head.lora_B.default.weight"),
        (_add, "1 unexpected: decode_head.conv.weight"),
        (_poison, "sam.vision_encoder.layers.1.attn.qkv.weight holds NaN"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    state = upstream_state()
    change(state)
    with pytest.raises(ModelError, match="model-load") as caught:
        convert(tmp_path, state)
    assert said in str(caught.value)
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CONFIG | {"lora_r": 4}, "lora_r: 2 in the file, 4 in the config"),
        (CONFIG | {"down_spatial_times": 1}, "down_spatial_times: 2 in the file, 1 in the config"),
        (None, "of another size"),
    ],
)
def test_another_variant_than_the_config_is_refused(tmp_path: Path, config: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(ModelError, match="model-load") as caught:
        convert(tmp_path, upstream_state(), config=config)
    assert said in str(caught.value)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_alfa") as caught:
        convert(tmp_path, upstream_state(), config={"lora_alfa": 8})
    assert "lora_alpha" in caught.value.fix


def test_the_command_converts_and_says_what_was_made(tmp_path: Path) -> None:
    torch.save({"module": upstream_state()}, tmp_path / "mp_rank_00_model_states.pt")
    (tmp_path / "sizes.json").write_text(json.dumps(CONFIG))
    out = tmp_path / "mine" / "rsrefseg.safetensors"
    arguments = ["models", "convert", str(tmp_path / "mp_rank_00_model_states.pt"), "--out", str(out), "--network", "rsrefseg"]
    done = CliRunner().invoke(app, [*arguments, "--config", str(tmp_path / "sizes.json"), "--json"])
    assert done.exit_code == 0, done.stderr
    assert f"merged with alpha = 4 (from {tmp_path / 'sizes.json'})" in done.stderr
    said = json.loads(done.stdout)
    assert (said["architecture"], said["sha256"]) == ("rsrefseg", find_weights(out).sha256)
    write_tokenizer(out.parent)
