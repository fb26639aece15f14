"""What workers of tests do that have trouble with their GPU; importable by processes that are not pytest."""

from __future__ import annotations

import os
from pathlib import Path

from eo_batch.core.errors import ResourceError


def loses_its_gpu(number: int, *, attempt: int = 1) -> tuple[int, int]:
    """(number, process); the first try at number 3 finds the GPU broken."""
    if number == 3 and attempt == 1:
        raise ResourceError("gpu-lost", "GPU 0 failed in the middle of the work")
    return number, os.getpid()


def has_a_gpu_but_for_one(number: int, mark: str, *, attempt: int = 1) -> tuple[int, int]:
    """(number, process); the process that comes first to `mark` has no GPU."""
    try:
        with Path(mark).open("x") as first:
            first.write(str(os.getpid()))
    except FileExistsError:
        pass
    if Path(mark).read_text() in (str(os.getpid()), ""):
        raise ResourceError("no-gpu", "there is no GPU that torch can use")
    return number, os.getpid()


def never_has_a_gpu(number: int, *, attempt: int = 1) -> int:
    """No process of the cluster has a GPU."""
    raise ResourceError("no-gpu", "there is no GPU that torch can use")
