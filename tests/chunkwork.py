"""`execute` as tests send it to workers: with deaths."""

from __future__ import annotations

import os
import signal
from typing import Any

from deadly import until_heard

from eo_batch.run.stopwatch import Stopwatch
from eo_batch.run.task import execute


def deadly_chunk(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> Any:
    """As `execute`, but chunk (0, 1, 1) ends every worker while it is scored."""
    if (t, iy, ix) == (0, 1, 1):
        with Stopwatch()("score"):
            until_heard("score")
            os.kill(os.getpid(), signal.SIGKILL)
    return execute(folder, run_digest, t, iy, ix, attempt=attempt)


def chunk_that_is_unlucky_once(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> Any:
    """As `execute`, but chunk (0, 1, 1) ends the first worker that has it, after it was finished."""
    receipt = execute(folder, run_digest, t, iy, ix, attempt=attempt)
    if (t, iy, ix) == (0, 1, 1) and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return receipt
