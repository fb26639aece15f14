"""The contour network: a small random SegFormer saved by transformers itself, loaded, asked, damaged, and fetched from a hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from servers.hub import Fault, Hub
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from typer.testing import CliRunner, Result

from eo_batch.cli.main import app
from eo_batch.core.errors import ConfigError, ModelError, PolicyError, ResourceError
from eo_batch.models.contours import Preparation, load_contours
from eo_batch.models.weights.folders import CONFIG, WEIGHTS, FolderFiles, fetch_folder
from eo_batch.models.weights.published import RECORD, published_folder
from eo_batch.products.components import split_by_contour

REVISION = "f91eb94" + "0" * 33
NAME, PROCESSING = "directsam", "preprocessor_config.json"
REPO = published_folder(NAME).repo
SIDE = 64


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as its authors would publish it; tests must not change it."""
    torch.manual_seed(3)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]}
    folder = tmp_path_factory.mktemp("contours")
    SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=1, decoder_hidden_size=16, initializer_range=0.3, **sizes)
    ).save_pretrained(folder)
    said = {"do_reduce_labels": True, "resample": 2, "size": {"height": SIDE, "width": SIDE}}
    (folder / PROCESSING).write_text(json.dumps(said))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "contours")


def picture(height: int = 90, width: int = 70) -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fetch_contours(revision: str, **others: Any) -> FolderFiles:
    return fetch_folder(NAME, revision=revision, **others)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_contour_is_what_transformers_alone_would_give(saved: Path) -> None:
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    image = picture()
    network = SegformerForSemanticSegmentation.from_pretrained(saved, use_safetensors=True).eval()
    processor = SegformerImageProcessorPil(size={"height": SIDE, "width": SIDE})
    with torch.no_grad():
        logits = network(**processor(image, return_tensors="pt")).logits
    large = torch.nn.functional.interpolate(logits, size=(90, 70), mode="bilinear", align_corners=False)
    found = load_contours(saved).contour(image)
    assert found.dtype == np.float32
    assert found.shape == (90, 70)
    np.testing.assert_allclose(found, torch.sigmoid(large)[0, 0].numpy(), atol=1e-6)
    assert np.ptp(found) > 1e-3


def test_an_image_is_prepared_as_transformers_does_it() -> None:
    from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

    for shape in ((90, 70), (31, 200), (64, 64)):
        expected = SegformerImageProcessorPil(size={"height": 48, "width": 64})(picture(*shape), return_tensors="np")
        np.testing.assert_allclose(Preparation((48, 64))(picture(*shape)), expected["pixel_values"], atol=1e-6)


def test_the_same_image_gives_the_same_bytes(saved: Path) -> None:
    model = load_contours(saved)
    image = picture()
    assert np.array_equal(model.contour(image), model.contour(image))
    assert np.array_equal(model.contour(image[:, ::-1]), model.contour(image[:, ::-1].copy()))


def test_weights_that_are_written_into_after_loading_change_nothing(folder: Path) -> None:
    model = load_contours(folder)
    before = model.contour(picture())
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))
    np.testing.assert_array_equal(model.contour(picture()), before)


def test_weights_of_half_precision_are_used_in_single_precision(folder: Path, saved: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in load_file(saved / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    model = load_contours(folder)
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    np.testing.assert_allclose(model.contour(picture()), load_contours(saved).contour(picture()), atol=5e-3)


def test_a_contour_parts_a_mask(saved: Path) -> None:
    contour = load_contours(saved).contour(picture())
    mask = np.ones(contour.shape, np.bool_)
    threshold = float(np.median(contour))
    cut = split_by_contour(mask, contour, threshold=threshold, min_piece=0, keep_swallowed=False)
    assert np.array_equal(cut, contour <= threshold)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_an_image_of_another_kind_is_refused(saved: Path, image: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        load_contours(saved).contour(image)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "bert"},
        {"num_channels": 4},
        {"depths": [1, 1, 1]},
        {"depths": [1, 1, 1, 100_000]},
        {"hidden_sizes": [8, 16, 24, 10_000_000]},
        {"hidden_sizes": [8, 16, 24, 0]},
        {"num_attention_heads": [3, 2, 2, 4]},
        {"decoder_hidden_size": "16"},
        {"sr_ratios": [64, 64, 64, 64]},
        {"hidden_act": "relu"},
        {"layer_norm_eps": "small"},
    ],
)
def test_a_config_that_describes_no_contour_network_is_refused(folder: Path, values: dict[str, Any]) -> None:
    change(folder / CONFIG, **values)
    with pytest.raises(ModelError, match=r"model-load: .*config.json"):
        load_contours(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"do_resize": False},
        {"size": {"height": 64}},
        {"size": {"height": 64, "width": 100_000}},
        {"size": 16},
        {"resample": 9},
        {"image_std": [1, 0, 1]},
        {"image_mean": [0.5]},
        {"rescale_factor": "1/255"},
    ],
)
def test_a_preparation_that_is_not_known_is_refused(folder: Path, values: dict[str, Any]) -> None:
    change(folder / PROCESSING, **values)
    with pytest.raises(ModelError, match=r"model-load: .*preprocessor_config.json"):
        load_contours(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1e99}', "\udcff"])
def test_a_config_that_is_no_table_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="no description"):
        load_contours(folder)


def test_code_named_in_a_config_is_never_run(folder: Path) -> None:
    change(folder / CONFIG, auto_map={"AutoConfig": "evil.Evil"}, quantization_config={"quant_method": "evil"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert load_contours(folder).contour(picture()).shape == (90, 70)


def test_missing_unexpected_and_misshapen_tensors_are_named(folder: Path, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    bias = "decode_head.classifier.bias"
    weight = "decode_head.classifier.weight"
    for wrong, said in (
        ({name: t for name, t in tensors.items() if name != bias}, "1 missing: .*classifier.bias"),
        ({("other" if name == bias else name): t for name, t in tensors.items()}, "classifier.bias"),
        ({name: t.flatten() if name == weight else t for name, t in tensors.items()}, "classifier.weight|do not fit"),
        ({name: t * float("nan") if name == bias else t for name, t in tensors.items()}, "NaN"),
    ):
        save_file(wrong, folder / WEIGHTS)
        with pytest.raises(ModelError, match=said):
            load_contours(folder)


def test_nothing_but_safetensors_is_read(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="weights-missing"):
        load_contours(folder)
    (folder / "pytorch_model.bin").rename(folder / WEIGHTS)
    with pytest.raises(ModelError, match="model-load"):
        load_contours(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(saved: Path) -> None:
    with pytest.raises(ResourceError, match="no-gpu"):
        load_contours(saved, device="cuda")


@pytest.fixture
def server(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "weights"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.endpoint)
        for name in (CONFIG, PROCESSING, WEIGHTS):
            opened.publish(REPO, REVISION, name, saved / name, is_large=name == WEIGHTS)
        yield opened


def test_fetched_weights_are_found_by_name_and_not_asked_for_again(server: Hub, saved: Path) -> None:
    files = fetch_contours(REVISION)
    asked = len(server.asked)
    assert fetch_contours(REVISION) == files
    assert len(server.asked) == asked
    assert sorted(path.name for path in files.folder.iterdir()) == sorted([".lock", CONFIG, PROCESSING, WEIGHTS, RECORD])
    for name in (NAME, REPO):
        assert np.array_equal(load_contours(name).contour(picture()), load_contours(saved).contour(picture()))


def test_loading_never_asks_the_hub(server: Hub) -> None:
    with pytest.raises(ModelError, match="weights-missing"):
        load_contours(NAME)
    assert server.asked == []


@pytest.mark.parametrize("revision", ["main", "f91eb94", "", "F" * 40, "../" + "0" * 37])
def test_a_revision_that_can_move_is_refused(server: Hub, revision: str) -> None:
    with pytest.raises(ConfigError, match="full commit"):
        fetch_contours(revision)
    assert server.asked == []


def test_a_commit_that_the_hub_does_not_know_leaves_nothing_to_load(server: Hub) -> None:
    with pytest.raises(ModelError, match="weights-unreachable"):
        fetch_contours("1" * 40)
    with pytest.raises(ModelError, match="weights-missing"):
        load_contours(NAME)


def test_bytes_that_are_not_the_announced_ones_are_refused(server: Hub, saved: Path) -> None:
    server.publish(REPO, REVISION, WEIGHTS, saved / WEIGHTS, etag="0" * 64)
    with pytest.raises(PolicyError, match="weights-hash"):
        fetch_contours(REVISION)
    with pytest.raises(ModelError, match="weights-missing"):
        load_contours(NAME)


def test_a_file_of_absurd_size_is_refused_before_its_first_byte(server: Hub) -> None:
    server.announce(WEIGHTS, size=1 << 40)
    with pytest.raises(PolicyError, match="announces"):
        fetch_contours(REVISION)
    assert server.bodies_of(WEIGHTS) == []


def test_fetched_files_that_changed_since_are_refused(server: Hub) -> None:
    files = fetch_contours(REVISION)
    change(files.folder / PROCESSING, resample=3)
    with pytest.raises(PolicyError, match=r"weights-hash: .*preprocessor_config.json"):
        load_contours(NAME)


def test_offline_is_honoured(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetch_contours(REVISION)
    assert server.asked == []


def test_two_fetched_commits_must_be_told_apart(server: Hub, saved: Path) -> None:
    other = "2" * 40
    for name in (CONFIG, PROCESSING, WEIGHTS):
        server.publish(REPO, other, name, saved / name, is_large=name == WEIGHTS)
    fetch_contours(REVISION)
    found = fetch_contours(other)
    with pytest.raises(ModelError, match="2 commits of directsam"):
        load_contours(NAME)
    assert load_contours(found.folder).sha256 == found.weights_sha256


def test_an_interrupted_download_goes_on_with_the_missing_bytes_alone(server: Hub) -> None:
    server.script(WEIGHTS, Fault("short", after=5_000), *[Fault("status", 503)] * 5)
    waits: list[float] = []
    with pytest.raises(ModelError, match="weights-unreachable"):
        fetch_contours(REVISION, wait=waits.append)
    fetch_contours(REVISION, wait=waits.append)
    assert server.bodies_of(WEIGHTS)[-1].range == "bytes=5000-"


def test_progress_is_told_in_bytes_and_the_library_draws_no_bar(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    files = fetch_contours(REVISION, listener=lambda what, done, total: told.append((what, done, total)))
    size = files.weights[0].stat().st_size
    assert told[-1] == (f"downloading {WEIGHTS}", size, size)
    assert capsys.readouterr().err == ""


def test_the_hub_learns_nothing_about_this_machine(server: Hub) -> None:
    fetch_contours(REVISION)
    assert {asked.path.split("/resolve/")[0] for asked in server.asked} == {f"/{REPO}"}
    assert all(asked.agent.startswith("eo-batch/") and "torch" not in asked.agent for asked in server.asked)


def models(*arguments: str, answer: str = "") -> Result:
    """`eo-batch models ...`, with what is typed at its questions."""
    return CliRunner().invoke(app, ["models", *arguments], input=answer)


def test_the_command_shows_licence_and_source_and_asks_before_anything_is_downloaded(server: Hub) -> None:
    refused = models("fetch", "directsam", "--revision", REVISION, answer="n\n")
    assert refused.exit_code == 2
    assert "licence: not stated" in refused.stderr
    assert "not a pin" in refused.stderr
    assert server.asked == []
    agreed = models("fetch", "directsam", "--revision", REVISION, "--json", answer="y\n")
    assert agreed.exit_code == 0, agreed.stderr
    told = json.loads(agreed.stdout.splitlines()[-1])
    assert (Path(told["folder"]) / WEIGHTS).stat().st_size == told["bytes"]
    assert load_contours(NAME).sha256 == told["files"][WEIGHTS]
    again = models("fetch", "directsam", "--revision", REVISION)
    assert (again.exit_code, "licence" in again.stderr) == (0, False)


def test_the_command_wants_a_commit_that_somebody_trusts(server: Hub) -> None:
    for arguments, said in (((), "--revision COMMIT"), (("--revision", "main"), "no full commit")):
        answer = models("fetch", "directsam", "--yes", *arguments)
        assert answer.exit_code == 2
        assert said in answer.stderr
    pinned = models("fetch", "remotesam", "--yes", "--revision", REVISION)
    assert (pinned.exit_code, "are pinned" in pinned.stderr) == (2, True)
    assert server.asked == []


def state_of(name: str) -> str:
    listed = json.loads(models("list", "--json").stdout)["networks"]
    return next(network["state"] for network in listed if network["name"] == name)


def test_list_and_show_say_whether_the_contour_network_is_here(server: Hub) -> None:
    missing = f"weights missing: eo-batch models fetch {NAME} --revision COMMIT"
    assert missing in models("list").stdout
    assert state_of(NAME) == missing
    assert "not on this machine" in models("show", NAME).stderr
    files = fetch_contours(REVISION)
    assert state_of(NAME) == "ready"
    assert json.loads(models("show", NAME, "--json").stdout)["here"][0]["sha256"] == files.sha256


def test_an_interrupted_command_says_how_to_go_on(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eo_batch.models.weights.download.download", interrupted)
    answer = models("fetch", NAME, "--revision", REVISION, "--yes")
    assert answer.exit_code == 130
    assert f"`eo-batch models fetch directsam --revision {REVISION}` goes on from there" in answer.stderr
