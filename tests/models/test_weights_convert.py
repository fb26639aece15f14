"""Checkpoints become safetensors: the right ones whole, the wrong and the hostile ones never."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from models.weights_of_tests import SMALL, save, small_state, wrapped
from safetensors import safe_open

from eo_batch.core.errors import ConfigError, ModelError, PolicyError, StoreError
from eo_batch.models.weights import find_weights, load_strictly, read_weights
from eo_batch.models.weights.checkpoints import convert_checkpoint, find_architecture

REMOTESAM = find_architecture("remotesam")


@pytest.fixture(scope="module")
def state():
    """Weights of the small network; tests must not change them."""
    return small_state()


@pytest.fixture
def convert(tmp_path, state):
    """Convert a checkpoint with these weights and settings, made in a temporary folder."""

    def _convert(checkpoint=None, *, config=SMALL, **options):
        source = save(tmp_path / "given.pth", wrapped(state) if checkpoint is None else checkpoint)
        return convert_checkpoint(source, architecture=REMOTESAM, config=config.as_dict(), **options)

    return _convert


def test_converted_file_holds_the_weights_bit_by_bit_and_nothing_else(convert, state):
    found = convert()
    with safe_open(found.weights, framework="np") as file:
        assert sorted(file.keys()) == sorted(state)
        for name, tensor in state.items():
            assert file.get_tensor(name).dtype == tensor.numpy().dtype
            assert np.array_equal(file.get_tensor(name), tensor.numpy()), name
    floats = sum(t.numel() * t.element_size() for t in state.values())
    assert found.weights.stat().st_size < floats + 200 * len(state), "the optimizer came along"


def test_converted_file_says_what_network_it_is_and_what_it_was_made_from(convert, tmp_path):
    import hashlib

    found = convert()
    assert found.architecture == "remotesam"
    assert dict(found.config) == SMALL.as_dict()
    assert found.source_sha256 == hashlib.sha256((tmp_path / "given.pth").read_bytes()).hexdigest()
    assert found.sha256 == hashlib.sha256(found.weights.read_bytes()).hexdigest()


def test_same_weights_give_the_same_file(convert, tmp_path, state):
    first = convert(source_sha256="0" * 64).weights.read_bytes()
    again = dict(reversed(list(state.items())))
    second = convert({"epoch": 7, "model": again}, source_sha256="0" * 64, replaces=True).weights.read_bytes()
    assert first == second


def test_a_checkpoint_that_is_nothing_but_weights_is_converted_too(convert, state):
    assert convert(dict(state)).weights.is_file()


def test_position_ids_of_older_text_encoders_are_left_out(convert, state):
    extra = {**state, "text_encoder.embeddings.position_ids": torch.arange(20)[None]}
    with safe_open(convert({"model": extra}).weights, framework="np") as file:
        assert "text_encoder.embeddings.position_ids" not in file.keys()  # noqa: SIM118


def test_missing_and_unexpected_keys_are_listed_five_of_each_with_their_number(convert, state):
    gone = [name for name in state if name.startswith("classifier.")]
    odd = {f"extra.{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(ModelError, match="model-load") as caught:
        convert({"model": {**{k: v for k, v in state.items() if k not in gone}, **odd}})
    text = str(caught.value)
    assert f"{len(gone)} missing: {', '.join(gone[:5])} and {len(gone) - 5} more" in text
    assert "7 unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more" in text


def test_wrong_shapes_are_listed_with_both_shapes(convert, state):
    name = "backbone.patch_embed.proj.weight"
    with pytest.raises(ModelError, match=r"1 wrong shape: \S+proj\.weight \(8, 3, 2, 2\) instead of \(8, 3, 4, 4\)"):
        convert({"model": {**state, name: state[name][:, :, :2, :2].clone()}})


def test_half_precision_weights_are_refused_by_name_of_type(convert, state):
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    with pytest.raises(ModelError, match="float16 instead of float32"):
        convert({"model": halves})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_single_number_that_is_not_finite_is_refused(convert, state, tmp_path, number):
    name = "classifier.conv1_1.weight"
    broken = state[name].clone()
    broken.view(-1)[-1] = number
    with pytest.raises(ModelError, match=r"classifier\.conv1_1\.weight holds NaN or infinite"):
        convert({"model": {**state, name: broken}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.pth"]


def test_another_network_is_said_to_be_none_of_ours(convert):
    resnet = {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1),
        "fc.bias": torch.zeros(10),
    }
    with pytest.raises(ModelError, match=r"no checkpoint of this network: 0 of its .* tensors are there.*conv1\.weight"):
        convert(resnet)


@pytest.mark.parametrize("content", [{}, [1, 2], {"model": {}}, {"epoch": 3}, {"model": {"a": "b"}}, "text"])
def test_a_file_without_weights_says_so(convert, content):
    with pytest.raises(ModelError, match="holds no weights by name"):
        convert(content)


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch._neg_view(torch.ones(2)),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ],
    ids=["sparse", "without numbers", "complex", "negated", "nested"],
)
def test_tensors_of_a_strange_kind_are_refused(convert, state, odd):
    with pytest.raises(ModelError, match="is not a plain tensor"):
        convert({"model": {**state, "odd": odd}})


def test_a_view_that_repeats_one_number_endlessly_costs_no_memory(convert, state):
    huge = torch.zeros(1).expand(10**6, 10**6)
    with pytest.raises(ModelError, match="1 unexpected: huge"):
        convert({"model": {**state, "huge": huge}})


def test_an_endless_name_is_not_written_out(convert, state):
    with pytest.raises(ModelError, match="1 unexpected: aaa") as caught:
        convert({"model": {**state, "a" * 5000: torch.zeros(1)}})
    assert len(str(caught.value)) < 1000


def test_a_pickle_that_makes_millions_of_objects_is_refused_unread(convert, state):
    with pytest.raises(PolicyError, match="weights-unsafe: .*larger than"):
        convert({"model": state, "args": [1] * 5_000_000})


class Hostile:
    """Writes a file when it is unpickled by a careless reader."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("where", ["args", "model", "top"])
def test_g07_code_in_a_pickle_is_never_run(convert, state, tmp_path, where):
    proof = tmp_path / "proof"
    hostile = Hostile(proof)
    checkpoint = {
        "args": {**wrapped(state), "args": hostile},
        "model": {"model": {**state, "classifier.conv1_1.weight": hostile}},
        "top": hostile,
    }[where]
    with pytest.raises(PolicyError, match=r"weights-unsafe: .*it asks for posix\.mkdir.*Nothing of it was run"):
        convert(checkpoint)
    assert not proof.exists()
    torch.load(tmp_path / "given.pth", weights_only=False)
    assert proof.exists(), "the pickle is harmless, so this test shows nothing"


def test_a_bare_pickle_is_never_run(tmp_path):
    proof = tmp_path / "proof"
    path = tmp_path / "bare.pth"
    path.write_bytes(pickle.dumps(Hostile(proof)))
    with pytest.raises(ModelError, match=r"is no checkpoint of torch\.save"):
        convert_checkpoint(path, architecture=REMOTESAM, config=SMALL.as_dict())
    assert not proof.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_checkpoint_is_no_checkpoint(tmp_path, state, share):
    data = save(tmp_path / "whole.pth", wrapped(state)).read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="the file may be cut short"):
        convert_checkpoint(cut, architecture=REMOTESAM, config=SMALL.as_dict())


def repacked(source: Path, target: Path, *, compression: int = zipfile.ZIP_STORED, change=lambda pickled: pickled) -> Path:
    """The records of a checkpoint in another archive."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            data = old.read(record)
            new.writestr(record.filename, change(data) if record.filename.endswith("data.pkl") else data)
    return target


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    source = save(tmp_path / "zeros.pth", {"model": {"a": torch.zeros(10**6)}})
    bomb = repacked(source, tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(PolicyError, match="weights-unsafe: .*its records are packed"):
        convert_checkpoint(bomb, architecture=REMOTESAM, config=SMALL.as_dict())


@pytest.mark.parametrize("kind", ["more numbers than the storage has", "begins behind the storage"])
def test_tensors_that_claim_more_than_the_file_holds_are_refused(tmp_path, kind):
    source = save(tmp_path / "two.pth", {"model": {"a": torch.ones(2)}})
    huge = b"J" + (10**9).to_bytes(4, "little")
    old, new = {
        "more numbers than the storage has": (b"K\x00K\x02\x85", b"K\x00" + huge + b"\x85"),
        "begins behind the storage": (b"K\x00K\x02\x85", huge + b"K\x02\x85"),
    }[kind]

    def change(pickled):
        assert old in pickled
        return pickled.replace(old, new)

    with pytest.raises(ModelError, match="model-load: .*could not be read"):
        convert_checkpoint(repacked(source, tmp_path / "liar.pth", change=change), architecture=REMOTESAM, config=SMALL.as_dict())


def test_a_folder_is_not_taken_for_a_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="weights-missing: .*is a folder"):
        convert_checkpoint(tmp_path, architecture=REMOTESAM, config=SMALL.as_dict())


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ModelError, match="not a regular file"):
        convert_checkpoint(tmp_path / "pipe.pth", architecture=REMOTESAM, config=SMALL.as_dict())


def test_an_existing_file_is_not_replaced_unless_asked(convert, tmp_path):
    (tmp_path / "given.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="is there already"):
        convert()
    assert (tmp_path / "given.safetensors").read_bytes() == b"precious"


def test_a_failed_conversion_leaves_nothing_behind(convert, state, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="disk-full"):
        convert()
    assert [path.name for path in tmp_path.iterdir()] == ["given.pth"]


def test_too_small_a_disk_is_refused_before_the_first_byte(convert, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match="disk-full: .*0 MB free"):
        convert()


@pytest.mark.parametrize("missing", ["torch", "transformers", "safetensors"])
def test_without_its_libraries_convert_says_what_to_install(convert, state, monkeypatch, missing):
    monkeypatch.setattr("eo_batch.models.weights.find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ModelError, match=f"needs {missing}: not installed"):
        convert(wrapped(state))


def test_sizes_that_fit_no_network_are_a_config_error(tmp_path, state):
    source = save(tmp_path / "given.pth", {"model": state})
    with pytest.raises(ConfigError):
        convert_checkpoint(source, architecture=REMOTESAM, config={**SMALL.as_dict(), "depths": [1]})


def test_converted_weights_give_the_network_they_came_from(convert, state):
    from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig

    found = convert()
    network = RemoteSAM.from_config(RemoteSAMConfig.from_dict(found.config), is_trainable=False)
    tensors, metadata = read_weights(found.weights)
    load_strictly(network, tensors, where="here")
    assert json.loads(metadata["config"]) == SMALL.as_dict()
    expected = RemoteSAM.from_config(SMALL, is_trainable=False)
    expected.load_state_dict(state)
    inputs = torch.rand(1, 3, 64, 64), torch.tensor([[2, 4, 3] + [0] * 17]), torch.tensor([[1, 1, 1] + [0] * 17])
    with torch.no_grad():
        assert torch.equal(network.eval()(*inputs), expected.eval()(*inputs))


def test_find_weights_gives_a_converted_file_by_path_and_by_folder(convert, tmp_path):
    found = convert()
    assert find_weights(found.weights) == find_weights(tmp_path) == found
