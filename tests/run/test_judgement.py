"""How a driver judges outcomes: what stops a run, what is counted, what is told and what is kept to itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ResumeError
from eo_batch.models.probe import WindowMean
from eo_batch.run import answers, driver, settled, sitting
from eo_batch.run.cost.plan import make_inputs_of
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status

SIZE = 260


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    make_toy(tmp_path, dates=1, size=SIZE)
    (tmp_path / "pipeline.toml").write_text(toy_pipeline(size=SIZE, chunk_px=64))
    return tmp_path


def test_allowed_failures_do_not_stop_a_run_early(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = load_pipeline(toy / "pipeline.toml")
    scene = toy / "b1_nir.tif"
    scene.write_bytes(scene.read_bytes()[: scene.stat().st_size // 2])
    monkeypatch.setattr(sitting, "STOP_AFTER_EQUAL", 2)
    summary = start_run(request, toy / "run", executor="serial", allow_failed=100)
    assert (summary.exit_status, summary.complete) == (3, True)
    assert 2 < summary.failed < summary.total


class Leaking(WindowMean):
    """A segmenter with a bug whose message holds a signed address."""

    def decode(self, image_features, prompt_features):
        raise RuntimeError("cannot read https://host.example/a.tif?sig=CANARY&se=2030")


def test_unexpected_failures_keep_secrets_to_themselves(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "load_segmenter", lambda model, bands: Leaking(tuple(bands)))
    events: list[Event] = []
    summary = start_run(load_pipeline(toy / "pipeline.toml"), toy / "run", executor="serial", listener=events.append)
    assert summary.failed == summary.total
    assert "unexpected RuntimeError" in run_status(toy / "run").failures[0].text
    stored = "".join(path.read_text() for path in (toy / "run" / "failures").rglob("*.json"))
    assert "CANARY" not in stored + repr(events)


def test_the_same_unexpected_failure_again_and_again_is_told_as_a_bug(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "load_segmenter", lambda model, bands: Leaking(tuple(bands)))
    monkeypatch.setattr(sitting, "STOP_AFTER_EQUAL", 3)
    with pytest.raises(RuntimeError, match="cannot read"):
        start_run(load_pipeline(toy / "pipeline.toml"), toy / "run", executor="serial")
    assert len(run_status(toy / "run").failures) == 3


def test_a_resumed_run_counts_chunks_as_an_undisturbed_one(toy: Path) -> None:
    pipeline = toy / "pipeline.toml"
    west = json.loads((toy / "catalog.json").read_text())
    west["features"] = west["features"][1:]  # the west is not observed
    (toy / "catalog.json").write_text(json.dumps(west))
    first = start_run(load_pipeline(pipeline), toy / "run", executor="serial")
    assert first.empty > 0
    again = resume_run(toy / "run", executor="serial")
    assert (again.done, again.empty, again.failed) == (first.done, first.empty, 0)


def test_a_run_that_appeared_during_the_search_is_not_mixed_with_this_one(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_run(load_pipeline(toy / "pipeline.toml"), toy / "first", executor="serial").exit_status == 0
    other = toy / "other.toml"
    other.write_text(toy_pipeline(size=SIZE, chunk_px=64, prompts=("dark",)))

    def slow_search(*args: object, **kwargs: object) -> object:
        shutil.copytree(toy / "first", toy / "run")
        return make_inputs_of(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(driver, "make_inputs_of", slow_search)
    with pytest.raises(ResumeError, match="prompts-changed"):
        start_run(load_pipeline(other), toy / "run", executor="serial")
    assert file_digests(toy / "run") == file_digests(toy / "first")


class Neighbourly(WindowMean):
    """A segmenter whose answer to a window depends on the other windows of its batch."""

    def decode(self, image_features, prompt_features):
        logits = super().decode(image_features, prompt_features)
        return logits + logits.mean(axis=0, keepdims=True)


def test_a_segmenter_that_looks_at_its_batch_is_warned_about(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settled, "load_segmenter", lambda model, bands: Neighbourly(tuple(bands)))
    events: list[Event] = []
    start_run(load_pipeline(toy / "pipeline.toml"), toy / "run", executor="serial", listener=events.append)
    assert any(event.kind == "warning" and "chunk size" in event.text for event in events)
