"""What all executors with a Dask scheduler share: a client, a bounded number of tasks in flight, a dashboard on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1:0"

Task = tuple[Any, ...]


class PoolExecutor:
    """Base of executors whose `_open` gives a Dask client; entering it begins, leaving it ends what it began."""

    in_process = False

    def __init__(self) -> None:
        self._client: Any = None

    def _open(self) -> Any:
        raise NotImplementedError

    @property
    def width(self) -> int:
        """Tasks that are computed at once: threads of all workers that are there now."""
        return sum(self._client.nthreads().values()) or 1

    def __enter__(self) -> Any:
        self._client = self._open()
        return self

    def __exit__(self, *exc: object) -> None:
        cluster = self._client.cluster
        self._client.close()
        if cluster is not None:
            cluster.close()

    @property
    def dashboard(self) -> str:
        """Address of the Dask dashboard, on loopback."""
        port = urlsplit(self._client.dashboard_link).port
        return f"http://127.0.0.1:{port}/status"

    def outcomes(
        self, work: Callable[..., Any], groups: Iterable[Sequence[Task]], *, stop: threading.Event
    ) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`."""
        tasks = (task for group in groups for task in group if not stop.is_set())
        return submit_bounded(self._client, work, tasks, in_flight=2 * self.width)


def submit_bounded(client: Any, work: Callable[..., Any], tasks: Iterable[Task], *, in_flight: int) -> Iterator[tuple[Task, Any]]:
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
