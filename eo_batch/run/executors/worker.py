"""Which worker of a cluster this is."""

from __future__ import annotations

import sys


def worker_name() -> str:
    """Name of the Dask worker that runs the task of this thread; "driver" where there is none."""
    distributed = sys.modules.get("distributed")  # no worker without it, and no reason to load it
    if distributed is None:
        return "driver"
    try:
        return str(distributed.get_worker().name)
    except ValueError:
        return "driver"
