"""What networks compute on: which device it is, how pixels get there and back, how much fits, and what its errors mean."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.core.errors import ConfigError, ResourceError

FULL = ("allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What a torch error says where memory ran out and its class does not tell."""
LOST = (
    "CUDA error",
    "CUDA driver error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
"""What a torch error says after which nothing more can be computed on a GPU by this process."""
_Seen = TypeVar("_Seen")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def find_device(name: str) -> torch.device:
    """The device that the option `device` names; "auto": a GPU where there is one.

    Raises
    ------
    ConfigError : `config-invalid`: unknown name.
    ResourceError : `no-gpu`.
    """
    if name not in ("auto", "cpu", "cuda"):
        fix = 'Use one of: "auto", "cpu", "cuda".'
        raise ConfigError("config-invalid", f"unknown device {name!r}", where="model.options.device", fix=fix)
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        fix = 'Set device = "auto", or install a driver and a torch that know the GPU: eo-batch doctor.'
        raise ResourceError("no-gpu", "there is no GPU that torch can use", where="model.options.device", fix=fix)
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def staged(images: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Images of one shape in one tensor (n, ...), ready to be sent to `device`.

    For a GPU it lies in pinned memory, which torch keeps and gives out again: it is sent without another copy on the way.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.stack(images))
    dtype = torch.from_numpy(np.empty(0, images[0].dtype)).dtype
    pinned = torch.empty((len(images), *images[0].shape), dtype=dtype, pin_memory=True)
    np.stack(images, out=pinned.numpy())
    return pinned


def sent(pixels: Tensor, device: torch.device) -> Tensor:
    """Staged pixels on `device`; the copy is ordered before what is computed of it, and nobody waits for it."""
    return pixels.to(device, non_blocking=True)


def fetched(answer: Tensor) -> Tensor:
    """An answer on the CPU; of a GPU it is there as soon as `finish` returns."""
    if answer.device.type == "cpu":
        return answer
    pinned = torch.empty(answer.shape, dtype=answer.dtype, pin_memory=True)
    return pinned.copy_(answer, non_blocking=True)


def finish(device: torch.device) -> None:
    """Wait until all that was asked of `device` in this thread's stream is done; its errors are raised here."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def let_go(device: torch.device) -> None:
    """Give back memory that nothing uses."""
    gc.collect()  # what a failed call still holds
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_full(error: RuntimeError) -> bool:
    """The memory of the device did not suffice; the device can go on."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in FULL)


def is_lost(error: RuntimeError) -> bool:
    """The device failed, and nothing more can be computed on it by this process."""
    known = getattr(torch, "AcceleratorError", ())  # torch 2.8 and later
    return not is_full(error) and (isinstance(error, known) or any(words in str(error) for words in LOST))


def lost_device(device: torch.device, error: RuntimeError, *, where: str) -> ResourceError:
    """`gpu-lost`, for what `is_lost`."""
    return ResourceError(
        "gpu-lost",
        f"{name_of(device)} failed in the middle of the work",
        where=where,
        why=first_line(error),
        fix="This process can compute nothing more. Look at the GPU (nvidia-smi), then continue with eo-batch resume.",
    )


def room_of(device: torch.device, error: Exception) -> tuple[int, int] | None:
    """Bytes that this process would have needed at least, and bytes that it could have had; None where nobody knows."""
    if device.type != "cuda":
        return None
    tried = re.search(r"Tried to allocate ([0-9.]+) (bytes|KiB|MiB|GiB)", str(error))
    wanted = int(float(tried[1]) * UNITS[tried[2]]) if tried else 0
    return torch.cuda.max_memory_allocated(device) + wanted, usable(device)


def gpu_use(device: torch.device, see: Callable[[], _Seen], decide: Callable[[_Seen], object]) -> tuple[int, int]:
    """Bytes that remain on a GPU between seeing and deciding, and the most that this process held there."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    seen = see()
    held = torch.cuda.memory_allocated(device) - before
    decide(seen)
    return held, torch.cuda.max_memory_reserved(device)


def usable(device: torch.device) -> int:
    """Bytes of a GPU that are this process's or nobody's."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def name_of(device: torch.device) -> str:
    """ "GPU 0", or "CPU"."""
    if device.type == "cpu":
        return "CPU"
    return f"GPU {device.index if device.index is not None else torch.cuda.current_device()}"


def first_line(error: Exception) -> str:
    """What an error says, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
