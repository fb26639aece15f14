"""Safetensors files enter networks strictly, and lies in them are found before anything is built."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from eo_batch.core.errors import ConfigError, ModelError, PolicyError
from eo_batch.models import weights
from eo_batch.models.weights import find_weights, load_strictly, read_weights, weights_folder
from eo_batch.models.weights.published import PUBLISHED, PublishedFile


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def written(path: Path, tensors=None, **metadata: str) -> Path:
    """A safetensors file by the library of the format."""
    save_file(network().state_dict() if tensors is None else tensors, path, metadata=metadata or None)
    return path


@pytest.fixture(autouse=True)
def empty_weights_folder(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("weights")
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(folder))
    return folder


def test_read_weights_gives_what_the_library_wrote(tmp_path):
    tensors, metadata = read_weights(written(tmp_path / "a.safetensors", architecture="toy", config="{}"))
    assert metadata == {"architecture": "toy", "config": "{}"}
    expected = network().state_dict()
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_strictly_fills_a_network_with_memory_and_one_without(device):
    with torch.device(device):
        target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    source = network().eval()
    load_strictly(target, source.state_dict(), where="here")
    pixels = torch.rand(5, 2)
    assert torch.equal(target.eval()(pixels), source(pixels))


def test_load_strictly_changes_nothing_when_it_refuses():
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    changed = {name: tensor + 1 for name, tensor in before.items() if name != "0.bias"}
    with pytest.raises(ModelError, match=r"here: .* 1 missing: 0\.bias"):
        load_strictly(target, changed, where="here")
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in before.items())


def test_load_strictly_refuses_nan():
    tensors = network().state_dict()
    tensors["1.running_var"] = torch.tensor([1.0, float("nan"), 1.0])
    with pytest.raises(ModelError, match=r"model-load: here: 1\.running_var holds NaN"):
        load_strictly(network(), tensors, where="here")


def test_load_strictly_tolerates_what_it_is_told_to_and_nothing_else():
    tensors = {**network().state_dict(), "ids": torch.arange(3)}
    load_strictly(network(), tensors, where="here", tolerated=("ids",))
    with pytest.raises(ModelError, match="1 unexpected: ids"):
        load_strictly(network(), tensors, where="here", tolerated=("id",))


def test_load_strictly_refuses_an_integer_table_that_is_not_the_built_one():
    class WithTable(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("index", torch.arange(4))

    load_strictly(WithTable(), {"index": torch.arange(4)}, where="here")
    with pytest.raises(ModelError, match="index is not the table"):
        load_strictly(WithTable(), {"index": torch.tensor([0, 1, 2, 10**9])}, where="here")


def header(entries: dict, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        header({"a": ONE}),
        header({"a": ONE}, bytes(8), length=2**63),
        header({"a": ONE}, bytes(8), length=10**6),
        header({"a": {**ONE, "shape": [10**12]}}, bytes(8)),
        header({"a": {**ONE, "shape": [2**62, 2**62]}}, bytes(8)),
        header({"a": {**ONE, "data_offsets": [0, 2**62]}}, bytes(8)),
        header({"a": {**ONE, "data_offsets": [8, 0]}}, bytes(8)),
        header({"a": ONE, "b": ONE}, bytes(8)),
        header({"a": ONE}, bytes(80)),
        header({"a": {**ONE, "dtype": "EVIL"}}, bytes(8)),
        b"\x80\x04cposix\nsystem\n" + bytes(100),
    ],
    ids=["empty", "short", "no body", "endless header", "header too long", "huge", "overflow", "behind", "backwards", "overlap",
         "left over", "type", "pickle"],
)  # fmt: skip
def test_a_file_that_lies_about_its_sizes_is_refused(tmp_path, data):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="model-load: .*not a readable safetensors file"):
        read_weights(path)
    with pytest.raises(ModelError, match="model-load: .*not a readable safetensors file"):
        find_weights(path)


NESTED = "[" * 50_000 + "]" * 50_000


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"architecture": "remotesam"},
        {"architecture": "remotesam", "config": "not json"},
        {"architecture": "remotesam", "config": "[]"},
        {"architecture": "remotesam", "config": NESTED},
        {"architecture": "remotesam", "config": '{"a": ' * 30 + "1" + "}" * 30},
        {"architecture": "remotesam", "config": '{"depth": 1e300}'},
        {"architecture": "remotesam", "config": '{"depth": NaN}'},
        {"architecture": "remotesam", "config": '{"depth": 99999999999999999999}'},
        {"architecture": "remotesam", "config": '{"depth": 1' + "0" * 400 + "}"},
        {"architecture": "remotesam", "config": json.dumps({"a": [0] * 5000})},
        {"architecture": "remotesam", "config": '{"a": "' + "x" * 200_000 + '"}'},
        {"architecture": "../../etc", "config": "{}"},
        {"architecture": "remote\x1b[31msam", "config": "{}"},
    ],
)
def test_a_description_that_is_nonsense_is_refused(tmp_path, metadata):
    with pytest.raises(ModelError, match="model-load"):
        find_weights(written(tmp_path / "a.safetensors", **metadata))


def test_a_nonsensical_remotesam_is_refused_before_it_takes_memory(tmp_path):
    from eo_batch.models.remotesam import RemoteSAMConfig

    path = written(tmp_path / "a.safetensors", architecture="remotesam", config=json.dumps({"embed_dim": 9_999_996}))
    with pytest.raises(ConfigError):
        RemoteSAMConfig.from_dict(find_weights(path).config)


def test_weights_of_another_network_are_refused_where_one_is_asked_for(tmp_path):
    path = written(tmp_path / "a.safetensors", architecture="clipseg", config="{}")
    assert find_weights(path).architecture == "clipseg"
    with pytest.raises(ModelError, match='holds weights of "clipseg", not of "remotesam"'):
        find_weights(path, architecture="remotesam")


def test_weights_that_were_never_fetched_are_missing_with_the_command_that_fetches_them():
    with pytest.raises(ModelError, match="weights-missing: .*Run: eo-batch models fetch remotesam"):
        find_weights("remotesam")


def test_a_mistyped_name_is_corrected():
    with pytest.raises(ConfigError, match='Did you mean "remotesam"'):
        find_weights("remotsam")


def test_g07_a_checkpoint_is_not_read_at_run_time_but_converted_first(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"Convert it: eo-batch models convert .*a\.pth"):
        find_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["none.safetensors", "a/b/none.safetensors"])
def test_a_missing_file_is_missing(tmp_path, name):
    with pytest.raises(ModelError, match="weights-missing"):
        find_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.safetensors", "a" * 5000 + ".safetensors", "~nobody-of-this-name/a.safetensors"])
def test_what_can_be_no_path_is_missing(name):
    with pytest.raises(ModelError, match="weights-missing: .*is no path"):
        find_weights(name)


def test_a_folder_with_two_files_of_weights_is_ambiguous(tmp_path):
    for name in "ab":
        written(tmp_path / f"{name}.safetensors", architecture="toy", config="{}")
    with pytest.raises(ModelError, match="holds 2 files of weights"):
        find_weights(tmp_path)


def test_vocabulary_is_the_given_one_then_the_one_beside_then_the_fetched_one(tmp_path, empty_weights_folder):
    path = written(tmp_path / "a.safetensors", architecture="toy", config="{}")
    assert find_weights(path).vocabulary is None
    fetched = empty_weights_folder / "toy" / "vocab.txt"
    fetched.parent.mkdir()
    fetched.write_text("[PAD]\n")
    assert find_weights(path).vocabulary == fetched
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert find_weights(path).vocabulary == tmp_path / "vocab.txt"
    (tmp_path / "own.txt").write_text("[PAD]\n")
    assert find_weights(path, vocabulary=tmp_path / "own.txt").vocabulary == tmp_path / "own.txt"
    with pytest.raises(ModelError, match="weights-missing"):
        find_weights(path, vocabulary=tmp_path / "none.txt")


def test_weights_are_kept_where_the_variable_says_else_in_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "w"))
    assert weights_folder() == tmp_path / "w"
    monkeypatch.delenv("EO_BATCH_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert weights_folder() == tmp_path / "c" / "eo-batch" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "eo-batch" / "weights"


def test_without_torch_the_advice_is_the_extra_that_brings_it(tmp_path, monkeypatch):
    path = written(tmp_path / "a.safetensors", architecture="toy", config="{}")
    monkeypatch.setattr(weights, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(ModelError, match=r'needs torch: not installed\. Run: pip install "eo-batch\[models\]"'):
        read_weights(path)
    assert find_weights(path).architecture == "toy", "the description needs no torch"


@pytest.mark.parametrize(
    "change",
    [
        {"filename": "../../.bashrc"},
        {"filename": "/etc/passwd"},
        {"filename": "a\\..\\b"},
        {"filename": "a//b"},
        {"filename": ".hidden"},
        {"keep_as": "../vocab.txt"},
        {"model": "../remotesam"},
        {"repo": "a/../b"},
        {"revision": "main"},
        {"sha256": "f" * 63},
    ],
)
def test_a_published_file_can_neither_leave_its_folder_nor_be_unpinned(change):
    line = {field: getattr(PUBLISHED[0], field) for field in PublishedFile.__dataclass_fields__}
    with pytest.raises(PolicyError, match="path-escape"):
        PublishedFile(**{**line, **change})


@pytest.mark.shared
def test_the_pinned_vocabulary_is_the_one_of_the_reference_vectors(shared):
    import hashlib

    data = (shared.parent / "golden" / "remotesam" / "bert-base-uncased-vocab.txt").read_bytes()
    line = next(file for file in PUBLISHED if file.keep_as == "vocab.txt")
    assert (hashlib.sha256(data).hexdigest(), len(data)) == (line.sha256, line.bytes)
