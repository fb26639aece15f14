"""Functions that tests send to workers: in a module of its own, which other processes import in no time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from deadly import until_heard

from eo_batch.core.grid import chunk_key
from eo_batch.core.records import ChunkReceipt
from eo_batch.run.executors import worker
from eo_batch.run.stopwatch import Stopwatch


def double(value: int, *, attempt: int = 1) -> int:
    """Twice `value`; 13 is refused."""
    if value == 13:
        raise ValueError("unlucky")
    return 2 * value


def ends_its_worker_at_7(value: int, *, attempt: int = 1) -> int:
    """How often it was begun; 7 is never finished."""
    if value == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def lasts_in_score(value: int) -> None:
    """Goes through two stages, of which one lasts."""
    worker.LASTS_S = 0.5  # the other one is over before, also where the machine is busy
    clock = Stopwatch()
    with clock("read"):
        pass
    with clock("score"):
        until_heard("score")


def surroundings(value: int, *, attempt: int = 1) -> tuple[int, dict[str, str]]:
    """Process and environment of the worker."""
    time.sleep(0.05)  # long enough that one worker cannot do them all
    return os.getpid(), dict(os.environ)


def waits_for(value: int, file: str, *, attempt: int = 1) -> int:
    """Says that it has begun, in a file beside `file`, and returns when `file` is there."""
    Path(f"{file}.begun{value}").touch()
    while not Path(file).exists():
        time.sleep(0.01)
    return value


def receipt_of_nothing(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> ChunkReceipt:
    """A receipt of a chunk that nobody computed."""
    return ChunkReceipt(chunk_key(t, iy, ix), "empty", {}, (), (), 0, 0, 0, {})


def nothing(*task: Any, attempt: int = 1) -> None:
    """No work at all."""
