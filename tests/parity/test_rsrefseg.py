"""The promises of a run, kept by RSRefSeg: any chunk size, batch, company and interruption give the same map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rundigest import file_digests, footprint_rows, mask_array
from tinyref import make_tiny, tiny_pipeline
from toy import make_toy
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.core.errors import ResumeError
from eo_batch.models.rsrefseg import RSRefSeg
from eo_batch.models.rsrefseg.segmenter import RSRefSegSegmenter
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event

SIZE = 140
PROMPTS = ("the lake on the left", "water")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    make_tiny(folder / "weights")
    return folder


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """The oracle: the whole region in one chunk, by command."""
    out = toy / "run-whole"
    answer = CliRunner().invoke(app, ["run", str(pipeline(toy, "whole", chunk_px=512)), "--out", str(out), "--quiet"])
    assert answer.exit_code == 0, answer.stderr
    return out


@pytest.fixture(scope="module")
def parts(toy: Path) -> Path:
    """The same in many chunks, one after the other."""
    return run(toy, "parts", chunk_px=64)


def pipeline(toy: Path, name: str, *, prompts: tuple[str, ...] = PROMPTS, **settings: object) -> Path:
    path = toy / f"{name}.toml"
    path.write_text(tiny_pipeline(toy / "weights" / "tiny.safetensors", size=SIZE, prompts=prompts, **settings))
    return path


def run(toy: Path, name: str, executor: str = "serial", **settings: object) -> Path:
    out = toy / f"run-{name}"
    summary = start_run(load_pipeline(pipeline(toy, name, **settings)), out, executor=executor, workers=2)
    assert summary.exit_status == 0
    return out


def test_the_oracle_has_something_to_compare(whole: Path) -> None:
    scores = mask_array(whole, "score")
    for prompt in scores:
        assert np.ptp(prompt[prompt < 251]) > 20
    assert (scores[0] != scores[1]).any()
    assert (mask_array(whole) == 1).any()
    assert (mask_array(whole) == 0).any()


def test_many_chunks_give_the_map_of_the_whole(whole: Path, parts: Path) -> None:
    np.testing.assert_array_equal(mask_array(parts, "score"), mask_array(whole, "score"))
    assert footprint_rows(parts) == footprint_rows(whole)


def test_windows_of_another_size_than_the_network_keep_the_promise(toy: Path) -> None:
    one, many = (run(toy, f"window80-{chunk}", chunk_px=chunk, window_px=80, prompts=("water",)) for chunk in (512, 96))
    np.testing.assert_array_equal(mask_array(many, "score"), mask_array(one, "score"))


def test_the_batch_cannot_change_the_map(toy: Path, whole: Path) -> None:
    out = run(toy, "batch3", batch=3, chunk_px=512)
    assert mask_array(out, "score").tobytes() == mask_array(whole, "score").tobytes()


def test_a_prompt_in_company_is_a_prompt_alone(toy: Path, whole: Path) -> None:
    apart = run(toy, "apart", prompts=PROMPTS[1:], chunk_px=512)
    assert mask_array(apart, "score")[0].tobytes() == mask_array(whole, "score")[1].tobytes()


def test_threads_give_the_bytes_of_a_serial_run(toy: Path, parts: Path) -> None:
    assert file_digests(run(toy, "threads", "local", chunk_px=64)) == file_digests(parts)


def test_a_run_that_lost_chunks_resumes_to_the_same_bytes(parts: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(parts, tmp_path / "broken"))
    for receipt in sorted((broken / "receipts").rglob("*.json"))[::2]:
        receipt.unlink()
    (broken / "COMPLETE.json").unlink()
    assert resume_run(broken, executor="local", workers=2).exit_status == 0
    assert file_digests(broken) == file_digests(parts)


def test_a_run_does_not_go_on_with_other_weights(toy: Path, parts: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(parts, tmp_path / "broken"))
    (broken / "COMPLETE.json").unlink()
    right = (toy / "weights" / "tiny.safetensors").rename(tmp_path / "right.safetensors")
    try:
        make_tiny(toy / "weights", seed="other")
        with pytest.raises(ResumeError, match="weights-changed"):
            resume_run(broken)
    finally:
        right.replace(toy / "weights" / "tiny.safetensors")


def test_a_prompt_is_encoded_once_per_run_and_a_window_once_for_all_prompts(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    seen: list[int] = []
    hear, see = RSRefSeg.encode_prompts, RSRefSeg.encode_images
    monkeypatch.setattr(RSRefSeg, "encode_prompts", lambda self, ids: heard.append(1) or hear(self, ids))
    monkeypatch.setattr(RSRefSeg, "encode_images", lambda self, x: seen.append(1) or see(self, x))
    run(toy, "three", chunk_px=512, prompts=("a solar panel", "boats beside a pier", "white boat"))  # asked by no other test
    for_three = len(seen)
    run(toy, "one", chunk_px=512, prompts=("dark ship",))
    assert len(seen) == 2 * for_three
    assert len(heard) == 3 + 1


def test_prompts_that_come_later_need_no_second_look_and_give_the_same_map(
    toy: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pipeline(toy, "kept", chunk_px=64, prompts=PROMPTS[:1])
    path.write_text(f"{path.read_text()}\n[cache]\nfeatures = true\n")
    out = toy / "run-kept"
    seen: list[bytes] = []
    original = RSRefSegSegmenter.encode_images
    monkeypatch.setattr(RSRefSegSegmenter, "encode_images", lambda self, x: seen.append(x.tobytes()) or original(self, x))
    start_run(load_pipeline(path), out, executor="serial")
    known = set(seen)
    seen.clear()
    assert add_prompts(out, PROMPTS[1:], executor="serial").exit_status == 0
    assert mask_array(out, "score").tobytes() == mask_array(parts, "score").tobytes()
    assert footprint_rows(out) == footprint_rows(parts)
    assert set(seen) < known  # those that the check of a segmenter makes up, and none of the run's own
    assert 2 * len(seen) < len(known)


def test_run_and_plan_warn_of_a_place_in_the_window(toy: Path) -> None:
    events: list[Event] = []
    path = pipeline(toy, "warned", chunk_px=512)
    start_run(load_pipeline(path), toy / "run-warned", executor="serial", listener=events.append)
    said = [event.text for event in events if event.kind == "warning"]
    assert len(said) == 1
    assert '"on the left" is understood within each window' in said[0]
    answer = CliRunner().invoke(app, ["plan", str(path), "--workers", "1"])
    assert answer.exit_code == 0
    assert '"water" is asked as "water" (class name)' in answer.stdout
    assert f"warning: {said[0]}" in answer.stderr
    machine = CliRunner().invoke(app, ["plan", str(path), "--workers", "1", "--json"])
    plan = json.loads(machine.stdout)
    assert plan["warnings"] == said
    assert plan["memory_shared"] > 200_000
    assert len(plan["answers"]) == len(PROMPTS)


def test_a_grey_source_is_refused_before_anything_is_written(toy: Path) -> None:
    path = pipeline(toy, "grey")
    path.write_text(path.read_text().replace('bands = ["red", "green", "blue"]', 'bands = ["green"]'))
    answer = CliRunner().invoke(app, ["run", str(path), "--out", str(toy / "run-grey")])
    assert answer.exit_code == 2
    assert 'Set bands = ["red", "green", "blue"].' in answer.stderr
    assert not (toy / "run-grey").exists()
