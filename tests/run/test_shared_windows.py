"""Runs whose chunks share windows: the same files as without, as many windows as planned, and no sharing that changes a bit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.models.probe import WindowMean
from eo_batch.outputs.store import Store
from eo_batch.run import answers, shared_windows
from eo_batch.run.answers import fresh_answers
from eo_batch.run.cost.coverage import coverage_of
from eo_batch.run.cost.memory import memory_of
from eo_batch.run.cost.plan import make_inputs_of
from eo_batch.run.crew import crew_of
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.later.rethreshold import rethreshold
from eo_batch.run.manifest import RunInputs
from eo_batch.run.order import pieces
from eo_batch.run.request import load_pipeline
from eo_batch.run.shared_windows import edge_budget, pieces_of, share_windows
from eo_batch.run.stopwatch import Stopwatch

BANDS = ("green", "nir")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder)
    return folder


@pytest.fixture
def unshared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_windows, "SHARED_BYTES", 0)


@pytest.fixture(scope="module")
def alone(toy: Path) -> Path:
    """A run whose chunks share nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_windows, "SHARED_BYTES", 0)
        return run(toy, "alone", chunk_px=100)


def inputs_of(toy: Path, name: str, **settings: object) -> RunInputs:
    pipeline = toy / f"{name}.toml"
    pipeline.write_text(toy_pipeline(**settings))  # type: ignore[arg-type]
    return make_inputs_of(load_pipeline(pipeline))


def run(toy: Path, name: str, executor: str = "serial", *, workers: int | None = None, **settings: object) -> Path:
    pipeline = toy / f"{name}.toml"
    pipeline.write_text(toy_pipeline(**settings))  # type: ignore[arg-type]
    out = toy / f"run-{name}"
    assert start_run(load_pipeline(pipeline), out, executor=executor, workers=workers).exit_status == 0
    return out


def counts(out: Path) -> tuple[int, int]:
    """Windows that the chunks of a run computed, and those that they took."""
    told = [json.loads(path.read_bytes())["telemetry"]["windows"] for path in sorted(out.rglob("receipts/**/*.json"))]
    return sum(one.get("computed", 0) for one in told), sum(one.get("shared", 0) for one in told)


@pytest.mark.parametrize(("executor", "threads"), [("serial", None), ("local", 1), ("local", 4)])
def test_a_run_that_shares_windows_writes_the_files_of_one_that_does_not(
    toy: Path, alone: Path, executor: str, threads: int | None
) -> None:
    out = run(toy, f"{executor}{threads}", executor, workers=threads, chunk_px=100)
    assert file_digests(out) == file_digests(alone)
    assert counts(out)[1] > 0
    assert sum(counts(out)) == counts(alone)[0]
    assert counts(alone)[1] == 0


def test_a_budget_of_a_few_windows_gives_the_same_files(toy: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_windows, "SHARED_BYTES", 100_000)
    out = run(toy, "tiny", "local", workers=2, chunk_px=100)
    assert file_digests(out) == file_digests(alone)
    assert sum(counts(out)) == counts(alone)[0]


def test_a_resumed_run_gives_the_same_files(toy: Path, alone: Path) -> None:
    out = run(toy, "resumed", chunk_px=100)
    for path in sorted(out.rglob("receipts/**/*.json"))[::3]:
        path.unlink()
    (out / "COMPLETE.json").unlink()
    assert resume_run(out, executor="serial").exit_status == 0
    assert file_digests(out) == file_digests(alone)


def test_prompts_added_later_share_among_themselves(toy: Path, unshared: None, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run(toy, "extend-alone", chunk_px=100)
    add_prompts(alone, ["grey"], executor="serial")
    monkeypatch.setattr(shared_windows, "SHARED_BYTES", 10**9)
    out = run(toy, "extend", chunk_px=100)
    add_prompts(out, ["grey"], executor="serial")
    assert file_digests(out) == file_digests(alone)
    assert counts(out)[1] > 0


def test_kept_features_and_shared_windows_work_together(toy: Path, alone: Path) -> None:
    out = run(toy, "features", chunk_px=100, extra="[cache]\nfeatures = true\n")
    shards = {name: one for name, one in file_digests(out).items() if name.startswith(("masks.zarr/", "parts/"))}
    assert shards == {name: one for name, one in file_digests(alone).items() if name in shards}
    assert len(list((out / "features").rglob("*.features"))) == counts(out)[0]


@dataclass(frozen=True)
class Sociable(WindowMean):
    """Its answers depend on what else is in the batch."""

    def encode_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return super().encode_images(images) + images.mean(dtype=np.float64).astype(np.float32)


@pytest.mark.parametrize("batch", [2, 4])
def test_a_segmenter_that_looks_at_other_windows_of_a_batch_shares_nothing(toy: Path, batch: int) -> None:
    pipeline = toy / f"sociable{batch}.toml"
    pipeline.write_text(toy_pipeline(chunk_px=100).replace("batch = 4", f"batch = {batch}"))
    inputs = make_inputs_of(load_pipeline(pipeline))
    found = {}
    for segmenter in (WindowMean(BANDS), Sociable(BANDS, cost=1)):
        features = segmenter.encode_prompts(inputs.request.spec.prompt_set)
        found[type(segmenter)] = share_windows(inputs, segmenter, features, prompts=2).budget
    assert found[WindowMean] > 0
    assert found[Sociable] == 0


def test_features_of_a_segmenter_that_looks_at_other_windows_of_a_batch_change_no_byte(toy: Path, tmp_path: Path) -> None:
    inputs = inputs_of(toy, "sociable-features", chunk_px=100, extra="[cache]\nfeatures = true\n")
    prompts, chunk = inputs.request.spec.prompt_set, inputs.grid.chunk(0, 1, 1)
    inside = np.ones(chunk.shape, bool)
    found = set()
    for _ in range(2):  # the second time some features are there, as after an interruption
        answers_of = fresh_answers(inputs, prompts, Sociable(BANDS, cost=1), store=Store(tmp_path))
        found.add(answers_of.answer(chunk, inside, Stopwatch()).scores.tobytes())
        for path in sorted(tmp_path.rglob("*.features"))[::2]:
            path.unlink()
    assert len(found) == 1


def test_one_chunk_has_nobody_to_share_with(toy: Path) -> None:
    inputs = inputs_of(toy, "whole", chunk_px=512)
    assert edge_budget(inputs, prompts=2) == 0


def test_a_limit_of_memory_bounds_what_is_shared(toy: Path) -> None:
    assert edge_budget(inputs_of(toy, "limit", chunk_px=64, extra="[limits]\nmemory_gb = 0.004"), prompts=50) == 500_000


def test_memory_of_a_process_counts_what_is_shared(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = inputs_of(toy, "memory", chunk_px=64)
    spec, segmenter = inputs.request.spec, WindowMean(BANDS)
    covered = coverage_of(inputs)
    sizes = []
    for most in (0, 10**9):
        monkeypatch.setattr(shared_windows, "SHARED_BYTES", most)
        memory = memory_of(inputs, segmenter, covered, prompts=2, cluster=spec.cluster, crew=crew_of(spec.cluster))
        sizes.append(memory.per_process)
    assert sizes[1] - sizes[0] == edge_budget(inputs, prompts=2) > 0


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("most", [10**9, 200_000])
def test_windows_are_planned_as_counted_one_by_one(toy: Path, processes: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_windows, "SHARED_BYTES", most)
    inputs = inputs_of(toy, "counted", chunk_px=64)
    in_one_go: dict[object, set[tuple[int, ...]]] = {}
    for number, group in enumerate(pieces_of(inputs, processes=processes)):
        strip = (group[0][0], group[0][2])
        for index in group:
            chunk = inputs.grid.chunk(*index)
            if inputs.region.inside(chunk.rows, chunk.cols).any():
                windows = {(index[0], window.row, window.col) for window in inputs.grid.windows(chunk)}
                in_one_go.setdefault(strip if processes == 1 else number, set()).update(windows)
    assert coverage_of(inputs, processes=processes).windows_computed == sum(map(len, in_one_go.values()))


@pytest.mark.parametrize("chunk_px", [64, 100, 200])
def test_a_process_computes_each_window_of_an_observed_region_once(
    tmp_path: Path, chunk_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_toy(tmp_path, dates=1)
    inputs = inputs_of(tmp_path, "observed", chunk_px=chunk_px)
    seen = fresh_answers(inputs, inputs.request.spec.prompt_set, WindowMean(BANDS))
    plain = answers.score_chunk

    def observed(*args: object, **named: object) -> NDArray[np.float32]:
        named["valid"] = np.ones_like(named["valid"])
        named["pixels"] = np.nan_to_num(named["pixels"])  # type: ignore[call-overload]
        return plain(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "score_chunk", observed)
    computed = 0
    for group in pieces(1, inputs.grid.chunks_yx):
        for index in group:
            chunk = inputs.grid.chunk(*index)
            inside = np.ones(chunk.shape, bool)
            computed += seen.answer(chunk, inside, Stopwatch()).windows.get("computed", 0)
    assert computed == inputs.grid.window_counts[1]
    assert seen.shared.most_held <= seen.shared.budget


def test_receipts_of_other_thresholds_tell_of_no_windows(toy: Path, alone: Path) -> None:
    out = toy / "run-other"
    rethreshold(alone, {"bright": 0.6}, out, executor="serial")
    assert counts(out) == (0, 0)
    assert Store(out).exists("COMPLETE.json")
