"""What a worker process of ours does when it starts (a preload of Dask), and how it leaves."""

from __future__ import annotations

import os
import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to workers too, and they are to finish what they do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave() -> None:
    """End this process at once, if it is a worker that will be replaced: its device can do nothing more for it."""
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:
        return
    if worker.nanny is not None:
        os._exit(1)
