"""What all executors with a Dask scheduler share: a client, tasks dealt out to workers, and how it begins and ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.run.crew import crew_of
from eo_batch.run.executors.dealing import Group, Task
from eo_batch.run.executors.dispatch import Dispatch, Tell
from eo_batch.run.executors.scheduler import ANSWER_S, threads_of, told_of

Say = Callable[[str], None]
LOOPBACK = "127.0.0.1:0"
CLOSE_S = 10.0
SAY_EVERY_S = 15.0
POLL_S = 0.1
NOISY = ("distributed", "distributed.client", "tornado.application", "asyncio")
"""Loggers that print traces about connections and workers that are lost: what matters of it is told by us."""


def silence(text: str) -> None:
    """A `Say` that does nothing."""


class PoolExecutor:
    """Base of executors whose `_open` gives a Dask client; entering it begins, leaving it ends what it began."""

    in_process = False

    def __init__(self, cluster: ClusterSpec, say: Say = silence) -> None:
        self._cluster, self._say = cluster, say
        self._client: Any = None
        self.notes: tuple[str, ...] = ()

    def _open(self) -> Any:
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Tasks that are computed at once: threads of all workers that are there now."""
        return sum(threads_of(self._client).values()) or 1

    @property
    def processes(self) -> int:
        """See `Executor.processes`: workers that are there now, or will be."""
        return max(len(threads_of(self._client)), crew_of(self._cluster).processes)

    def __enter__(self) -> Any:
        import distributed  # noqa: F401 (it sets levels of its own when it is imported)

        self._levels = {name: logging.getLogger(name).level for name in NOISY}
        _set_levels(dict.fromkeys(NOISY, logging.CRITICAL))
        try:
            self._client = forgetful(self._open())
        except BaseException:
            _set_levels(self._levels)
            raise
        try:
            self._wait_for_a_worker()
            self._check()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: Any) -> None:
        cluster = self._client.cluster
        if KeyboardInterrupt in exc:  # the second Ctrl-C: nothing is waited for, and worker processes end with this one
            if cluster is not None:
                cluster.shutdown_on_close = False
            return
        with suppress(TimeoutError):  # of tasks that were given up and go on
            self._client.close(timeout=CLOSE_S)
        if cluster is not None:
            with suppress(TimeoutError):
                cluster.close(timeout=CLOSE_S)
        _set_levels(self._levels)

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, on loopback."""
        port = urlsplit(self._client.dashboard_link).port
        return f"http://127.0.0.1:{port}/status"

    def outcomes(
        self, work: Callable[..., Any], groups: Iterable[Group], *, stop: threading.Event, tell: Tell
    ) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`."""
        patience_s = self._cluster.start_timeout_s
        tell = _nobody if self.in_process else tell  # threads of this process neither come nor go
        return Dispatch(self._client, work, groups, patience_s=patience_s, tell=tell).outcomes(stop)

    def on_each_worker(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> dict[str, Any]:
        """See `Executor.on_each_worker`."""
        from distributed import wait

        self._wait_for(self.processes)
        names = {address: str(told["name"]) for address, told in told_of(self._client).items()}
        asked = {
            names[address]: self._client.submit(function, *arguments, workers=[address], pure=False, retries=0)
            for address in sorted(names)
        }
        with suppress(TimeoutError), self._client.as_current():
            wait(list(asked.values()), timeout=timeout_s)
        return {name: _answer_of(future, timeout_s) for name, future in asked.items()}

    def everywhere(self, function: Callable[[], Any]) -> None:
        """See `Executor.everywhere`."""
        # A worker is frozen, for which `run` itself waits for ever; or the scheduler is gone, as who asks next is told.
        with suppress(OSError):
            self._client.sync(self._client._run, function, on_error="ignore", callback_timeout=ANSWER_S)

    def _wait_for_a_worker(self) -> None:
        if not self._wait_for(1):
            what = f"no worker came in {self._cluster.start_timeout_s:g} s"
            fix = "Start workers, or wait longer for them: start_timeout_s in [cluster]; then eo-batch resume."
            raise ResourceError("cluster-unreachable", what, where=f"cluster {self._cluster.kind}", why=self._why_none(), fix=fix)

    def _wait_for(self, count: int) -> bool:
        """Wait until `count` workers are there, and say so; False if the cluster's time to start is over before."""
        wanted, began = self.processes, time.monotonic()
        said = began
        while (there := len(threads_of(self._client))) < count:
            self._while_waiting()
            now = time.monotonic()
            if now - began >= self._cluster.start_timeout_s:
                return False
            if now - said >= SAY_EVERY_S:
                said = now
                self._say(f"waiting for workers ({there} of {wanted}), {(now - began) / 60:.0f} min")
            time.sleep(POLL_S)
        return True

    def _while_waiting(self) -> None:
        """Say what happened meanwhile; raises what keeps workers away for good."""

    def _why_none(self) -> str:
        """What keeps workers away, as far as it can be found out."""
        return ""

    def _check(self) -> None:
        """Look at workers that this process has not started itself."""


def forgetful(client: Any) -> Any:
    """`client`, of whose tasks the scheduler keeps nothing: Dask notes each `submit` in a list that only grows."""
    send = client._graph_to_futures

    def send_unnoted(*arguments: Any, **options: Any) -> Any:
        return send(*arguments, **{**options, "span_metadata": {}})

    client._graph_to_futures = send_unnoted
    return client


def _set_levels(levels: Mapping[str, int]) -> None:
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _nobody(worker: str, state: str) -> None:
    """A `Tell` that tells nobody."""


def _answer_of(future: Any, timeout_s: float) -> Any:
    if future.status == "finished":
        return future.result()
    return future.exception() if future.status == "error" else TimeoutError(f"no answer in {timeout_s:.0f} s")
