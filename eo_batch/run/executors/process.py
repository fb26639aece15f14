"""What a worker process of ours does when it starts (a preload of Dask)."""

from __future__ import annotations

import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to workers too, and they are to finish what they do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
