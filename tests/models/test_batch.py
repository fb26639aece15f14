"""The batch that fits: by what a segmenter says of itself on a CPU, by what is measured on a GPU (played by numbers here)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eo_batch.core.errors import ModelError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models import devices
from eo_batch.models.batch import CPU_BATCHES, GPU_BATCHES, SAFE_SHARE, choose_batch
from eo_batch.models.probe import WindowMean

PROMPTS, BANDS, SIDE = PromptSet((Prompt("bright"),)), ("red",), 16
MEAN = WindowMean(BANDS)
CALL = MEAN.info.memory_bytes(bands=1, prompts=1, window_px=SIDE, batch=1)


def choose(segmenter: Any, *, tasks: int = 1, memory_bytes: float = 0) -> int:
    return choose_batch(segmenter, PROMPTS, BANDS, window_px=SIDE, tasks=tasks, memory_bytes=int(memory_bytes))


@pytest.mark.parametrize(
    ("calls", "tasks", "expected"), [(100, 1, 4), (4, 1, 4), (3.9, 1, 2), (1, 1, 1), (0.1, 1, 1), (4, 2, 2), (4, 4, 1)]
)
def test_on_a_cpu_as_many_windows_as_the_calls_of_a_process_leave_memory_for(calls: float, tasks: int, expected: int) -> None:
    assert choose(MEAN, tasks=tasks, memory_bytes=calls * CALL / SAFE_SHARE + 1) == expected
    assert expected in CPU_BATCHES


class OnGpu(WindowMean):
    """A segmenter that believes to be on a GPU, whose memory `play_gpu` plays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "info", replace(self.info, device="cuda"))


def play_gpu(patch: pytest.MonkeyPatch, *, usable: float, window: float, held: float = 0.0, room: float = 1e9) -> list[int]:
    """Let a window take `window` bytes of a GPU and hold `held` of them; calls of more than `room` bytes fail. Batches asked."""
    asked: list[int] = []

    def gpu_use(device: Any, see: Any, decide: Any) -> tuple[int, int]:
        count = len(see())
        asked.append(count)
        if count * window > room:
            raise ModelError("model-oom", "too much")
        return int(count * held), int(count * window)

    patch.setattr(devices, "find_device", lambda name: torch.device(name))
    patch.setattr(devices, "let_go", lambda device: None)
    patch.setattr(devices, "usable", lambda device: int(usable))
    patch.setattr(devices, "gpu_use", gpu_use)
    patch.setattr(OnGpu, "encode_images", lambda self, images: images)
    return asked


@pytest.mark.parametrize(
    ("usable", "window", "held", "tasks", "expected"),
    [
        (1e9, 1.0, 0.0, 1, 16),  # never more than the largest usual one
        (10.0, 1.0, 0.0, 1, 8),  # 8 of the 8.5 that the margin leaves
        (9.0, 1.0, 0.0, 1, 4),  # 8 would fit, but for the margin
        (10.0, 1.0, 0.5, 2, 4),  # another chunk keeps what was seen of its windows there
        (10.0, 1.0, 0.5, 8, 1),
        (1.0, 1.0, 0.0, 1, 1),  # one window is never refused for the margin alone
    ],
)
def test_on_a_gpu_as_many_windows_as_fit_with_a_margin(
    monkeypatch: pytest.MonkeyPatch, usable: float, window: float, held: float, tasks: int, expected: int
) -> None:
    asked = play_gpu(monkeypatch, usable=usable, window=window, held=held)
    assert choose(OnGpu(BANDS), tasks=tasks) == expected
    assert asked == [batch for batch in GPU_BATCHES if batch <= 2 * expected]


def test_a_batch_that_runs_out_of_memory_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = play_gpu(monkeypatch, usable=1e9, window=1.0, room=3)
    assert choose(OnGpu(BANDS)) == 2
    assert asked == [1, 2, 4]


def test_one_window_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    play_gpu(monkeypatch, usable=1e9, window=1.0, room=0)
    with pytest.raises(ModelError, match="model-oom"):
        choose(OnGpu(BANDS))


def test_what_a_call_holds_and_takes_is_read_between_its_two_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated, steps = [100], []
    cuda = SimpleNamespace(
        reset_peak_memory_stats=lambda device: steps.append("reset"),
        memory_allocated=lambda device: allocated[0],
        max_memory_reserved=lambda device: 999,
    )
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=cuda))

    def see() -> Any:
        allocated[0] += 40
        return np.zeros(3)

    def decide(seen: Any) -> None:
        allocated[0] += 500
        steps.append(len(seen))

    assert devices.gpu_use(torch.device("cuda"), see, decide) == (40, 999)
    assert steps == ["reset", 3]
