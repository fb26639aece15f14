"""Executors keep a bounded number of tasks in flight and report every outcome."""

from __future__ import annotations

import threading

import psutil
import pytest

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.executors import make_executor


def silent(worker: str, state: str) -> None:
    """Nobody is told."""


def double(value: int) -> int:
    if value == 13:
        raise ValueError("unlucky")
    return 2 * value


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_every_task_has_one_outcome(kind: str) -> None:
    with make_executor(ClusterSpec(kind=kind, workers=2)) as pool:
        outcomes = dict(pool.outcomes(double, [[(i,)] for i in range(20)], stop=threading.Event(), tell=silent))
    assert len(outcomes) == 20
    assert isinstance(outcomes.pop((13,)), ValueError)
    assert all(result == 2 * task[0] for task, result in outcomes.items())


@pytest.mark.parametrize("kind", ["serial", "local"])
def test_tasks_are_taken_only_as_fast_as_they_finish(kind: str) -> None:
    taken = 0
    lock = threading.Lock()

    def tasks():
        nonlocal taken
        for i in range(100, 160):
            with lock:
                taken += 1
            yield [(i,)]

    with make_executor(ClusterSpec(kind=kind, workers=2)) as pool:
        for finished, _ in enumerate(pool.outcomes(double, tasks(), stop=threading.Event(), tell=silent), 1):
            with lock:
                assert taken - finished <= 2 * pool.width
    assert taken == 60


def test_only_loopback_listens_while_a_run_computes() -> None:
    process = psutil.Process()
    before = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    with make_executor(ClusterSpec(workers=2)) as pool:
        list(pool.outcomes(double, [[(1,)]], stop=threading.Event(), tell=silent))
        now = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN} - before
    assert all(address.ip in ("127.0.0.1", "::1") for address in now), now


def test_an_unknown_cluster_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match='unknown cluster "moon".*local, serial'):
        choose_cluster(ClusterSpec(), "moon", None)
