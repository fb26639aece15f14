"""Inside a worker process: how it starts (as a preload of Dask), who it is, what it tells of its tasks, and how it leaves."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STAGES = "eo-batch-stages"
"""Topic of Dask on which workers tell of stages: `key` of a task, its `stage`, and `worker`, which the scheduler adds."""
LASTS_S = 0.1
"""A stage that is over sooner is not told of: chunks of milliseconds would pay for it, and few workers die in it."""


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to workers too, and they are to finish what they do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def worker_name() -> str:
    """Address of the Dask worker that runs the task of this thread, by which its coming and going is told; else "driver"."""
    worker = _worker()
    return "driver" if worker is None else str(worker.address)


def worker_threads() -> int | None:
    """Tasks that this process computes at once, as its Dask worker says; None where it is none."""
    worker = _worker()
    return None if worker is None else int(worker.state.nthreads)


@contextmanager
def telling(stage: str) -> Iterator[None]:
    """Have the driver told that the task of this thread is in `stage`, if that lasts: nobody can ask a dead worker.

    A message of some hundred bytes goes with what the worker sends anyway; the scheduler keeps the last 1000 of all workers.
    """
    worker = _worker()
    if worker is None or worker.address.startswith("inproc:"):  # it dies with the driver
        yield
        return
    is_over = threading.Event()
    worker.loop.add_callback(worker.loop.call_later, LASTS_S, _tell, worker, worker.get_current_task(), stage, is_over)
    try:
        yield
    finally:
        is_over.set()


def leave() -> None:
    """End this process at once, if it is a worker that will be replaced: its device can do nothing more for it."""
    worker = _worker()
    if worker is not None and worker.nanny is not None:
        os._exit(1)


def _worker() -> Any:
    """The Dask worker that runs the task of this thread; None where there is none."""
    distributed = sys.modules.get("distributed")  # no worker without it, and no reason to load it
    if distributed is None:
        return None
    try:
        return distributed.get_worker()
    except ValueError:
        return None


def _tell(worker: Any, key: Any, stage: str, is_over: threading.Event) -> None:
    if not is_over.is_set():
        worker.log_event(STAGES, {"key": key, "stage": stage})
