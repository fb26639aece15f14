"""Workers on this machine: threads of this process, or processes of their own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.core.hrefs import redact
from eo_batch.run.crew import crew_of
from eo_batch.run.executors.pool import LOOPBACK, PoolExecutor

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""A network that adds up in one thread gives the same masks whatever else the machine does."""
PRELOAD = "eo_batch.run.executors.worker"
LEAN = {
    "distributed.worker.profile.enabled": False,  # a hundred looks a second at every thread, kept for an hour
    "distributed.scheduler.work-stealing": False,  # tasks are pinned
}
"""Settings of Dask for clusters that live for one sitting."""


class ThreadExecutor(PoolExecutor):
    """A Dask scheduler and its worker threads inside this process; the dashboard listens on loopback only."""

    in_process = True

    def _open(self) -> Any:
        import dask
        from distributed import Client, LocalCluster

        with dask.config.set(LEAN):
            cluster = LocalCluster(
                processes=False,
                n_workers=1,
                threads_per_worker=crew_of(self._cluster).threads,
                memory_limit=0,
                dashboard_address=LOOPBACK,
                worker_dashboard_address=LOOPBACK,  # left out, the worker's own pages listen on every interface
                silence_logs=logging.CRITICAL,
            )
        return Client(cluster, set_as_default=False)


class ProcessExecutor(PoolExecutor):
    """A Dask scheduler in this process and `local:N` worker processes beside it, on loopback and encrypted."""

    def _open(self) -> Any:
        crew = crew_of(self._cluster)
        return open_processes(self._cluster, [{}] * crew.processes, threads=crew.threads)


def open_processes(cluster: ClusterSpec, environments: list[dict[str, str]], *, threads: int) -> Any:
    """Client of a new scheduler with one worker process on this machine for each of `environments`.

    Everything between the processes is encrypted, and only who has this sitting's key is let in: whoever reaches a Dask
    scheduler can run code as its user, and loopback is shared by all users of a machine.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, Security, SpecCluster

    security = Security.temporary()
    memory = 0 if cluster.memory_gb is None else int(cluster.memory_gb * 1e9)
    common: dict[str, Any] = {
        "nthreads": threads,
        "memory_limit": memory,
        "host": "127.0.0.1",
        "protocol": "tls",
        "security": security,
        "dashboard_address": LOOPBACK,  # left out, a worker's own pages listen on every interface
        "preload": [PRELOAD],
        "silence_logs": logging.CRITICAL,
    }
    workers: dict[int, Mapping[str, Any]] = {
        index: {"cls": Nanny, "options": {**common, **({"resources": {"GPU": 1}} if extra else {}), "env": extra}}
        for index, extra in enumerate(environments)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "protocol": "tls", "security": security, "dashboard_address": LOOPBACK},
    }
    with dask.config.set({**LEAN, "distributed.nanny.pre-spawn-environ": dict.fromkeys(ONE_THREAD, "1")}):
        try:
            spec = SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)
        except RuntimeError as error:  # killed, or out of memory, before it could say that it is there
            fix = "Give it more memory or fewer workers, then continue with `eo-batch resume RUN`."
            fix += ' A script that starts a run has to do so under `if __name__ == "__main__":`.'
            why = redact(error)
            raise ResourceError("cluster-lost", "a worker process ended while it started", why=why, fix=fix) from None
    return Client(spec, set_as_default=False)
