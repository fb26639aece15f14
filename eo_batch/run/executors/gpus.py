"""One worker process for each GPU of this machine; each of them sees its own GPU alone."""

from __future__ import annotations

from typing import Any

from eo_batch.run.crew import crew_of
from eo_batch.run.executors.local import open_processes
from eo_batch.run.executors.pool import PoolExecutor
from eo_batch.run.gpus import gpu_names


class GpuExecutor(PoolExecutor):
    """A Dask scheduler in this process and a worker process per GPU, on loopback and encrypted."""

    def _open(self) -> Any:
        names = gpu_names()[: self._cluster.workers]
        environments = [{"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} for name in names]
        return open_processes(self._cluster, environments, threads=crew_of(self._cluster).threads)
