"""What all executors with a Dask scheduler share: a client, tasks dealt out to workers, and how it begins and ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.run.crew import crew_of
from eo_batch.run.executors.dealing import Task
from eo_batch.run.executors.dispatch import Dispatch, Tell

LOOPBACK = "127.0.0.1:0"
CLOSE_S = 10.0


class PoolExecutor:
    """Base of executors whose `_open` gives a Dask client; entering it begins, leaving it ends what it began."""

    in_process = False

    def __init__(self, cluster: ClusterSpec) -> None:
        self._cluster = cluster
        self._client: Any = None
        self.notes: tuple[str, ...] = ()

    def _open(self) -> Any:
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Tasks that are computed at once: threads of all workers that are there now."""
        return sum(self._client.nthreads().values()) or 1

    @property
    def processes(self) -> int:
        """See `Executor.processes`: workers that are there now, or will be."""
        return max(len(self._client.nthreads()), crew_of(self._cluster).processes)

    def __enter__(self) -> Any:
        self._client = self._open()
        try:
            self._wait_for_a_worker()
            self._check()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: Any) -> None:
        cluster = self._client.cluster
        timeout_s = 1.0 if KeyboardInterrupt in exc else CLOSE_S  # the second Ctrl-C
        self._client.close(timeout=timeout_s)
        if cluster is not None:
            cluster.close(timeout=timeout_s)

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, on loopback."""
        port = urlsplit(self._client.dashboard_link).port
        return f"http://127.0.0.1:{port}/status"

    def outcomes(
        self, work: Callable[..., Any], groups: Iterable[Sequence[Task]], *, stop: threading.Event, tell: Tell
    ) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`."""
        patience_s = self._cluster.start_timeout_s
        return Dispatch(self._client, work, groups, patience_s=patience_s, tell=tell).outcomes(stop)

    def everywhere(self, function: Callable[[], Any]) -> None:
        """See `Executor.everywhere`."""
        self._client.run(function, on_error="ignore")

    def _wait_for_a_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._cluster.start_timeout_s)
        except TimeoutError:
            what = f"no worker came in {self._cluster.start_timeout_s:g} s"
            fix = "Start workers, or wait longer for them: start_timeout_s in [cluster]; then eo-batch resume."
            raise ResourceError("no-workers", what, where=f"cluster {self._cluster.kind}", fix=fix) from None

    def _check(self) -> None:
        """Look at workers that this process has not started itself."""
