"""Whole runs on every kind of cluster: the same bytes, whoever computes and whoever dies on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import chunkwork
import pytest
from drivers import eo_batch, receipts, start_until
from rundigest import file_digests, newest_digests
from servers.dask_cluster import DaskCluster, dask_cluster
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ResourceError
from eo_batch.run import sitting
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.executors import dispatch
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.later.rethreshold import rethreshold
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status

CHUNKS = 16


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=260)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=260, chunk_px=64))
    (folder / "slow.toml").write_text(
        toy_pipeline(size=260, chunk_px=64).replace("[output]", "[model.options]\ncost = 150\n[output]")
    )
    return folder


@pytest.fixture(scope="module")
def golden(toy: Path) -> dict[str, str]:
    summary = start_run(load_pipeline(toy / "pipeline.toml"), toy / "golden", executor="serial")
    assert (summary.exit_status, summary.total) == (0, CHUNKS)
    return file_digests(toy / "golden")


@pytest.fixture(scope="module")
def slow_golden(toy: Path) -> dict[str, str]:
    assert start_run(load_pipeline(toy / "slow.toml"), toy / "slow_golden", executor="serial").exit_status == 0
    return file_digests(toy / "slow_golden")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster whose workers stay from run to run."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), workers=1) as cluster:
        yield cluster


@pytest.mark.parametrize("kind", ["local", *(pytest.param(f"local:{count}", marks=pytest.mark.slow) for count in (1, 2, 4))])
def test_f12_any_number_of_workers_gives_the_same_bytes(toy: Path, golden: dict[str, str], tmp_path: Path, kind: str) -> None:
    assert start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor=kind).exit_status == 0
    assert file_digests(tmp_path / "run") == golden


@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_of_a_scheduler_gives_the_same_bytes(
    toy: Path, golden: dict[str, str], lasting: DaskCluster, tmp_path: Path, count: int
) -> None:
    while len(lasting.workers) < count:
        lasting.add_worker()
    assert start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor=lasting.address).exit_status == 0
    assert file_digests(tmp_path / "run") == golden


def test_prompts_are_added_and_thresholds_changed_by_worker_processes(
    toy: Path, golden: dict[str, str], lasting: DaskCluster, tmp_path: Path
) -> None:
    runs = {}
    for name, cluster in (("here", "serial"), ("there", lasting.address)):
        run, other = tmp_path / name, tmp_path / f"{name}_other"
        shutil.copytree(toy / "golden", run)
        assert add_prompts(run, ["green"], executor=cluster).exit_status == 0
        assert rethreshold(run, {"bright": 0.7}, other, executor=cluster).exit_status == 0
        runs[name] = newest_digests(run), {k: v for k, v in file_digests(other).items() if k != "derived.json"}
    assert runs["here"] == runs["there"]


def test_a06_a_chunk_that_ends_every_worker_fails_and_the_others_are_made(
    toy: Path, golden: dict[str, str], lasting: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    pipeline = load_pipeline(toy / "pipeline.toml")
    with monkeypatch.context() as patch:
        patch.setattr(sitting, "execute", chunkwork.deadly_chunk)
        patch.setattr(dispatch, "DEATHS", 2)  # each of them is a process to be started again
        summary = start_run(pipeline, tmp_path / "run", executor=lasting.address, listener=events.append)
    assert (summary.exit_status, summary.failed, summary.done + summary.empty) == (3, 1, CHUNKS - 1)
    failure = next(event for event in events if event.kind == "failure")
    assert failure.data == {"key": "t0000/y0001_x0001", "code": "worker-lost"}
    assert "failed: worker-lost: it ended 2 workers (last known stage: score): most likely it needs more memory" in failure.text
    assert failure.text.endswith("Resume with fewer threads or more memory_gb.")  # chunks of 32 px cannot be asked for
    assert [event.data["state"] for event in events if event.kind == "worker"].count("lost") == 2
    assert resume_run(tmp_path / "run", executor="serial").exit_status == 0
    assert file_digests(tmp_path / "run") == golden


def test_a05_a_chunk_that_loses_its_worker_once_is_made_again_and_says_so(
    toy: Path, golden: dict[str, str], lasting: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    monkeypatch.setattr(sitting, "execute", chunkwork.chunk_that_is_unlucky_once)
    pipeline = load_pipeline(toy / "pipeline.toml")
    summary = start_run(pipeline, tmp_path / "run", executor=lasting.address, listener=events.append)
    assert summary.exit_status == 0
    assert file_digests(tmp_path / "run") == golden
    attempts = {event.data["key"]: event.data["attempt"] for event in events if event.kind == "chunk"}
    assert len(attempts) == CHUNKS
    assert attempts["t0000/y0001_x0001"] == 2


def test_a09_without_its_scheduler_a_run_stops_and_keeps_what_it_has(toy: Path, golden: dict[str, str], tmp_path: Path) -> None:
    with dask_cluster(tmp_path / "dask") as brittle:
        brittle.add_worker("--no-nanny")

        def listen(event: Event) -> None:
            if event.kind == "chunk" and event.done == 3:
                brittle.scheduler.kill()

        with pytest.raises(ResourceError, match=r"store and receipts are intact, \d+ chunks remain.*eo-batch resume") as found:
            start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor=brittle.address, listener=listen)
    assert (found.value.code, found.value.exit_status) == ("cluster-lost", 4)
    assert receipts(tmp_path / "run") >= 3
    assert resume_run(tmp_path / "run", executor="serial").exit_status == 0
    assert file_digests(tmp_path / "run") == golden


def test_a12_a_worker_that_is_preempted_leaves_nothing_half_written(
    toy: Path, slow_golden: dict[str, str], lasting: DaskCluster, tmp_path: Path
) -> None:
    leaves, run = lasting.add_worker(), tmp_path / "run"

    def listen(event: Event) -> None:
        if event.kind == "chunk" and event.done == 3:
            leaves.terminate()

    summary = start_run(load_pipeline(toy / "slow.toml"), run, executor=lasting.address, listener=listen)
    assert summary.exit_status == 0
    assert leaves.wait(timeout=60) is not None
    assert not list(run.rglob("*.partial"))
    assert file_digests(run) == slow_golden


def test_a11_a_killed_driver_is_followed_at_once_by_another_while_workers_go_on(
    toy: Path, slow_golden: dict[str, str], lasting: DaskCluster, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_until(run, eo_batch("run", toy / "slow.toml", "--out", run, "--cluster", lasting.address), 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert resume_run(run, executor=lasting.address).exit_status == 0
    assert file_digests(run) == slow_golden


def test_a07_ctrl_c_of_a_terminal_drains_worker_processes_too(toy: Path, slow_golden: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = eo_batch("run", toy / "slow.toml", "--out", run, "--cluster", "local:1")
    process = start_until(run, command, 2, start_new_session=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: every process of the group hears it
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert b"eo-batch resume" in errors
    assert not list(run.rglob("*.partial"))
    assert run_status(run).failures == ()
    assert resume_run(run, executor="serial").exit_status == 0
    assert file_digests(run) == slow_golden
