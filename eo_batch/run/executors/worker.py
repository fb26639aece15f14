"""Inside a worker process of ours: what it does when it starts (as a preload of Dask), who it is, and how it leaves."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to workers too, and they are to finish what they do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def worker_name() -> str:
    """Address of the Dask worker that runs the task of this thread, by which its coming and going is told; else "driver"."""
    distributed = sys.modules.get("distributed")  # no worker without it, and no reason to load it
    if distributed is None:
        return "driver"
    try:
        return str(distributed.get_worker().address)
    except ValueError:
        return "driver"


def worker_threads() -> int | None:
    """Tasks that this process computes at once, as its Dask worker says; None where it is none."""
    try:
        return int(sys.modules["distributed"].get_worker().state.nthreads)
    except (KeyError, ValueError):
        return None


def leave() -> None:
    """End this process at once, if it is a worker that will be replaced: its device can do nothing more for it."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    if worker.nanny is not None:
        os._exit(1)
