"""Who computes chunks: this thread, or the workers of a Dask scheduler. dask is imported nowhere else.

An executor takes light tasks in groups of neighbours, keeps a bounded number in flight, and yields outcomes as they come.
It never orders, never holds results. One module for each kind of cluster; the table below is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol

from eo_batch.core.clusters import ClusterSpec
from eo_batch.run.executors.address import AddressExecutor
from eo_batch.run.executors.batch import BatchExecutor
from eo_batch.run.executors.dealing import Group, Task
from eo_batch.run.executors.dispatch import Again, Tell
from eo_batch.run.executors.gpus import GpuExecutor
from eo_batch.run.executors.kubernetes import KubernetesExecutor
from eo_batch.run.executors.local import ProcessExecutor, ThreadExecutor
from eo_batch.run.executors.pool import Say, silence
from eo_batch.run.executors.serial import SerialExecutor

__all__ = ["Again", "Executor", "Group", "Outcome", "Task", "Tell", "make_executor"]

Outcome = tuple[Task, Any]
"""(arguments, result or exception); before it, an `Again` for each worker that was lost with the task."""


class Executor(Protocol):
    """A context manager that runs a function over many argument tuples."""

    @property
    def width(self) -> int:
        """Tasks that are computed at once."""
        ...

    @property
    def processes(self) -> int:
        """Processes that compute: chunks of one process share what they have in memory."""
        ...

    @property
    def in_process(self) -> bool:
        """Tasks run in this process."""
        ...

    @property
    def dashboard(self) -> str:
        """Address of a page that shows the work, or ""."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know of the cluster."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def outcomes(
        self, work: Callable[..., Any], groups: Iterable[Group], *, stop: threading.Event, tell: Tell
    ) -> Iterator[Outcome]:
        """Outcome of every task, in any order; takes tasks only as fast as they are finished, and none after `stop` is set.

        A task that is begun again, because its worker was lost, is called with `attempt=` 2, 3, ... beside its arguments.

        Parameters
        ----------
        tell : told of workers that come and go.

        Raises
        ------
        ResourceError : `cluster-lost`: nothing is computed any more; what was finished has been yielded.
        """
        ...

    def on_each_worker(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> dict[str, Any]:
        """What `function` gives, or the exception it raises, in each process that computes.

        Waits for those that are still to come as long as the cluster may take to start.

        Returns
        -------
        Name of a worker -> result. TimeoutError for a worker that is gone, or does not answer in time.
        """
        ...

    def everywhere(self, function: Callable[[], Any]) -> None:
        """Call `function` once in each process that computes and is there now."""
        ...


def make_executor(cluster: ClusterSpec, *, say: Say = silence) -> Executor:
    """Executor of a cluster; nothing starts before it is entered.

    Parameters
    ----------
    say : told, in words, what is waited for.
    """
    kind, _, argument = cluster.kind.partition(":")
    if kind in ("tcp", "tls"):
        return AddressExecutor(cluster, say)
    if kind == "local" and argument:
        return ProcessExecutor(cluster, say)
    kinds: dict[str, Callable[[ClusterSpec, Say], Executor]] = {
        "serial": SerialExecutor,
        "local": ThreadExecutor,
        "gpus": GpuExecutor,
        "slurm": BatchExecutor,
        "pbs": BatchExecutor,
        "kubernetes": KubernetesExecutor,
    }
    return kinds[kind](cluster, say)
