"""Folders as transformers writes them: found, fetched from a loopback hub that misbehaves as told, judged, and made a network."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from servers.hub import SIGNATURE, Fault, Hub
from tinyclipseg import make_tiny
from typer.testing import CliRunner, Result

from eo_batch.cli.main import app
from eo_batch.core.errors import ConfigError, IntegrityError, ModelError, PolicyError
from eo_batch.models.registry import BUILT_IN
from eo_batch.models.weights import published as table
from eo_batch.models.weights.folders import (
    CONFIG,
    INDEX,
    PROCESSING,
    WEIGHTS,
    FolderFiles,
    fetch_folder,
    fetched_folders,
    find_folder,
    read_folder,
)
from eo_batch.models.weights.networks import build_network, config_of
from eo_batch.models.weights.published import FOLDERS, RECORD, FolderFile, PublishedFolder, published_folder
from eo_batch.models.weights.watch import Watch

REPO, REVISION = "someone/tiny", "c" * 40
NAMES = (CONFIG, PROCESSING[0], "vocab.json", "merges.txt", WEIGHTS)
TOKEN = "hf_" + "Secret0123456789Secret0123456789"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as its authors would publish it; tests must not change it."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


def pinned(saved: Path, **changes: Any) -> PublishedFolder:
    """The table line of a folder, with the size and sha256 of every file."""
    files = tuple(
        FolderFile(name, (saved / name).stat().st_size, hashlib.sha256((saved / name).read_bytes()).hexdigest()) for name in NAMES
    )
    said = {"licence": "made by a test", "source": "a test", "summary": "small", **changes}
    return PublishedFolder("tiny", REPO, REVISION, ("clipseg",), files, **said)


def unpinned(saved: Path, **changes: Any) -> PublishedFolder:
    """The same, of which nobody knows a hash."""
    return replace(pinned(saved), files=tuple(FolderFile(name) for name in NAMES), **changes)


@pytest.fixture
def server(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "library-cache"))
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "weights"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(table, "FOLDERS", (*FOLDERS, pinned(saved)))
    with Hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.endpoint)
        for name in NAMES:
            opened.publish(REPO, REVISION, name, saved / name, is_large=name == WEIGHTS)
        yield opened


def get(published: PublishedFolder | None = None, **others: Any) -> FolderFiles:
    return fetch_folder("tiny", published=published, wait=lambda seconds: None, **others)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# finding


def test_a_folder_is_what_its_files_say(saved: Path) -> None:
    files = find_folder(saved, architecture="clipseg")
    assert files.config["model_type"] == "clipseg"
    assert files.processing["size"] == {"height": 64, "width": 64}
    assert files.weights == (saved / WEIGHTS,)
    assert files.tokenizer == saved / "vocab.json"
    assert files.sums == {name: hashlib.sha256((saved / name).read_bytes()).hexdigest() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_decides_an_answer_decides_the_identity(folder: Path, name: str) -> None:
    before = find_folder(folder).sha256
    with (folder / name).open("ab") as file:
        file.write(b"\n" if name != WEIGHTS else bytes(8))
    assert find_folder(folder).sha256 != before


def test_files_that_decide_nothing_do_not(folder: Path) -> None:
    before = find_folder(folder).sha256
    (folder / "README.md").write_text("read me")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert find_folder(folder).sha256 == before


def test_a_tokenizer_in_one_file_goes_before_one_in_two(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    files = find_folder(folder)
    assert files.tokenizer == folder / "tokenizer.json"
    assert "vocab.json" not in files.sums


def test_a_preparation_may_be_part_of_a_processor(folder: Path) -> None:
    said = json.loads((folder / PROCESSING[0]).read_text())
    (folder / PROCESSING[0]).unlink()
    (folder / PROCESSING[1]).write_text(json.dumps({"image_processor": said, "processor_class": "CLIPSegProcessor"}))
    assert find_folder(folder).processing == said


def test_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(
        ModelError, match=r'model-load: .*config.json: describes a network of type "clipseg", not "sam" or "sam2"'
    ):
        find_folder(saved, architecture=("sam", "sam2"))


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="weights-missing"):
        find_folder(tmp_path / "nothing")


def test_pickles_are_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"weights-missing: .*model.safetensors"):
        find_folder(folder)


def test_weights_in_several_files_are_the_weights_of_one(saved: Path, folder: Path) -> None:
    from transformers import CLIPSegForImageSegmentation

    (folder / WEIGHTS).unlink()
    CLIPSegForImageSegmentation.from_pretrained(saved).save_pretrained(folder, max_shard_size="200kB")
    files = find_folder(folder)
    assert len(files.weights) > 2
    one, several = load_file(saved / WEIGHTS), read_folder(files)
    assert one.keys() == several.keys()
    assert all(torch.equal(one[name], several[name]) for name in one)
    (folder / INDEX).write_text((folder / INDEX).read_text() + "\n")
    assert find_folder(folder).sha256 != files.sha256


@pytest.mark.parametrize(
    ("table_of", "error"),
    [
        ({"a": "../model.safetensors"}, PolicyError),
        ({"a": "/etc/passwd"}, PolicyError),
        ({"a": "pytorch_model-00001-of-00002.bin"}, PolicyError),
        ({"a": "model-00001-of-00002.safetensors\n"}, PolicyError),
        ({"a": 3}, PolicyError),
        ({}, ModelError),
        ([], ModelError),
        ({f"t{n}": f"model-{n:05}-of-00099.safetensors" for n in range(99)}, ModelError),
        ({"a": "model-00001-of-00002.safetensors"}, ModelError),
    ],
)
def test_an_index_leads_nowhere_else(folder: Path, table_of: Any, error: type[Exception]) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": table_of}))
    with pytest.raises(error):
        find_folder(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        shutil.copy(folder / WEIGHTS, folder / name)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    with pytest.raises(ModelError, match="in another file too"):
        read_folder(find_folder(folder))


def test_a_watch_of_several_files_notices_each(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "other.safetensors")
    paths = (folder / WEIGHTS, folder / "other.safetensors")
    stamps = tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in map(Path.stat, paths))
    watch = Watch((SimpleNamespace(weights=paths, stamp=stamps),))
    watch.check()
    with paths[1].open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match=r"weights-altered: .*other.safetensors"):
        watch.check()


# fetching


def test_a_fetched_folder_is_found_by_name_and_not_asked_for_again(server: Hub, saved: Path) -> None:
    files = get()
    assert files.folder.name == REVISION
    assert sorted(path.name for path in files.folder.iterdir()) == sorted([".lock", RECORD, *NAMES])
    asked = len(server.asked)
    assert get() == files == find_folder("tiny") == find_folder(REPO)
    assert files.sha256 == find_folder(saved).sha256
    assert len(server.asked) == asked


@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_file_that_was_removed_is_fetched_again_and_no_other(server: Hub, saved: Path, is_pinned: bool) -> None:
    published = pinned(saved) if is_pinned else unpinned(saved)
    files = get(published)
    (files.folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="weights-missing"):
        find_folder("tiny")
    assert get(published) == replace(files, stamp=find_folder("tiny").stamp)
    assert [len(server.bodies_of(name)) for name in (WEIGHTS, CONFIG)] == [2, 1]


def test_loading_never_asks_the_hub(server: Hub) -> None:
    with pytest.raises(ModelError, match="weights-missing: .*eo-batch models fetch tiny"):
        find_folder("tiny")
    assert server.asked == []


def test_a_pinned_file_must_be_the_pinned_one(server: Hub, folder: Path) -> None:
    for name in (WEIGHTS, PROCESSING[0]):
        with (folder / name).open("r+b") as file:
            file.write(b" ")
        server.publish(REPO, REVISION, name, folder / name, is_large=name == WEIGHTS)
    with pytest.raises(PolicyError, match=r"weights-hash: .*preprocessor_config.json"):
        get()
    assert server.bodies_of(WEIGHTS) == []
    assert fetched_folders("tiny") == []


@pytest.mark.parametrize("name", [WEIGHTS, "vocab.json"])
def test_a_file_of_which_nobody_knows_a_hash_must_be_what_the_hub_announces(server: Hub, saved: Path, name: str) -> None:
    server.publish(REPO, REVISION, name, saved / name, is_large=name == WEIGHTS, etag="0" * (64 if name == WEIGHTS else 40))
    with pytest.raises(PolicyError, match=f"weights-hash: .*{name}"):
        get(unpinned(saved))
    assert fetched_folders("tiny") == []


def test_what_was_trusted_once_is_written_down_with_its_sha256(server: Hub, saved: Path) -> None:
    files = get(unpinned(saved))
    assert json.loads((files.folder / RECORD).read_text())["files"] == files.sums == find_folder(saved).sums


def test_weights_without_a_sha256_are_not_taken(server: Hub, saved: Path) -> None:
    server.publish(REPO, REVISION, WEIGHTS, saved / WEIGHTS, is_large=False)
    with pytest.raises(PolicyError, match="instead of a sha256"):
        get(unpinned(saved))


@pytest.mark.parametrize("name", [WEIGHTS, "merges.txt"])
def test_absurd_sizes_are_refused_before_the_first_byte(server: Hub, saved: Path, name: str) -> None:
    server.announce(name, size=1 << 40)
    with pytest.raises(PolicyError, match="announces"):
        get(unpinned(saved))
    assert server.bodies_of(name) == []


def test_another_network_is_refused_before_its_weights_are_asked_for(server: Hub, saved: Path) -> None:
    with pytest.raises(ModelError, match='type "clipseg", not "sam"'):
        get(replace(pinned(saved), architectures=("sam",)))
    assert server.bodies_of(WEIGHTS) == []


def test_an_interrupted_download_goes_on_with_the_missing_bytes_alone(server: Hub) -> None:
    server.script(WEIGHTS, Fault("short", after=5_000), *[Fault("status", 503)] * 5)
    with pytest.raises(ModelError, match="weights-unreachable: .*what is here already is kept"):
        get()
    get()
    assert server.bodies_of(WEIGHTS)[-1].range == "bytes=5000-"
    assert len(server.bodies_of(CONFIG)) == 1


def test_small_files_are_asked_for_patiently_too(server: Hub, saved: Path) -> None:
    server.script("vocab.json", Fault("short", after=100), Fault("status", 503), Fault("reset", after=1_000))
    assert get(unpinned(saved)).sums == find_folder(saved).sums
    assert server.bodies_of("vocab.json")[-1].range != ""


@pytest.mark.parametrize("code", [401, 403])
def test_a_gated_network_says_what_to_do_and_never_the_token(
    server: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    server.script(CONFIG, Fault("status", code, head=True, headers=(("X-Error-Code", "GatedRepo"),), repeat=True))
    gated = pinned(saved, is_gated=True)
    with pytest.raises(ModelError) as refused:
        get(gated)
    assert refused.value.code == "weights-unreachable"
    for said in (f"HTTP {code}", f"https://huggingface.co/{REPO}", "HF_TOKEN", "Accept the licence"):
        assert said in str(refused.value)
    assert TOKEN not in str(refused.value) + caplog.text
    assert len(server.asked) == 1
    with pytest.raises(ModelError) as plain:
        get(pinned(saved))
    assert "Accept the licence" not in str(plain.value)


def test_a_token_goes_to_the_hub_and_nowhere_else(
    server: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    get()
    assert {asked.authorization for asked in server.asked if asked.is_cdn} == {""}
    assert {asked.authorization for asked in server.asked if not asked.is_cdn} == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text
    assert SIGNATURE not in caplog.text


def test_offline_nothing_is_asked(server: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for published in (pinned(saved), unpinned(saved)):
        with pytest.raises(ModelError, match="weights-missing: .*HF_HUB_OFFLINE"):
            get(published)
    assert server.asked == []


def test_pinned_files_in_the_cache_of_the_library_are_used_offline(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import hf_hub_download

    for name in NAMES:
        hf_hub_download(REPO, name, revision=REVISION, endpoint=server.endpoint, cache_dir=tmp_path / "library-cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get().tokenizer is not None


@pytest.mark.parametrize("name", NAMES)
def test_g08_fetched_files_that_changed_since_are_refused(server: Hub, name: str) -> None:
    files = get()
    with (files.folder / name).open("ab") as file:
        file.write(b"\n" if name != WEIGHTS else bytes(8))
    with pytest.raises(PolicyError, match=f"weights-hash: .*{name}"):
        find_folder("tiny")


def test_a_record_that_was_changed_with_its_file_does_not_outdo_the_table(server: Hub) -> None:
    files = get()
    change(files.folder / PROCESSING[0], resample=3)
    sums = {**files.sums, PROCESSING[0]: hashlib.sha256((files.folder / PROCESSING[0]).read_bytes()).hexdigest()}
    change(files.folder / RECORD, files=sums)
    with pytest.raises(PolicyError, match="is not what was fetched"):
        find_folder(files.folder)
    change(files.folder / RECORD, repo="someone/else", revision="f" * 40)
    with pytest.raises(PolicyError, match="is not what was fetched"):
        find_folder("tiny")
    assert find_folder(files.folder).sums == sums  # a folder of the user's own


def test_the_commit_is_the_pinned_one_or_one_that_the_user_names(server: Hub, saved: Path) -> None:
    with pytest.raises(ConfigError, match="are pinned"):
        get(revision="d" * 40)
    free = unpinned(saved, revision="")
    for revision, said in ((None, "you say which commit"), ("main", "no full commit"), ("C" * 40, "no full commit")):
        with pytest.raises(ConfigError, match=said):
            get(free, revision=revision)
    assert server.asked == []
    assert get(free, revision=REVISION).folder.name == REVISION


def test_two_commits_that_users_named_must_be_told_apart(server: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, other = unpinned(saved, revision=""), "d" * 40
    monkeypatch.setattr(table, "FOLDERS", (free,))
    for name in NAMES:
        server.publish(REPO, other, name, saved / name, is_large=name == WEIGHTS)
    first, second = get(free, revision=REVISION), get(free, revision=other)
    with pytest.raises(ModelError, match="2 commits of tiny are here"):
        find_folder("tiny")
    assert find_folder(second.folder).sha256 == first.sha256


def test_the_hub_learns_nothing_about_this_machine_and_is_asked_for_nothing_else(server: Hub) -> None:
    get()
    assert {asked.path for asked in server.asked} == {f"/{REPO}/resolve/{REVISION}/{name}" for name in NAMES}
    assert all(asked.agent.startswith("eo-batch/") and "torch" not in asked.agent for asked in server.asked)


# the table


def test_the_table_names_safetensors_at_full_commits_and_nothing_that_could_run() -> None:
    assert len({folder.name for folder in FOLDERS}) == len({folder.repo for folder in FOLDERS}) == len(FOLDERS)
    for folder in FOLDERS:
        names = [file.filename for file in folder.files]
        assert {CONFIG, WEIGHTS} <= set(names)
        assert set(names) & set(PROCESSING)
        assert len(folder.revision) in (0, 40)
        assert all(name.endswith((".json", ".txt", ".safetensors")) for name in names)
        assert all(len(file.sha256) in (0, 64) for file in folder.files)
    assert {folder.name for folder in FOLDERS if folder.is_gated} == {"sam3"}
    assert [folder.name for folder in FOLDERS if not folder.revision] == ["directsam"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "sub/model.safetensors", "../model.safetensors", "x.pkl"])
def test_a_table_line_for_a_pickle_or_another_folder_cannot_be_written(name: str) -> None:
    with pytest.raises(PolicyError):
        PublishedFolder("tiny", REPO, REVISION, (), (FolderFile(name),), licence="", source="", summary="")


def test_a_segmenter_says_every_command_that_it_still_needs(server: Hub) -> None:
    entry = replace(BUILT_IN["clipseg"], weights=("tiny", "sam2", "directsam"))
    missing = "eo-batch models fetch sam2, eo-batch models fetch directsam --revision COMMIT"
    assert entry.state == f"weights missing: eo-batch models fetch tiny, {missing}"
    get()
    assert entry.state == f"weights missing: {missing}"
    assert replace(entry, weights=("tiny",)).state == "ready"


# networks


def build(folder: Path, **others: Any) -> Any:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    files = find_folder(folder)
    config = config_of(CLIPSegConfig, files.config, where=str(folder / CONFIG))
    return build_network(CLIPSegForImageSegmentation, config, read_folder(files), where=str(folder / WEIGHTS), **others)


def test_a_network_holds_the_tensors_of_its_file(saved: Path) -> None:
    tensors, network = load_file(saved / WEIGHTS), build(saved)
    state = network.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    positions = network.clip.text_model.embeddings.position_ids
    assert positions.tolist() == [list(range(16))]


def test_half_precision_is_widened_once(saved: Path, folder: Path) -> None:
    save_file({name: tensor.half() for name, tensor in load_file(saved / WEIGHTS).items()}, folder / WEIGHTS)
    assert {tensor.dtype for tensor in build(folder).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t.pop("decoder.film_mul.bias"), "1 missing: decoder.film_mul.bias"),
        (lambda t: t.update(more=torch.zeros(3)), "1 unexpected: more"),
        (lambda t: t.update({"decoder.film_mul.bias": torch.zeros(3)}), "1 mismatched: .*decoder.film_mul.bias"),
        (lambda t: t["decoder.film_mul.bias"].fill_(float("nan")), "decoder.film_mul.bias holds NaN"),
        (
            lambda t: t.update({"decoder.film_mul.bias": torch.full((16,), 1e300, dtype=torch.float64)}),
            "decoder.film_mul.bias holds NaN",
        ),
        (
            lambda t: t.update({"decoder.film_mul.bias": t["decoder.film_mul.bias"].int()}),
            "1 of no real numbers: decoder.film_mul",
        ),
        (lambda t: [t.pop(name) for name in sorted(t)[3:]], "more than 12 tensors, and comes with 3"),
    ],
)
def test_tensors_that_are_not_those_of_the_network_are_named(folder: Path, damage: Any, said: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    damage(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ModelError, match=f"model-load: .*{said}"):
        build(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"projection_dim": 10_000_000},
        {"projection_dim": "24"},
        {"projection_dim": -1},
        {"vision_config": {"num_hidden_layers": 1_000_000}},
        {"vision_config": {"hidden_size": 7}},
        {"vision_config": [1]},
        {"vision_config": {"hidden_act": "__import__('os')"}},
        {"text_config": {"vocab_size": 10_000_000, "hidden_size": 1_000_000}},
    ],
)
def test_a_config_of_no_network_is_refused_before_it_is_built(folder: Path, values: dict[str, Any]) -> None:
    change(folder / CONFIG, **values)
    with pytest.raises(ModelError, match="model-load"):
        build(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1e99}', "\udcff", '{"a":' * 2000, json.dumps({"a": "x" * 200_000})])
def test_a_config_that_is_no_table_is_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match="model-load"):
        find_folder(folder)


def test_what_a_config_says_of_code_files_and_devices_is_left_out(folder: Path, saved: Path) -> None:
    change(
        folder / CONFIG,
        auto_map={"AutoModel": "evil.Evil"},
        quantization_config={"quant_method": "evil"},
        device_map="disk",
        dtype="float16",
        _attn_implementation="evil",
        attn_implementation="evil",
    )
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    one, other = build(folder).state_dict(), build(saved).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_config_can_count_no_labels_without_names(folder: Path) -> None:
    change(folder / CONFIG, num_labels=100_000)
    assert len(build(folder).config.id2label) == 2


@pytest.mark.parametrize(
    "parts", [{"mask_decoder_config": {"num_multimask_outputs": 200_000}}, {"blocks_per_stage": [1, 1, 200_000, 1]}]
)
def test_a_network_is_not_built_any_further_when_it_has_more_tensors_than_came(parts: dict[str, Any]) -> None:
    from transformers import Sam2Config, Sam2Model

    hiera = {"model_type": "sam2_hiera_det_model", "blocks_per_stage": parts.pop("blocks_per_stage", [1, 1, 1, 1])}
    said = {"vision_config": {"model_type": "sam2_vision_model", "backbone_config": hiera}, **parts}
    began = time.process_time()
    with pytest.raises(ModelError, match="more than 40 tensors, and comes with 10"):
        build_network(
            Sam2Model, config_of(Sam2Config, said, where="x"), {str(n): torch.ones(10**6) for n in range(10)}, where="x"
        )
    assert time.process_time() - began < 5


def test_tables_that_a_network_makes_itself_count_too() -> None:
    from transformers import Sam3ViTConfig, Sam3ViTModel

    config = config_of(Sam3ViTConfig, {"hidden_size": 32, "num_attention_heads": 2, "window_size": 9000}, where="x")
    with pytest.raises(ModelError, match="numbers instead of"):
        build_network(Sam3ViTModel, config, {str(n): torch.ones(1000) for n in range(400)}, where="x")


def test_networks_of_libraries_that_are_not_here_are_refused() -> None:
    from transformers import Sam3Config

    said = {"vision_config": {"backbone_config": {"model_type": "timm_wrapper", "architecture": "resnet50"}}}
    with pytest.raises(ModelError, match="model-load: .*timm"):
        config_of(Sam3Config, said, where="x")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "preprocessor_config.json", "merges.txt", RECORD])
def test_files_that_the_disk_does_not_give_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/proc/self/mem")  # a regular file that nobody can read from its beginning
    with pytest.raises(ModelError, match=f"model-load: .*{name}: could not be read"):
        find_folder(folder)


# the command


def models(*arguments: str, answer: str = "") -> Result:
    """`eo-batch models ...`, with what is typed at its questions."""
    return CliRunner().invoke(app, ["models", *arguments], input=answer)


def test_the_command_shows_the_licence_and_asks_before_anything_is_downloaded(server: Hub) -> None:
    refused = models("fetch", "tiny", answer="n\n")
    assert refused.exit_code == 2
    for said in ("licence: made by a test", f"{REPO}, commit {REVISION[:12]}", "MB)"):
        assert said in refused.stderr
    assert server.asked == []
    agreed = models("fetch", "tiny", "--json", answer="y\n")
    assert agreed.exit_code == 0, agreed.stderr
    assert json.loads(agreed.stdout.splitlines()[-1])["sha256"] == find_folder("tiny").sha256
    again = models("fetch", "tiny")
    assert (again.exit_code, "licence" in again.stderr) == (0, False)


def test_the_command_says_that_a_gated_network_wants_an_account() -> None:
    refused = models("fetch", "sam3", answer="n\n")
    assert refused.exit_code == 2
    for said in ("SAM License", "military", "https://huggingface.co/facebook/sam3", "HF_TOKEN"):
        assert said in refused.stderr


def test_another_commit_of_a_pinned_network_is_refused(server: Hub) -> None:
    answer = models("fetch", "tiny", "--yes", "--revision", "d" * 40)
    assert (answer.exit_code, "are pinned" in answer.stderr) == (2, True)
    assert server.asked == []


def test_an_unknown_name_is_never_asked_of_a_hub(server: Hub) -> None:
    answer = models("fetch", "clipsec", "--yes")
    assert answer.exit_code == 2
    assert 'Did you mean "clipseg"?' in answer.stderr
    assert server.asked == []


def test_list_tells_segmenters_and_other_networks_apart(server: Hub) -> None:
    listed = json.loads(models("list", "--json").stdout)
    states = {entry["name"]: entry["state"] for entry in listed["models"]}
    assert states["clipseg"] == "weights missing: eo-batch models fetch clipseg"
    others = {entry["name"]: entry["state"] for entry in listed["networks"]}
    assert {"siglip", "sam-b", "sam-l", "directsam", "tiny"} <= set(others)
    assert "clipseg" not in others
    get()
    assert "tiny" in models("list").stdout
    listed = json.loads(models("list", "--json").stdout)
    assert next(entry["state"] for entry in listed["networks"] if entry["name"] == "tiny") == "ready"


def test_show_tells_where_a_network_comes_from_and_what_is_here(server: Hub, saved: Path) -> None:
    assert "not on this machine. Run: eo-batch models fetch tiny." in models("show", "tiny").stderr
    files = get()
    shown = json.loads(models("show", "tiny", "--json").stdout)
    assert shown["published"][0]["revision"] == REVISION
    assert shown["here"][0]["sha256"] == files.sha256
    assert json.loads(models("show", str(saved), "--json").stdout)["here"][0]["architecture"] == "clipseg"


def test_published_networks_are_known_by_both_their_names() -> None:
    assert published_folder("clipseg") is published_folder("CIDAS/clipseg-rd64-refined") is not None
    assert published_folder("nothing") is None


def test_every_segmenter_can_be_shown_and_says_what_it_answers_with(server: Hub) -> None:
    for name in BUILT_IN:
        assert models("show", name).exit_code == 0, name
    shown = models("show", "grounded-sam2")
    assert "eo-batch models show grounding-dino" in shown.output
    assert "eo-batch models show sam2" in shown.output
    assert json.loads(models("show", "spectral", "--json").stdout)["segmenter"]["state"] == "ready"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("grounded-sam2", "Run: eo-batch models fetch grounding-dino, then eo-batch models fetch sam2."),
        ("rsrefseg2", "eo-batch models convert FILE --network rsrefseg2"),
        ("spectral", "It needs none."),
    ],
)
def test_a_segmenter_without_weights_of_its_name_says_what_to_do_instead(server: Hub, name: str, fix: str) -> None:
    result = models("fetch", name, "--yes")
    assert result.exit_code == 2
    assert fix in result.output
    assert server.asked == []


@pytest.mark.parametrize("named", ["a" * 5000, "a\0b", "nothing", "clipsegg"])
def test_what_nobody_knows_is_told_so(server: Hub, named: str) -> None:
    result = models("show", named)
    assert result.exit_code == 2
    assert ("is no path" in result.output) or ("Known: remotesam, clipseg" in result.output)
