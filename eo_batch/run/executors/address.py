"""Workers of a Dask scheduler that somebody else has started."""

from __future__ import annotations

from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.run.executors.pool import PoolExecutor


class AddressExecutor(PoolExecutor):
    """A client of the scheduler at `tcp://` or `tls://`; the scheduler and its workers stay when it leaves."""

    def __init__(self, cluster: ClusterSpec) -> None:
        super().__init__()
        self._cluster = cluster

    def _open(self) -> Any:
        from distributed import Client

        client = Client(self._cluster.kind, set_as_default=False, timeout=30)
        client.wait_for_workers(1, timeout=self._cluster.start_timeout_s)
        return client
