"""Executors keep a bounded number of tasks in flight, report every outcome, and survive their workers."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from servers.dask_cluster import DaskCluster, dask_cluster
from workerwork import double, ends_its_worker_at_7, lasts_in_score, nothing, surroundings, waits_for

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.executors import Executor, address, dispatch, make_executor, scheduler
from eo_batch.run.executors.address import is_loopback
from eo_batch.run.executors.versions import check_versions
from eo_batch.run.executors.worker import STAGES
from eo_batch.run.gpus import gpu_names

PAIRS = [[(i,), (i + 1,)] for i in range(0, 40, 2)]


def silent(worker: str, state: str) -> None:
    """Nobody is told."""


def outcomes_of(pool: Executor, work, groups, tell=silent) -> dict:
    return dict(pool.outcomes(work, groups, stop=threading.Event(), tell=tell))


@pytest.fixture(scope="module", params=["serial", "local", "local:2"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with make_executor(ClusterSpec(kind=request.param, workers=2)) as pool:
        yield pool


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    with dask_cluster(tmp_path / "dask", workers=1) as cluster:
        yield cluster


def test_dask_prints_nothing_of_its_own_while_a_pool_is_open() -> None:
    names = ("distributed.client", "distributed.scheduler", "asyncio")
    pytest.importorskip("distributed")  # sets levels when it is imported
    before = [logging.getLogger(name).getEffectiveLevel() for name in names]
    with make_executor(ClusterSpec(workers=1)):
        assert not any(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in names)
    assert [logging.getLogger(name).getEffectiveLevel() for name in names] == before


def test_every_task_has_one_outcome(pool: Executor) -> None:
    outcomes = outcomes_of(pool, double, PAIRS)
    assert len(outcomes) == 40
    assert isinstance(outcomes.pop((13,)), ValueError)
    assert all(result == 2 * task[0] for task, result in outcomes.items())


def test_tasks_are_taken_only_as_fast_as_they_finish(pool: Executor) -> None:
    taken = 0

    def tasks():
        nonlocal taken
        for i in range(100, 160):
            taken += 1
            yield [(i,)]

    for finished, _ in enumerate(pool.outcomes(double, tasks(), stop=threading.Event(), tell=silent), 1):
        assert taken - finished <= 2 * pool.width
    assert taken == 60


def test_after_a_stop_no_task_is_begun(pool: Executor) -> None:
    stop, finished = threading.Event(), []
    for task, _ in pool.outcomes(double, ([(i,)] for i in range(100, 160)), stop=stop, tell=silent):
        finished.append(task)
        stop.set()
    assert 1 <= len(finished) <= pool.width + 1


def test_results_that_are_slow_to_come_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "ASIDE_S", 0.001)
    with make_executor(ClusterSpec(kind="local", workers=4)) as pool:
        found = outcomes_of(pool, double, [[(2 * i,)] for i in range(200)])
    assert found == {(2 * i,): 4 * i for i in range(200)}


def test_a_run_goes_on_whatever_others_write_on_topics_of_its_scheduler() -> None:
    with make_executor(ClusterSpec(workers=2)) as pool:
        finished = 0
        for _ in pool.outcomes(double, PAIRS, stop=threading.Event(), tell=silent):
            for fact in ("text", {"action": "remove-worker"}, {"key": 1}):
                pool._client.log_event(["all", STAGES], fact)  # type: ignore[attr-defined]
            finished += 1
    assert finished == 40


def test_a_client_that_has_closed_itself_is_a_lost_cluster() -> None:
    with make_executor(ClusterSpec(workers=2)) as pool:
        outcomes = pool.outcomes(double, PAIRS, stop=threading.Event(), tell=silent)
        next(outcomes)
        pool._client.close()  # type: ignore[attr-defined]  # as it does where a scheduler stays away
        with pytest.raises(ResourceError, match="cluster-lost"):
            list(outcomes)
        with pytest.raises(ResourceError, match="cluster-lost"):
            _ = pool.width


def test_a_client_that_is_closing_itself_is_a_lost_cluster() -> None:
    with make_executor(ClusterSpec(workers=2)) as pool:
        pool._client.sync(pool._client.rpc.close)  # type: ignore[attr-defined]  # the first that goes
        with pytest.raises(ResourceError, match="cluster-lost"):
            _ = pool.width


def test_a_function_runs_once_in_every_process(pool: Executor, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    pool.everywhere(lambda: marks.open("a").write("x") and None)
    assert marks.read_text() == "x" * (1 if pool.in_process else 2)


def test_a_scheduler_knows_only_what_is_in_flight() -> None:
    with make_executor(ClusterSpec(workers=2)) as pool:
        scheduler = pool._client.cluster.scheduler  # type: ignore[attr-defined]
        most = 0
        for _ in pool.outcomes(nothing, ([(i, k) for k in range(10)] for i in range(150)), stop=threading.Event(), tell=silent):
            most = max(most, len(scheduler.tasks))
        assert 0 < most <= 8 * pool.width
        assert len(scheduler.task_groups) <= 1
        assert len(scheduler.task_prefixes) <= 1
        assert not any(span.metadata for span in scheduler.extensions["spans"].spans.values())  # Dask adds to it at each task


def test_a_scheduler_is_told_once_of_a_stage_that_lasts_and_never_of_one_that_does_not() -> None:
    with make_executor(ClusterSpec(kind="local:1")) as pool:
        assert outcomes_of(pool, lasts_in_score, [[(1,), (2,)]]) == {(1,): None, (2,): None}
        told = pool._client.get_events(STAGES)  # type: ignore[attr-defined]
    assert [event["stage"] for _, event in told] == ["score", "score"]


@pytest.mark.parametrize("kind", ["local", "local:2"])
def test_what_waits_at_a_worker_is_not_begun_after_a_stop(kind: str, tmp_path: Path) -> None:
    stop, go = threading.Event(), tmp_path / "go"
    with make_executor(ClusterSpec(kind=kind, workers=2)) as pool:
        workers = pool._client  # type: ignore[attr-defined]

        def free_when_taken_back() -> None:
            while len(list(tmp_path.glob("go.begun*"))) < 2:
                stop.wait(0.02)
            stop.set()
            for _ in range(500):  # as often as patience lasts
                if sum(len(keys) for keys in workers.processing().values()) == 2:
                    break
                threading.Event().wait(0.02)
            go.touch()

        thread = threading.Thread(target=free_when_taken_back)
        thread.start()
        outcomes = list(pool.outcomes(waits_for, [[(i, str(go))] for i in range(9)], stop=stop, tell=silent))
        thread.join()
    assert len(outcomes) == 2
    assert len(list(tmp_path.glob("go.begun*"))) == 2


@pytest.mark.parametrize("kind", ["local", "local:1"])
def test_only_loopback_listens_while_a_run_computes(kind: str) -> None:
    process = psutil.Process()
    before = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    with make_executor(ClusterSpec(kind=kind, workers=2)) as pool:
        outcomes_of(pool, double, [[(1,)]])
        family = [process, *process.children(recursive=True)]
        found = {c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert found - before
    assert all(address.ip in ("127.0.0.1", "::1") for address in found - before), found


def test_a_stranger_on_the_same_machine_cannot_reach_our_scheduler() -> None:
    with make_executor(ClusterSpec(kind="local:1")) as pool:
        scheduler = pool._client.cluster.scheduler_address  # type: ignore[attr-defined]
        assert scheduler.startswith("tls://127.0.0.1:")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", int(scheduler.rpartition(":")[2])), timeout=30) as plain:
            assert not is_let_in(context, plain)


def is_let_in(context: ssl.SSLContext, plain: socket.socket) -> bool:
    try:
        with context.wrap_socket(plain) as stranger:
            return bool(stranger.recv(1))
    except OSError:
        return False


def test_a_task_that_ends_every_worker_is_given_up_and_the_others_are_done() -> None:
    told: list[str] = []
    with make_executor(ClusterSpec(kind="local:2")) as pool:
        outcomes = outcomes_of(pool, ends_its_worker_at_7, PAIRS[2:7], lambda worker, state: told.append(state))
    lost = outcomes.pop((7,))
    assert isinstance(lost, ResourceError)
    assert lost.code == "worker-lost"
    assert "ended 4 workers" in str(lost)
    assert len(outcomes) == 9
    assert set(outcomes.values()) <= {1, 2}  # nobody was beside it twice
    assert told.count("lost") == 4


def test_workers_that_come_later_get_work(cluster: DaskCluster, tmp_path: Path) -> None:
    go, told = tmp_path / "go", []
    groups = [[(i, str(go))] for i in range(6)]

    def tell(worker: str, state: str) -> None:
        told.append(state)

    with make_executor(ClusterSpec(kind=cluster.address)) as pool:
        later = threading.Thread(target=cluster.add_worker)
        later.start()
        release = threading.Thread(target=lambda: (later.join(), go.touch()))
        release.start()
        outcomes = outcomes_of(pool, waits_for, groups, tell)
        release.join()
    assert told == ["joined", "joined"]
    assert len(outcomes) == 6


def test_a_worker_that_is_asked_to_leave_takes_the_blame_with_it(cluster: DaskCluster, tmp_path: Path) -> None:
    go, told = tmp_path / "go", []
    cluster.add_worker()

    def preempt() -> None:
        while len(list(tmp_path.glob("go.begun*"))) < 2:
            threading.Event().wait(0.02)
        cluster.workers[0].terminate()
        cluster.workers[0].wait(timeout=60)
        go.touch()

    with make_executor(ClusterSpec(kind=cluster.address)) as pool:
        thread = threading.Thread(target=preempt)
        thread.start()
        outcomes = outcomes_of(pool, waits_for, [[(i, str(go)) for i in range(6)]], lambda worker, state: told.append(state))
        thread.join()
    assert set(outcomes.values()) == set(range(6))
    assert told.count("lost") == 1


def test_a_killed_scheduler_is_noticed(cluster: DaskCluster, tmp_path: Path) -> None:
    with make_executor(ClusterSpec(kind=cluster.address)) as pool:
        outcomes = pool.outcomes(double, ([(i,)] for i in range(100, 10_000)), stop=threading.Event(), tell=silent)
        next(outcomes)
        cluster.scheduler.kill()
        with pytest.raises(ResourceError, match="cluster-lost") as found:
            list(outcomes)
    assert found.value.exit_status == 4


def test_a_scheduler_that_has_stopped_answering_is_noticed(
    cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "QUIET_S", 0.5)
    monkeypatch.setattr(scheduler, "ANSWER_S", 1.0)
    with make_executor(ClusterSpec(kind=cluster.address)) as pool:
        outcomes = pool.outcomes(waits_for, [[(1, str(tmp_path / "never"))]], stop=threading.Event(), tell=silent)
        stopper = threading.Timer(0.5, cluster.scheduler.send_signal, [signal.SIGSTOP])
        stopper.start()
        with pytest.raises(ResourceError, match="cluster-lost"):
            list(outcomes)
        stopper.join()
        cluster.scheduler.send_signal(signal.SIGCONT)


def test_where_no_scheduler_listens_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with (
        pytest.raises(ResourceError, match="cluster-unreachable") as found,
        make_executor(ClusterSpec(kind=f"tcp://127.0.0.1:{port}")),
    ):
        pass
    assert found.value.exit_status == 4


def test_a_cluster_that_is_not_encrypted_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "CONNECT_S", 0.2)
    pool = make_executor(ClusterSpec(kind="tcp://192.0.2.1:8786"))
    with pytest.raises(ResourceError, match="cluster-unreachable"), pool:
        pass
    assert any("cluster tcp://192.0.2.1:8786 is not encrypted" in note for note in pool.notes)


def test_where_no_worker_comes_it_is_said(tmp_path: Path) -> None:
    with (
        dask_cluster(tmp_path / "dask") as cluster,
        pytest.raises(ResourceError, match=r"no worker came in 0\.2 s.*start_timeout_s"),
        make_executor(ClusterSpec(kind=cluster.address, start_timeout_s=0.2)),
    ):
        pass


def test_workers_with_other_software_are_refused() -> None:
    class Versions:
        _get_versions = None

        def sync(self, question: None, *, packages: list[str], callback_timeout: float) -> dict:
            here = {"python": "3.11.7.final.0", "numpy": "2.4.6", "torch": "2.13.0+cpu"}
            same = {**here, "python": "3.11.9.final.0", "torch": "2.13.0+cu128"}
            other = {**here, "numpy": "2.3.0"}
            workers = {"tcp://a": {"packages": same}, "tcp://b": {"packages": other}}
            return {"client": {"packages": here}, "workers": workers}

    with pytest.raises(ResourceError, match=r"cluster-versions.*numpy 2\.4\.6 here, 2\.3\.0 on a worker\. Install"):
        check_versions(Versions())


@pytest.mark.parametrize(
    ("where", "loopback"),
    [("tcp://127.0.0.1:8786", True), ("tcp://[::1]:1", True), ("tcp://localhost:1", True), ("tcp://10.0.0.7:8786", False)],
)
def test_loopback_is_told_from_other_machines(where: str, loopback: bool) -> None:
    assert is_loopback(where) == loopback


def test_each_gpu_has_a_process_that_sees_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-7f")
    with make_executor(ClusterSpec(kind="gpus")) as pool:
        assert pool.width == 6
        found = dict(outcomes_of(pool, surroundings, [[(i,)] for i in range(12)]).values())
    assert sorted(environment["CUDA_VISIBLE_DEVICES"] for environment in found.values()) == ["0", "GPU-7f"]
    threads = {environment[name] for environment in found.values() for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    assert threads == {"1"}


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_without_a_gpu_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    with pytest.raises(ResourceError, match="no-gpu.*--cluster local"):
        gpu_names()


def test_an_unknown_cluster_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match='unknown cluster "moon".*local, serial'):
        choose_cluster(ClusterSpec(), "moon", None)
