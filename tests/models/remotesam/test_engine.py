"""The network in memory: weights that are the file itself, halves where they lose nothing, batches that do not fit."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tinysam import load_tiny, make_tiny, prompts_of
from torch import nn

from eo_batch.core.errors import ModelError
from eo_batch.models import engine
from eo_batch.models.remotesam import RemoteSAM
from eo_batch.models.remotesam.trunk import Trunk
from eo_batch.models.weights import ALIGNED_BYTES, load_strictly, read_metadata

PROMPTS = prompts_of("bright field", "water")
IMAGES = np.random.default_rng(5).uniform(0, 0.25, (5, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def answers(segmenter: object) -> np.ndarray:
    return segmenter.decode(segmenter.encode_images(IMAGES), segmenter.encode_prompts(PROMPTS))


def shifted(weights: Path, folder: Path, by: int) -> Path:
    """The same weights in a file whose tensors begin `by` bytes later."""
    data = weights.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = data[8 : 8 + length] + b" " * by
    folder.mkdir()
    (folder / "vocab.txt").write_bytes(weights.with_name("vocab.txt").read_bytes())
    path = folder / weights.name
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    return path


def test_large_weights_are_the_file_and_not_a_copy_of_it(weights: Path) -> None:
    network = load_tiny(weights).engine.network
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(weights.name)
    ]
    large = [tensor for tensor in network.state_dict().values() if tensor.nbytes % ALIGNED_BYTES == 0]
    assert sum(tensor.nbytes for tensor in large) > 0.98 * sum(tensor.nbytes for tensor in network.state_dict().values())
    assert all(any(start <= tensor.data_ptr() < end for start, end in mapped) for tensor in large)


@pytest.mark.parametrize("by", [8, 24])
def test_where_tensors_begin_in_the_file_cannot_change_a_bit(weights: Path, tmp_path: Path, by: int) -> None:
    other = load_tiny(shifted(weights, tmp_path / "shifted", by))
    assert all(tensor.data_ptr() % ALIGNED_BYTES == 0 for tensor in other.engine.network.state_dict().values())
    assert answers(other).tobytes() == answers(load_tiny(weights)).tobytes()


def test_what_no_file_holds_is_made(weights: Path) -> None:
    network, built = load_tiny(weights).engine.network, RemoteSAM.from_config(load_tiny(weights).engine.network.config)
    in_file = set(load_file(weights))
    tables = {name: tensor for name, tensor in built.named_buffers() if name not in in_file}
    assert tables
    loaded = dict(network.named_buffers())
    assert all(torch.equal(loaded[name], table) for name, table in tables.items())
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_a_table_of_positions_that_is_not_the_built_one_is_refused(tmp_path: Path) -> None:
    def turn(state: dict[str, torch.Tensor]) -> None:
        name = "backbone.layers.0.blocks.0.attn.relative_position_index"
        state[name] = state[name].flip(0)

    with pytest.raises(ModelError, match="relative_position_index is not the table"):
        load_tiny(make_tiny(tmp_path, change=turn))


def test_files_of_the_safetensors_library_load_too(weights: Path, tmp_path: Path) -> None:
    save_file(load_file(weights), tmp_path / weights.name, metadata=read_metadata(weights))
    (tmp_path / "vocab.txt").write_bytes(weights.with_name("vocab.txt").read_bytes())
    assert answers(load_tiny(tmp_path / weights.name)).tobytes() == answers(load_tiny(weights)).tobytes()


def test_loading_takes_memory_for_the_weights_once(tmp_path: Path) -> None:
    code = f"""
import json, sys, torch
from pathlib import Path
from eo_batch.models.weights import load_strictly, read_weights
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
with torch.device("meta"):
    module = torch.nn.Linear(8192, 8192, bias=False)
before = peak()
load_strictly(module, read_weights(Path({str(tmp_path / "one.safetensors")!r}))[0], where="here")
print(json.dumps(peak() - before))
"""
    from eo_batch.models.weights.checkpoints import write_safetensors

    write_safetensors(tmp_path / "one.safetensors", {"weight": torch.ones(8192, 8192)}, {"a": "b"})
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) < 1.3 * 4 * 8192**2
    (tmp_path / "one.safetensors").unlink()


def test_a_module_in_memory_is_filled_and_keeps_its_own_tensors() -> None:
    module = nn.Linear(4, 4)
    own, given = module.weight.data_ptr(), {"weight": torch.ones(4, 4), "bias": torch.ones(4)}
    load_strictly(module, given, where="here")
    assert module.weight.data_ptr() == own
    assert torch.equal(module.weight, given["weight"])


def test_half_precision_leaves_norms_of_batches_and_the_text_encoder_alone(weights: Path) -> None:
    segmenter = load_tiny(weights, precision="bfloat16")
    kinds = {name: tensor.dtype for name, tensor in segmenter.engine.network.state_dict().items() if tensor.is_floating_point()}
    assert kinds["classifier.bn1_4.running_var"] == kinds["text_encoder.embeddings.word_embeddings.weight"] == torch.float32
    assert kinds["classifier.conv1_4.weight"] == kinds["backbone.layers.0.blocks.0.attn.qkv.weight"] == torch.bfloat16


def test_a_variance_beyond_half_precision_does_not_spoil_an_answer(tmp_path: Path) -> None:
    def widen(state: dict[str, torch.Tensor]) -> None:
        state["classifier.bn1_4.running_var"] *= 1e6

    weights = make_tiny(tmp_path, change=widen)
    exact, rough = answers(load_tiny(weights)), answers(load_tiny(weights, precision="float16"))
    assert np.isfinite(rough).all()
    assert np.sqrt(np.mean((rough - exact) ** 2)) < 0.2 * exact.std()


@pytest.mark.parametrize(("owner", "name"), [(Trunk, "see"), (RemoteSAM, "decode")])
@pytest.mark.parametrize("failures", [0, 2])
def test_a_batch_that_does_not_fit_at_first_is_computed_whole_and_the_same(
    weights: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, failures: int
) -> None:
    alone = load_tiny(weights)
    together = replace(alone, engine=replace(alone.engine, together=True))  # as on a GPU
    expected = answers(together)
    original, sizes = getattr(owner, name), []

    def call(self: object, first: object, *others: object) -> object:
        sizes.append(len(first.windows[0].look) if name == "decode" else len(first))
        if len(sizes) <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, first, *others)

    monkeypatch.setattr(owner, name, call)
    assert answers(together).tobytes() == expected.tobytes()
    assert sizes == [5] * (failures + (len(PROMPTS) if name == "decode" else 1))
    np.testing.assert_allclose(expected, answers(alone), atol=1e-4)


def test_engines_of_one_device_take_turns(weights: Path) -> None:
    single, half = load_tiny(weights).engine, load_tiny(weights, precision="bfloat16").engine
    assert single is not half
    assert single.lock is half.lock is engine._locks["cpu"]
