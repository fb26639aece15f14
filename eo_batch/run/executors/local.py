"""Workers on this machine: threads of this process, or processes of their own."""

from __future__ import annotations

import logging
import os
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.run.executors.pool import LOOPBACK, PoolExecutor


class ThreadExecutor(PoolExecutor):
    """A Dask scheduler and its worker threads inside this process; the dashboard listens on loopback only."""

    in_process = True

    def __init__(self, cluster: ClusterSpec) -> None:
        super().__init__()
        self._threads = cluster.workers or os.cpu_count() or 1

    def _open(self) -> Any:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=self._threads,
            memory_limit=0,
            dashboard_address=LOOPBACK,
            worker_dashboard_address=LOOPBACK,  # left out, the worker's own pages listen on every interface
            silence_logs=logging.ERROR,
        )
        return Client(cluster, set_as_default=False)


class ProcessExecutor(PoolExecutor):
    """A Dask scheduler in this process and `local:N` worker processes beside it, all on loopback."""

    def __init__(self, cluster: ClusterSpec) -> None:
        super().__init__()
        self._cluster = cluster

    def _open(self) -> Any:
        from distributed import Client, LocalCluster

        memory_gb = self._cluster.memory_gb
        cluster = LocalCluster(
            processes=True,
            n_workers=int(self._cluster.kind.partition(":")[2]),
            threads_per_worker=self._cluster.threads or 1,
            memory_limit=0 if memory_gb is None else int(memory_gb * 1e9),
            dashboard_address=LOOPBACK,
            worker_dashboard_address=LOOPBACK,
            silence_logs=logging.ERROR,
        )
        return Client(cluster, set_as_default=False)
