"""Who computes chunks: this thread, or the workers of a Dask scheduler. dask is imported nowhere else.

An executor takes light tasks one by one, keeps a bounded number in flight, and yields outcomes as they come.
It never retries, never orders, never holds results.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from eo_batch.core.errors import ConfigError

Task = tuple[Any, ...]
Outcome = tuple[Task, Any]
"""(arguments, result or exception)."""

LOOPBACK = "127.0.0.1:0"
KINDS = ("local", "serial")


class Executor(Protocol):
    """A context manager that runs a function over many argument tuples."""

    width: int

    @property
    def dashboard(self) -> str:
        """Address of a page that shows the work, or ""."""
        ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def outcomes(self, work: Callable[..., Any], tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Outcome of every task, in any order; takes tasks only as fast as they are finished."""
        ...


def make_executor(kind: str, workers: int | None) -> Executor:
    """Executor of a kind.

    Raises
    ------
    ConfigError : `config-invalid` for an unknown kind.
    """
    check_kind(kind)
    return SerialExecutor() if kind == "serial" else ThreadExecutor(workers or os.cpu_count() or 1)


def check_kind(kind: str) -> None:
    """Refuse a kind that nobody knows, before anything is searched or written.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    if kind in KINDS:
        return
    close = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    fix = f"{hint}Use one of: {', '.join(KINDS)}."
    raise ConfigError("config-invalid", f'unknown cluster "{kind}"', where="cluster.kind or --cluster", fix=fix)


class SerialExecutor:
    """One chunk after the other in this thread: for debugging."""

    width = 1
    dashboard = ""

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def outcomes(self, work: Callable[..., Any], tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Executor.outcomes`."""
        for task in tasks:
            try:
                result = work(*task)
            except Exception as error:  # an outcome, judged by the driver
                result = error
            yield task, result


class ThreadExecutor:
    """A Dask scheduler and its worker threads inside this process; the dashboard listens on loopback only."""

    def __init__(self, workers: int) -> None:
        self.width = workers
        self._client: Any = None

    def __enter__(self) -> ThreadExecutor:
        from distributed import Client, LocalCluster

        cluster = LocalCluster(
            processes=False,
            n_workers=1,
            threads_per_worker=self.width,
            memory_limit=0,
            dashboard_address=LOOPBACK,
            worker_dashboard_address=LOOPBACK,  # left out, the worker's own pages listen on every interface
            silence_logs=logging.ERROR,
        )
        self._client = Client(cluster, set_as_default=False)
        return self

    def __exit__(self, *exc: object) -> None:
        cluster = self._client.cluster
        self._client.close()
        cluster.close()

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, on loopback."""
        port = urlsplit(self._client.dashboard_link).port
        return f"http://127.0.0.1:{port}/status"

    def outcomes(self, work: Callable[..., Any], tasks: Iterable[Task]) -> Iterator[Outcome]:
        """See `Executor.outcomes`."""
        return submit_bounded(self._client, work, tasks, in_flight=2 * self.width)


def submit_bounded(client: Any, work: Callable[..., Any], tasks: Iterable[Task], *, in_flight: int) -> Iterator[Outcome]:
    """Run light tasks through a Dask client with at most `in_flight` of them known to the scheduler."""
    from distributed import as_completed

    queue = iter(tasks)
    known: dict[str, Task] = {}
    running = as_completed(loop=client.loop)

    def submit_next() -> None:
        task = next(queue, None)
        if task is not None:
            future = client.submit(work, *task, pure=False, retries=0)
            known[future.key] = task
            running.add(future)

    for _ in range(in_flight):
        submit_next()
    for future in running:
        error = future.exception()
        result = future.result() if error is None else error
        task = known.pop(future.key)
        future.release()
        yield task, result
        submit_next()
