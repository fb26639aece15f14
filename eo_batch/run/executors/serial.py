"""One chunk after the other in this thread: for debugging, and the measure of all others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.run.executors.dealing import Group, Task
from eo_batch.run.executors.dispatch import Tell
from eo_batch.run.executors.pool import Say, silence


class SerialExecutor:
    """Computes in the thread that asks."""

    width = processes = 1
    in_process = True
    dashboard = ""
    notes: tuple[str, ...] = ()

    def __init__(self, cluster: ClusterSpec, say: Say = silence) -> None:
        pass

    def __enter__(self) -> SerialExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def outcomes(
        self, work: Callable[..., Any], groups: Iterable[Group], *, stop: threading.Event, tell: Tell
    ) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`."""
        for group in groups:
            for task in group:
                if task is None:
                    continue
                if stop.is_set():
                    return
                try:
                    result = work(*task)
                except Exception as error:  # an outcome, judged by the driver
                    result = error
                yield task, result

    def on_each_worker(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> dict[str, Any]:
        """See `Executor.on_each_worker`."""
        try:
            return {"this process": function(*arguments)}
        except Exception as error:  # an outcome, judged by the caller
            return {"this process": error}

    def everywhere(self, function: Callable[[], Any]) -> None:
        """See `Executor.everywhere`."""
        function()
