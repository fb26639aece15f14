"""Workers and schedulers that are frozen: they keep their connections, and never answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from rundigest import file_digests
from servers.dask_cluster import DaskCluster, dask_cluster
from toy import make_toy, toy_pipeline

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.run.driver import start_run
from eo_batch.run.executors import dispatch, make_executor, pool, scheduler, versions
from eo_batch.run.executors.scheduler import Pulse, beat_of
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for as long as they do for real clusters."""
    monkeypatch.setattr(scheduler, "LOOKS", 6)
    monkeypatch.setattr(dispatch, "PULSE_S", 0.5)
    for module in (scheduler, dispatch, pool, versions):
        monkeypatch.setattr(module, "ANSWER_S", 3.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=260)
    text = toy_pipeline(size=260, chunk_px=64).replace("[output]", "[model.options]\ncost = 150\n[output]")
    (folder / "pipeline.toml").write_text(text)
    assert start_run(load_pipeline(folder / "pipeline.toml"), folder / "golden", executor="serial").exit_status == 0
    return folder


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with dask_cluster(tmp_path_factory.mktemp("dask")) as running:
        for _ in range(2):
            running.add_worker("--no-nanny")  # what is frozen is the worker itself
        with Client(running.address, set_as_default=False) as client:  # they import for seconds, as if they were frozen
            client.run_on_scheduler(import_module, "eo_batch.run.task")
            client.run(import_module, "eo_batch.run.task")
        yield running
        for process in (*running.workers, running.scheduler):
            process.kill()


@pytest.fixture
def cluster(lasting: DaskCluster) -> Iterator[DaskCluster]:
    """Two workers; they thaw when the test ends."""
    yield lasting
    for process in (*lasting.workers, lasting.scheduler):
        process.send_signal(signal.SIGCONT)


def test_a_pulse_that_stays_the_same_is_silence_and_a_new_one_is_life() -> None:
    pulse = Pulse()
    for look in range(scheduler.LOOKS):
        pulse.feel({"a": 10.0, "b": look})
    assert not pulse.silent
    pulse.feel({"a": 10.0, "b": 900.0, "c": 0.0})
    assert pulse.silent == {"a"}
    pulse.feel({"a": 11.0, "b": 900.0, "c": 0.0})
    assert not pulse.silent


def test_a_worker_without_memory_for_another_task_lives_as_long_as_it_computes() -> None:
    full = {"status": "paused", "last_seen": 17.0}
    assert beat_of({**full, "metrics": {"task_counts": {"executing": 1, "ready": 2}}}) == 17.0
    assert beat_of({**full, "metrics": {"task_counts": {"ready": 2}}}) == 0.0
    assert beat_of({**full, "status": "running", "metrics": {}}) == 17.0


@pytest.mark.usefixtures("impatient")
def test_chunks_of_a_frozen_worker_are_made_by_others(toy: Path, cluster: DaskCluster, tmp_path: Path) -> None:
    told: list[Any] = []

    def listen(event: Event) -> None:
        if event.kind == "worker":
            told.append(event.data["state"])
        if event.kind == "chunk" and event.done == 4:
            cluster.workers[0].send_signal(signal.SIGSTOP)

    summary = start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor=cluster.address, listener=listen)
    assert summary.exit_status == 0
    assert "lost" in told
    assert file_digests(tmp_path / "run") == file_digests(toy / "golden")


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_thaws_is_taken_in_again(toy: Path, cluster: DaskCluster, tmp_path: Path) -> None:
    told: list[Any] = []

    def listen(event: Event) -> None:
        if event.kind == "worker":
            told.append(event.data["state"])
            if event.data["state"] == "lost":
                cluster.workers[0].send_signal(signal.SIGCONT)
        if event.kind == "chunk" and event.done == 4:
            for worker in cluster.workers:  # nobody is left who could end the run without it
                worker.send_signal(signal.SIGSTOP)

    summary = start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor=cluster.address, listener=listen)
    assert summary.exit_status == 0
    assert "joined" in told[told.index("lost") :]
    assert file_digests(tmp_path / "run") == file_digests(toy / "golden")


@pytest.mark.usefixtures("impatient")
def test_a_run_does_not_begin_with_a_worker_that_tells_no_versions(cluster: DaskCluster) -> None:
    cluster.workers[1].send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"cluster-unreachable.*w1 was last heard of \d+ s before") as found:
        make_executor(ClusterSpec(kind=cluster.address)).__enter__()
    assert found.value.exit_status == 4
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("impatient")
def test_a_frozen_worker_does_not_keep_the_others_from_forgetting(cluster: DaskCluster) -> None:
    with make_executor(ClusterSpec(kind=cluster.address)) as executor:
        cluster.workers[1].send_signal(signal.SIGSTOP)
        executor.everywhere(os.getpid)
        answers = executor.on_each_worker(os.getpid, timeout_s=3.0)
    assert isinstance(answers["w1"], TimeoutError)
    assert isinstance(answers["w0"], int)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_scheduler_is_a_lost_cluster(cluster: DaskCluster) -> None:
    with make_executor(ClusterSpec(kind=cluster.address)) as executor:
        cluster.scheduler.send_signal(signal.SIGSTOP)
        with pytest.raises(ResourceError, match="cluster-lost"):
            _ = executor.width


@pytest.mark.usefixtures("impatient")
def test_a_frozen_process_of_our_own_is_left_behind_by_nobody(toy: Path, tmp_path: Path) -> None:
    frozen: list[psutil.Process] = []

    def listen(event: Event) -> None:
        if event.kind == "chunk" and event.done == 4:
            workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
            frozen.append(workers[0])
            workers[0].suspend()

    summary = start_run(load_pipeline(toy / "pipeline.toml"), tmp_path / "run", executor="local:2", listener=listen)
    assert summary.exit_status == 0
    assert file_digests(tmp_path / "run") == file_digests(toy / "golden")
    assert not frozen[0].is_running()
