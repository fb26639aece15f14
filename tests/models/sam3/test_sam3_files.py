"""Files and options of SAM 3: every wrong one told with its place, gated weights with their licence."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commandline import invoke, told
from safetensors.torch import load_file, save_file
from servers.hub import Fault, Hub
from tinyfinders import answers, load, make_sam3, windows

from eo_batch.core.errors import ConfigError, IntegrityError, ModelError, PolicyError
from eo_batch.models.weights import published, weights_folder
from eo_batch.models.weights.published import FolderFile, published_folder

SEED = 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as its authors would publish it; tests must not change it."""
    return make_sam3(tmp_path_factory.mktemp("sam3"), seed=SEED)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"answer": "objects"}, "unknown answer 'objects'"),
        ({"answer": "semantic", "instances": True}, "no objects to keep apart"),
        ({"instances": 1}, "1 is not true or false"),
        ({"instance": True}, "Did you mean"),
        ({"precision": "int8"}, "unknown precision"),
        ({"threads": 0}, "threads"),
        ({"stretch_high": -1.0}, "stretch"),
    ],
)
def test_options_that_mean_nothing_are_refused(saved: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("sam3", weights=str(saved), **options)


def test_bands_that_are_no_colour_picture_are_refused(saved: Path) -> None:
    for bands in (("blue", "green", "red"), ("red", "green", "blue", "nir")):
        with pytest.raises(ConfigError, match=r'bands = \["red", "green", "blue"\]'):
            load("sam3", weights=str(saved), bands=bands)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def tensors(folder: Path, do: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    do(state)
    save_file(state, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "weights-missing"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "another network": (lambda f: change(f / "config.json", model_type="sam2"), 'type "sam2", not "sam3"'),
    "no config": (lambda f: (f / "config.json").write_text("[]"), "no description of a network"),
    "half a network": (lambda f: tensors(f, lambda s: s.pop("detr_encoder.layers.0.layer_norm1.weight")), "missing"),
    "too much": (lambda f: tensors(f, lambda s: s.update(other=torch.ones(2))), "unexpected"),
    "another size": (lambda f: tensors(f, lambda s: s.update({"text_projection.bias": torch.ones(3)})), "mismatched"),
    "not finite": (lambda f: tensors(f, lambda s: s["text_projection.bias"].fill_(float("nan"))), "NaN"),
    "no tokenizer of CLIP": (lambda f: (f / "tokenizer.json").write_text("{}"), "model-load"),
    "nonsense": (lambda f: change(f / "config.json", detr_encoder_config={"num_layers": -3}), "model-load"),
    "a huge network": (lambda f: change(f / "config.json", detr_decoder_config={"num_queries": 9_000_000}), "model-load"),
    "too many layers": (lambda f: change(f / "config.json", detr_encoder_config={"num_layers": 900_000}), "more than"),
    "another backbone": (
        lambda f: change(f / "config.json", vision_config={"backbone_config": {"model_type": "llama"}}),
        "size is not one of",
    ),
    "another preparation": (
        lambda f: (f / "processor_config.json").write_text('{"image_processor": {"do_resize": false}}'),
        "do_resize",
    ),
    "not only numbers": (
        lambda f: (f / "processor_config.json").write_text('{"image_processor": {"image_mean": "0.5"}}'),
        "image_mean",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_no_such_network_are_refused_with_their_place(folder: Path, damage: str) -> None:
    do, said = DAMAGE[damage]
    do(folder)
    with pytest.raises(ModelError, match=said) as caught:
        load("sam3", weights=str(folder))
    assert str(folder) in caught.value.where


def test_words_that_the_network_does_not_know_are_refused(folder: Path) -> None:
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["vocab"]["volcano"] = 999
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ModelError, match="has 1,000 words, the network knows 16"):
        load("sam3", weights=str(folder))


def test_weights_that_somebody_writes_into_are_not_used_any_longer(folder: Path) -> None:
    segmenter = load("sam3", weights=str(folder))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\1\0")
    with pytest.raises(IntegrityError, match="weights-altered"):
        answers(segmenter, windows(1), "water")


def test_half_of_the_numbers_of_a_file_are_widened(folder: Path, saved: Path) -> None:
    tensors(folder, lambda s: s.update({name: one.half() for name, one in s.items() if one.is_floating_point()}))
    whole, half = (answers(load("sam3", weights=str(place)), windows(1), "water") for place in (saved, folder))
    assert np.abs(whole - half).mean() < 0.05
    assert whole.tobytes() != half.tobytes()


@pytest.fixture
def hub(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has the small network at the commit and with the names that the table pins, and a table with its hashes."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "weights"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    line = published_folder("sam3")
    assert line is not None
    files = []
    for file in line.files:
        data = (saved / file.filename).read_bytes()
        files.append(FolderFile(file.filename, len(data), hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(published, "FOLDERS", (replace(line, files=tuple(files)),))
    with Hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.endpoint)
        for file in files:
            large = file.filename == "model.safetensors"
            opened.publish(line.repo, line.revision, file.filename, saved / file.filename, is_large=large)
        yield opened


def test_fetched_weights_are_used_by_their_name(hub: Hub, saved: Path) -> None:
    with pytest.raises(ModelError, match="eo-batch models fetch sam3"):
        load("sam3")
    status, _, err = invoke("models", "fetch", "sam3", "--yes")
    assert status == 0, err
    assert "SAM License" in err
    by_name, by_path = (answers(load("sam3", **where), windows(1), "water") for where in ({}, {"weights": str(saved)}))
    assert by_name.tobytes() == by_path.tobytes()
    (place,) = weights_folder().rglob("config.json")
    change(place, initializer_range=0.5)
    with pytest.raises(PolicyError, match="weights-hash"):
        load("sam3")


def test_an_account_that_was_not_approved_is_told_so(hub: Hub) -> None:
    gated = Fault("status", 403, head=True, repeat=True, headers=(("X-Error-Code", "GatedRepo"),))
    hub.script("config.json", gated)
    status, _, err = invoke("models", "fetch", "sam3", "--yes")
    assert status != 0
    assert "licence" in err
    assert "approved" in err
    with pytest.raises(ModelError, match="weights-missing"):
        load("sam3")


def test_the_licence_is_shown_where_segmenters_are_listed() -> None:
    listed = {entry["name"]: entry for entry in told("models", "list")["models"]}
    assert "SAM License" in listed["sam3"]["licence"]
    assert "gated" in listed["sam3"]["summary"]
    assert listed["grounded-sam2"]["licence"] == "Apache-2.0"
