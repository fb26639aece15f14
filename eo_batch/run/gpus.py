"""Which GPUs this machine lets us use, found without touching any of them."""

from __future__ import annotations

import os
import subprocess
import sys

from eo_batch.core.errors import ResourceError

GPU_THREADS = 3
"""Chunks at once in a process that has a GPU: one is segmented while another is read and a third is written."""
COUNT = "import torch; print(torch.cuda.device_count())"
ANSWER_S = 120


def gpu_names() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that may be used. This process does not touch any of them.

    Raises
    ------
    ResourceError : `no-gpu`.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        names = [str(index) for index in range(_installed())]
    else:
        names = []
        for name in (part.strip() for part in allowed.split(",")):
            if not name or name.startswith("-") or name == "NoDevFiles":
                break  # CUDA sees nothing from here on
            names.append(name)
    if not names:
        why = "CUDA_VISIBLE_DEVICES hides them" if allowed is not None else "neither `nvidia-smi -L` nor torch finds one"
        fix = 'Use --cluster local, or "local:N" for worker processes on the CPU.'
        raise ResourceError("no-gpu", "there is no GPU to use", where='cluster "gpus"', why=why, fix=fix)
    return names


def _installed() -> int:
    """GPUs of this machine; asked of other processes, since CUDA cannot be let go of by one that has counted them."""
    listed = _answer(["nvidia-smi", "-L"])
    if listed is not None:
        return sum(line.startswith("GPU ") for line in listed.splitlines())
    counted = (_answer([sys.executable, "-c", COUNT]) or "").strip()
    return int(counted) if counted.isdecimal() else 0


def _answer(command: list[str]) -> str | None:
    """What a command prints, or None: it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)  # noqa: S603 (fixed words)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
