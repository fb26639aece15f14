"""How many windows a segmenter is asked at once, where a pipeline leaves it open: as many as fit, found before a run starts.

The number is frozen with the run: on a GPU a window may have other bits in other company.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.core.prompts import PromptSet
from eo_batch.models.inference import made_up_windows
from eo_batch.models.segmenter import Segmenter

GPU_BATCHES = (1, 2, 4, 8, 16)
"""A chunk has some tens of windows, and its last call repeats one until it is full: more at once would be computed in vain."""
CPU_BATCHES = (1, 2, 4)
"""Networks look at windows one after the other on a CPU: more at once take memory and save nothing."""
SAFE_SHARE = 0.85
"""Of the memory of a device that a batch may take: what is free is in pieces, and calls differ."""


def choose_batch(
    segmenter: Segmenter, prompts: PromptSet, bands: Sequence[str], *, window_px: int, tasks: int, memory_bytes: int
) -> int:
    """The largest usual batch that fits into memory with a margin.

    On a GPU made-up windows are computed, and what the device held is measured; on a CPU it is what the segmenter says of itself.

    Parameters
    ----------
    tasks : chunks at once in a process; on a GPU one is computed while the others keep what was seen of their windows there.
    memory_bytes : main memory that calls of one process may take, weights included.

    Raises
    ------
    ModelError : `model-oom`: not even one window fits on the GPU.
    """
    if segmenter.info.device == "cpu":
        return _by_estimate(segmenter, len(prompts), len(bands), window_px=window_px, tasks=tasks, memory_bytes=memory_bytes)
    from eo_batch.models.devices import find_device, gpu_use, let_go, usable

    device, chosen = find_device(segmenter.info.device), 0
    features = segmenter.encode_prompts(prompts)
    limit = SAFE_SHARE * usable(device)
    for batch in GPU_BATCHES:
        let_go(device)
        images = made_up_windows(segmenter, bands=len(bands), window_px=window_px, batch=batch)
        see: Callable[[], Any] = lambda images=images: segmenter.encode_images(images)  # type: ignore[misc]  # noqa: E731
        try:
            held, peak = gpu_use(device, see, lambda seen: segmenter.decode(seen, features))
        except ModelError as error:
            if error.code != "model-oom" or not chosen:
                raise
            break
        if chosen and peak + (tasks - 1) * held > limit:
            break
        chosen = batch
    let_go(device)
    return chosen


def _by_estimate(segmenter: Segmenter, prompts: int, bands: int, *, window_px: int, tasks: int, memory_bytes: int) -> int:
    info = segmenter.info

    def needed(batch: int) -> int:
        call = info.memory_bytes(bands=bands, prompts=prompts, window_px=window_px, batch=batch) - info.fixed_bytes
        return info.fixed_bytes + tasks * call

    return max((batch for batch in CPU_BATCHES if needed(batch) <= SAFE_SHARE * memory_bytes), default=1)
