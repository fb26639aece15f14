"""A real SLURM on loopback, which understands PBS, too: the same run as in one process, whatever becomes of its jobs."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import dask
import psutil
import pytest
from rundigest import file_digests
from servers.slurm import Slurm, missing, run_slurm, wait_until
from toy import make_toy, toy_pipeline

from eo_batch.core.clusters import BatchSpec, ClusterSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.run.driver import start_run
from eo_batch.run.executors import Executor, make_executor, queued
from eo_batch.run.request import Request, load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.worker_check import check_workers

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
CLUSTER = """
[cluster]
kind = "slurm"
workers = 2
memory_gb = 2
start_timeout_s = 120
[cluster.batch]
interface = "lo"
shared_folder = "{folder}"
log_folder = "{folder}/logs"
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    # A folder with a short path: that of a socket has 107 characters at most.
    with (
        TemporaryDirectory(prefix="slurm-") as name,
        run_slurm(Path(name) / "slurm") as running,
        pytest.MonkeyPatch.context() as to,
    ):
        for key, value in running.environment.items():
            to.setenv(key, value)
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
            yield running


@pytest.fixture(scope="module")
def pool(slurm: Slurm) -> Iterator[Executor]:
    with make_executor(spec(slurm)) as opened:
        yield opened


@pytest.fixture(scope="module")
def request_and_truth(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> tuple[Request, dict[str, str]]:
    folder = tmp_path_factory.mktemp("slurm")
    pipeline = make_toy(folder, dates=1, size=250)
    pipeline.write_text(toy_pipeline(size=250, chunk_px=64, step="month"))
    (folder / "clusters").mkdir()
    (folder / "clusters" / "loopback.toml").write_text(CLUSTER.format(folder=slurm.folder.parent))
    request = load_pipeline(pipeline)
    start_run(request, folder / "serial", executor="serial")
    return request, file_digests(folder / "serial")


def spec(slurm: Slurm, **settings: object) -> ClusterSpec:
    batch = {"interface": "lo", "shared_folder": str(slurm.folder.parent), **settings.pop("batch", {})}
    return ClusterSpec(kind="slurm", memory_gb=1, batch=BatchSpec(**batch), **{"start_timeout_s": 120, **settings})


def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the queue more often than one should."""
    monkeypatch.setattr(queued, "ASK_EVERY_S", 0.3)
    monkeypatch.setattr(queued, "LOOK_EVERY_S", 0.3)


def test_jobs_of_slurm_make_the_same_run_as_one_process(
    slurm: Slurm, request_and_truth: tuple[Request, dict[str, str]], tmp_path: Path
) -> None:
    request, truth = request_and_truth
    summary = start_run(request, tmp_path / "run", executor="loopback")
    assert summary.complete
    assert file_digests(tmp_path / "run") == truth
    wait_until(lambda: not slurm.jobs("PD,R"), "jobs are left")
    assert not [path for path in slurm.folder.parent.iterdir() if "keys" in path.name]


@pytest.mark.skipif(shutil.which("qsub") is None, reason="not installed: qsub (Debian: slurm-wlm-torque)")
def test_jobs_asked_for_by_the_commands_of_pbs_make_the_same_run(
    slurm: Slurm, request_and_truth: tuple[Request, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, truth = request_and_truth
    monkeypatch.chdir(tmp_path)  # where this qsub has jobs write, whatever the script says
    asked = CLUSTER.format(folder=slurm.folder.parent).replace('"slurm"', '"pbs"')
    (request.folder / "clusters" / "by_qsub.toml").write_text(asked)
    assert start_run(request, tmp_path / "run", executor="by_qsub").complete
    assert file_digests(tmp_path / "run") == truth
    wait_until(lambda: not slurm.jobs("PD,R"), "qdel has left jobs")


def test_a_job_that_is_cancelled_costs_nothing_but_time(
    slurm: Slurm, request_and_truth: tuple[Request, dict[str, str]], tmp_path: Path
) -> None:
    request, truth = request_and_truth
    states: list[str] = []
    cancelled: list[str] = []

    def listen(event: Event) -> None:
        states.extend([event.data["state"]] if event.kind == "worker" else [])
        if event.kind == "chunk" and "joined" in states and len(states) == 1:
            wait_until(
                lambda: len(slurm.jobs()) == 2 and all(_has_come(slurm, job) for job in slurm.jobs()), "none of two has come"
            )
        elif event.kind == "chunk" and len(states) == 2 and not cancelled:
            cancelled.append(slurm.jobs()[0])
            slurm.command("scancel", cancelled[0])
            wait_until(lambda: cancelled[0] not in slurm.jobs("R,CG"), "the job goes on")

    summary = start_run(request, tmp_path / "run", executor="loopback", listener=listen)
    assert summary.complete
    assert file_digests(tmp_path / "run") == truth
    assert states[:3] == ["joined", "joined", "lost"]


def test_a_job_that_is_cancelled_in_the_queue_is_replaced(
    slurm: Slurm, request_and_truth: tuple[Request, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, truth = request_and_truth
    look_often(monkeypatch)
    said: list[str] = []
    slurm.command("scontrol", "update", "PartitionName=main", "State=DOWN")

    def cancel() -> None:
        wait_until(lambda: slurm.jobs("PD") != [], "nothing was asked for")
        slurm.command("scancel", *slurm.jobs("PD"))
        slurm.command("scontrol", "update", "PartitionName=main", "State=UP")

    with ThreadPoolExecutor(1) as aside:
        cancelled = aside.submit(cancel)
        run = {"executor": "loopback", "workers": 1, "listener": lambda event: said.append(event.text)}
        summary = start_run(request, tmp_path / "run", **run)
        cancelled.result()
    assert summary.complete
    assert file_digests(tmp_path / "run") == truth
    assert [text.partition(" (")[0] for text in said if "asking again" in text] == ["jobs that brought no worker: 1 CANCELLED"]


def test_jobs_that_end_at_once_are_given_up_with_what_their_log_says(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_often(monkeypatch)
    monkeypatch.setattr(queued, "GIVE_UP", 1)
    said: list[str] = []
    before = slurm.jobs("all")
    batch = {"setup": ["echo 'module: no such command' >&2", "exit 3"], "log_folder": str(tmp_path)}
    with (
        pytest.raises(ResourceError, match=r"cluster-unreachable: .*1 FAILED .NonZeroExitCode.*module: no such command.*setup"),
        make_executor(spec(slurm, batch=batch), say=said.append),
    ):
        pytest.fail("nobody can come")
    assert len([job for job in slurm.jobs("all") if job not in before]) == 2
    assert [text.partition(" (")[0] for text in said] == ["jobs that brought no worker: 1 FAILED"] * 2


def test_a_gpu_is_queued_for_and_one_worker_begins_alone(slurm: Slurm) -> None:
    with make_executor(spec(slurm, workers=2, batch={"gpus": 1})) as pool:
        names = [[("CUDA_VISIBLE_DEVICES",)], [("OMP_NUM_THREADS",)]]
        seen = dict(pool.outcomes(os.getenv, names, stop=threading.Event(), tell=lambda *_: None))
        waiting = slurm.jobs("PD")
    assert seen == {("CUDA_VISIBLE_DEVICES",): "0", ("OMP_NUM_THREADS",): "1"}
    assert len(waiting) == 1


def test_worker_check_shows_the_gpu_that_slurm_gave(slurm: Slurm, request_and_truth: tuple[Request, dict[str, str]]) -> None:
    (report,) = check_workers(request_and_truth[0], spec(slurm, workers=1, batch={"gpus": 1}))
    (wrong,) = [check for check in report.checks if check.status]
    assert (wrong.name, wrong.status) == ("gpu", 7)
    assert "torch sees none (CUDA_VISIBLE_DEVICES=0)" in wrong.text  # it is /dev/null


@pytest.mark.parametrize(
    ("batch", "settings", "kind", "text"),
    [
        ({"queue": "nowhere"}, {}, ConfigError, "refuses the jobs.*invalid partition"),
        ({"interface": "lo9"}, {}, ConfigError, "lo9.*not a valid network interface"),
        ({"shared_folder": "/nowhere"}, {}, ConfigError, "No such file.*shared_folder"),
        ({"directives": ["--begin=now+1hour"]}, {"start_timeout_s": 1}, ResourceError, "1 PENDING .BeginTime"),
    ],
)
def test_what_keeps_workers_away_is_said(
    slurm: Slurm, batch: dict[str, object], settings: dict[str, object], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text), make_executor(spec(slurm, batch=batch, **settings)):
        pytest.fail("nobody can come")
    assert not slurm.jobs("PD")


def test_only_loopback_listens(slurm: Slurm, pool: Executor) -> None:
    listening = [
        (process.name(), found.laddr.ip)
        for process in (psutil.Process(), *_processes_of(slurm))
        for found in process.net_connections("inet")
        if found.status == psutil.CONN_LISTEN
    ]
    assert pool.dashboard.startswith("http://127.0.0.1:")
    assert len(listening) > 5
    assert {ip for _, ip in listening} == {"127.0.0.1"}, listening


def test_a_lost_job_is_asked_for_again(slurm: Slurm, pool: Executor) -> None:
    (before,) = slurm.jobs()
    slurm.command("scancel", before)
    wait_until(lambda: slurm.jobs() not in ([], [before]), "no other job came")
    seen = dict(pool.outcomes(os.getenv, [[("SLURM_JOB_ID",)]], stop=threading.Event(), tell=lambda *_: None))
    assert seen == {("SLURM_JOB_ID",): slurm.jobs()[0]}


def _has_come(slurm: Slurm, job: str) -> bool:
    log = slurm.folder.parent / "logs" / f"eo-batch-{job}.err"
    return log.exists() and "Registered to" in log.read_text()


def _processes_of(slurm: Slurm) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_CONF") == slurm.environment["SLURM_CONF"] and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return found
