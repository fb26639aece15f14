"""Functions that tests send to workers: in a module of its own, so that other processes can import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from eo_batch.core.grid import chunk_key
from eo_batch.core.records import ChunkReceipt
from eo_batch.run.task import execute


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


def ends_its_worker_once(value: int, folder: str, *, attempt: int = 1) -> int:
    """How often it was begun; 7 ends the first worker that tries it."""
    if value == 7 and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


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


def deadly_chunk(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> Any:
    """As `execute`, but chunk (0, 1, 1) ends every worker."""
    if (t, iy, ix) == (0, 1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return execute(folder, run_digest, t, iy, ix, attempt=attempt)


def chunk_that_is_unlucky_once(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> Any:
    """As `execute`, but chunk (0, 1, 1) ends the first worker that has it, after it was finished."""
    receipt = execute(folder, run_digest, t, iy, ix, attempt=attempt)
    if (t, iy, ix) == (0, 1, 1) and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return receipt


def receipt_of_nothing(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> ChunkReceipt:
    """A receipt of a chunk that nobody computed."""
    return ChunkReceipt(chunk_key(t, iy, ix), "empty", {}, (), (), 0, 0, 0, {})


def nothing(*task: Any, attempt: int = 1) -> None:
    """No work at all."""
