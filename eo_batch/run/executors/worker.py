"""Which worker of a cluster this is."""

from __future__ import annotations

import sys


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
