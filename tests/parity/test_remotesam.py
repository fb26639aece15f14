"""The promises of a run, kept by a network: any chunk size, batch, company and interruption give the same map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rundigest import file_digests, footprint_rows, mask_array
from tinysam import make_tiny, tiny_pipeline
from toy import make_toy
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.core.errors import ResumeError
from eo_batch.models.remotesam.text import TextEncoder
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event

SIZE = 260
CORNER = 140
"""Side of a region in the corner, for what does not depend on its size."""
PROMPTS = ("bright field", "the lake on the left", "water")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    make_tiny(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """The oracle: the whole region in one chunk."""
    return run(toy, "whole", chunk_px=512)


@pytest.fixture(scope="module")
def many(toy: Path) -> Path:
    """The same region in chunks of 100 pixels, one after the other."""
    return run(toy, "many", chunk_px=100)


def pipeline(toy: Path, name: str, *, size: int = SIZE, prompts: tuple[str, ...] = PROMPTS, **settings: object) -> Path:
    path = toy / f"{name}.toml"
    path.write_text(tiny_pipeline(toy / "weights" / "tiny.safetensors", size=size, prompts=prompts, **settings))
    return path


def run(toy: Path, name: str, executor: str = "serial", **settings: object) -> Path:
    out = toy / f"run-{name}"
    summary = start_run(load_pipeline(pipeline(toy, name, **settings)), out, executor=executor, workers=2)
    assert summary.exit_status == 0
    return out


def test_the_oracle_has_something_to_compare(whole: Path) -> None:
    scores = mask_array(whole, "score")
    for prompt in scores:
        seen = prompt[prompt < 251]
        assert np.ptp(seen) > 20
    assert (mask_array(whole) == 1).any()
    assert (mask_array(whole) == 0).any()


@pytest.mark.parametrize("chunk_px", [64, 100, 200])
def test_any_chunk_size_gives_the_map_of_the_whole(toy: Path, whole: Path, many: Path, chunk_px: int) -> None:
    out = many if chunk_px == 100 else run(toy, f"chunk{chunk_px}", chunk_px=chunk_px)
    np.testing.assert_array_equal(mask_array(out, "score"), mask_array(whole, "score"))
    assert footprint_rows(out) == footprint_rows(whole)


def test_windows_of_another_size_than_the_network_keep_the_promise(toy: Path) -> None:
    one, many = (run(toy, f"window48-{chunk}", size=CORNER, chunk_px=chunk, window_px=48) for chunk in (512, 64))
    np.testing.assert_array_equal(mask_array(many, "score"), mask_array(one, "score"))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_cannot_change_the_map(toy: Path, whole: Path, batch: int) -> None:
    out = run(toy, f"batch{batch}", batch=batch, chunk_px=512)
    assert mask_array(out, "score").tobytes() == mask_array(whole, "score").tobytes()


def test_prompts_together_are_runs_apart(toy: Path, whole: Path) -> None:
    together = mask_array(whole, "score")
    for place, text in enumerate(PROMPTS):
        apart = run(toy, f"prompt{place}", prompts=(text,), chunk_px=512)
        assert mask_array(apart, "score")[0].tobytes() == together[place].tobytes()


def test_threads_give_the_bytes_of_a_serial_run(toy: Path, many: Path) -> None:
    assert file_digests(run(toy, "threads", "local", chunk_px=100)) == file_digests(many)


def test_a_run_that_lost_chunks_resumes_to_the_same_bytes(many: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(many, tmp_path / "broken"))
    receipts = sorted((broken / "receipts").rglob("*.json"))
    for receipt in receipts[::2]:
        receipt.unlink()
    (broken / "COMPLETE.json").unlink()
    assert resume_run(broken, executor="local", workers=2).exit_status == 0
    assert file_digests(broken) == file_digests(many)


def test_a_run_does_not_go_on_with_other_weights(toy: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path / "weights")
    path = tmp_path / "pipeline.toml"
    text = tiny_pipeline(tmp_path / "weights" / "tiny.safetensors", size=CORNER, prompts=PROMPTS[:1])
    path.write_text(text.replace('catalog = "catalog.json"', f'catalog = "{toy / "catalog.json"}"'))
    out = tmp_path / "run"
    start_run(load_pipeline(path), out, executor="serial")
    (out / "COMPLETE.json").unlink()
    make_tiny(tmp_path / "weights", salt="other:")
    with pytest.raises(ResumeError, match="weights-changed"):
        resume_run(out)


def test_prompts_are_encoded_once_per_run(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = TextEncoder.hidden
    monkeypatch.setattr(TextEncoder, "hidden", lambda self, *a: calls.append(1) or original(self, *a))
    run(toy, "counted", "local", size=CORNER, chunk_px=64, prompts=("dark ship", "a solar panel"))  # asked by no other test
    assert len(calls) == 2
    assert len(list((toy / "run-counted" / "receipts").rglob("*.json"))) > 3


def test_run_and_plan_warn_of_a_place_in_the_window(toy: Path) -> None:
    events: list[Event] = []
    path = pipeline(toy, "warned", size=CORNER, chunk_px=512)
    start_run(load_pipeline(path), toy / "run-warned", executor="serial", listener=events.append)
    said = [event.text for event in events if event.kind == "warning"]
    assert len(said) == 1
    assert '"on the left" is understood within each window' in said[0]
    answer = CliRunner().invoke(app, ["plan", str(path), "--workers", "1"])
    assert answer.exit_code == 0
    assert '"water" is asked as "water in the image" (class name)' in answer.stdout
    assert f"warning: {said[0]}" in answer.stderr
    machine = CliRunner().invoke(app, ["plan", str(path), "--workers", "1", "--json"])
    plan = json.loads(machine.stdout)
    assert plan["warnings"] == said
    assert plan["memory_shared"] > 3_000_000
    assert len(plan["answers"]) == len(PROMPTS)


def test_a_grey_source_is_refused_before_anything_is_written(toy: Path) -> None:
    path = pipeline(toy, "grey")
    path.write_text(path.read_text().replace('bands = ["red", "green", "blue"]', 'bands = ["green"]'))
    answer = CliRunner().invoke(app, ["run", str(path), "--out", str(toy / "run-grey")])
    assert answer.exit_code == 2
    assert 'Set bands = ["red", "green", "blue"].' in answer.stderr
    assert not (toy / "run-grey").exists()
