"""Workers that a batch system starts: one job of SLURM or PBS for each, asked for through dask-jobqueue.

The scheduler lives in this process. Everything between it and the workers is encrypted with keys made for this one sitting, and
only who has them is let in. Workers end themselves before their walltime does, and lost ones are asked for again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.core.hrefs import redact
from eo_batch.run.executors.dealing import Task
from eo_batch.run.executors.local import ONE_THREAD, PRELOAD
from eo_batch.run.executors.pool import CLOSE_S, LOOPBACK, PoolExecutor
from eo_batch.run.executors.queued import COMMANDS, REFUSALS, Replacements, ask_for, states_of, states_told, what_was_said


class BatchExecutor(PoolExecutor):
    """A Dask scheduler in this process, and a worker in each of `workers` jobs; all of it ends with this executor."""

    def _open(self) -> Any:
        from distributed import Client

        spec = self._cluster
        make = library(spec)
        with ExitStack() as begun:
            try:
                security = begun.enter_context(keys_in(os.path.expanduser(spec.batch.shared_folder)))
                listens = {**_listening(spec), "dashboard_address": LOOPBACK}
                options = {"scheduler_options": listens, "security": security, "silence_logs": "critical"}
                cluster = make(**job_options(spec), **options, name="eo-batch")
            except (OSError, ValueError, RuntimeError) as error:
                fix = "Check interface, shared_folder and log_folder in [cluster.batch]."
                what = "the cluster cannot be opened"
                raise ConfigError("config-invalid", what, where=f"cluster {spec.kind}", why=redact(error), fix=fix) from None
            begun.callback(cluster.close, timeout=CLOSE_S)
            try:
                cluster.sync(ask_for, cluster, spec.workers or 1)
            except REFUSALS as error:
                raise _refused(spec, error) from None
            client = Client(cluster, set_as_default=False)
            self._begun = begun.pop_all()
        self._replacements = Replacements(cluster, spec, spec.workers or 1)
        self._replacements.start()
        return client

    def __exit__(self, *exc: Any) -> None:
        self._replacements.stop()
        super().__exit__(*exc)
        self._begun.close()

    def outcomes(self, work: Callable[..., Any], groups: Iterable[Any], **options: Any) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`."""
        try:
            for outcome in super().outcomes(work, groups, **options):
                self._tell_of_the_queue()
                yield outcome
        except ResourceError as error:
            lost_hope = self._replacements.lost_hope
            if error.code != "cluster-lost" or lost_hope is None:
                raise
            why = f"{error.why}; {lost_hope.what}: {lost_hope.why}"
            raise ResourceError(error.code, error.what, where=lost_hope.where, why=why, fix=lost_hope.fix) from None

    def _while_waiting(self) -> None:
        self._tell_of_the_queue()
        if self._replacements.lost_hope is not None:
            raise self._replacements.lost_hope

    def _tell_of_the_queue(self) -> None:
        for note in self._replacements.notes():
            self._say(note)

    def _why_none(self) -> str:
        kind, numbers = self._cluster.kind, {job.job_id for job in list(self._client.cluster.workers.values())}
        try:
            states = states_of(kind)
        except (OSError, subprocess.SubprocessError) as error:
            return f"{COMMANDS[kind][0]} does not answer ({type(error).__name__})"
        said = states_told({number: state for number, state in states.items() if number in numbers})
        return f"jobs: {said}" if said else "the jobs have ended without a worker: set log_folder to see why"


@contextmanager
def keys_in(folder: str) -> Iterator[Any]:
    """Keys for the connections of one sitting, as files that only this user can read: workers find them by path.

    Raises
    ------
    OSError : `folder` cannot be written.
    """
    from distributed import Security

    made = Security.temporary()
    with TemporaryDirectory(prefix=".eo-batch-keys-", dir=folder) as name:
        for key in ("ca_file", "client_key", "client_cert"):
            place = os.open(f"{name}/{key}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(place, "w", encoding="ascii") as file:
                file.write(getattr(made, f"tls_{key}"))
        both = {"key": f"{name}/client_key.pem", "cert": f"{name}/client_cert.pem"}
        roles = {f"tls_{role}_{kind}": path for role in ("scheduler", "worker", "client") for kind, path in both.items()}
        yield Security(require_encryption=True, tls_ca_file=f"{name}/ca_file.pem", **roles)


def library(spec: ClusterSpec) -> Any:
    """The class of dask-jobqueue for this kind of cluster.

    Raises
    ------
    ConfigError : `config-invalid`: it is not installed.
    """
    try:
        from dask_jobqueue import PBSCluster, SLURMCluster
    except ImportError:
        fix = 'Run: pip install "eo-batch[cluster]"'
        raise ConfigError("config-invalid", f'cluster "{spec.kind}" needs dask-jobqueue', why="not installed", fix=fix) from None
    return {"slurm": SLURMCluster, "pbs": PBSCluster}[spec.kind]


def job_options(spec: ClusterSpec) -> dict[str, Any]:
    """What each job is asked with, as dask-jobqueue takes it.

    Every text is one line and comes from a pattern that means nothing to a shell (`core/clusters`), or is quoted here;
    `setup` alone is shell on purpose, and can stand in a file of clusters/ only.
    """
    batch = spec.batch
    cores = batch.cores or spec.asked_threads
    options: dict[str, Any] = {
        "cores": spec.asked_threads,
        "processes": 1,
        "memory": f"{int(spec.asked_gb * 1e9)}B",
        "nanny": True,
        "job_name": "eo-batch",
        "queue": batch.queue,
        "account": batch.account,
        "walltime": batch.walltime,
        "interface": batch.interface,
        "python": shlex.quote(sys.executable),
        "worker_command": "distributed.cli.dask_worker",
        "worker_extra_args": worker_arguments(batch.walltime_s),
        "job_script_prologue": [*(f"export {name}=1" for name in ONE_THREAD), *batch.setup],
        "log_directory": None if batch.log_folder is None else os.path.expanduser(batch.log_folder),
        "death_timeout": 120,
        "local_directory": None,
        "shebang": "#!/usr/bin/env bash",
        "job_directives_skip": [],
    }
    dropped = [] if batch.log_folder else ["-o /dev/null", "-e /dev/null"]
    if spec.kind == "slurm":
        gpus = [f"--gres=gpu:{batch.gpus}"] if batch.gpus else []
        return {**options, "job_cpu": cores, "job_extra_directives": [*dropped, *gpus, *batch.directives]}
    megabytes = -(-int(spec.asked_gb * 1e9) // 2**20)
    resources = f"select=1:ncpus={cores}:mem={megabytes}MB" + (f":ngpus={batch.gpus}" if batch.gpus else "")
    return {**options, "resource_spec": resources, "job_extra_directives": [*dropped, *batch.directives]}


def worker_arguments(walltime_s: int) -> list[str]:
    """Arguments of a worker that ends by itself, at a time of its own, before its job is ended."""
    margin = min(600, walltime_s // 5)
    lifetime = ["--lifetime", f"{walltime_s - margin}s", "--lifetime-stagger", f"{margin // 2}s"]
    return [*lifetime, "--no-dashboard", "--dashboard-address", LOOPBACK, "--preload", PRELOAD]


def _listening(spec: ClusterSpec) -> dict[str, str]:
    """Where the scheduler listens: on one address, never on all."""
    from distributed.utils import get_ip

    return {"interface": spec.batch.interface} if spec.batch.interface else {"host": get_ip()}


def _refused(spec: ClusterSpec, error: BaseException) -> Exception:
    """What the batch system said when it was asked."""
    if isinstance(error, FileNotFoundError):
        command = Path(str(error.filename or "")).name
        fix = "Run this where jobs are submitted, or choose another --cluster."
        return ConfigError("config-invalid", f"there is no command `{command}` here", where=f"cluster {spec.kind}", fix=fix)
    fix = "Check [cluster.batch] against what the system allows."
    return ConfigError(
        "config-invalid", "the batch system refuses the jobs", where=f"cluster {spec.kind}", why=what_was_said(error), fix=fix
    )
