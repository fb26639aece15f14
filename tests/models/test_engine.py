"""Turns at a device: one call at a time on a GPU, the same again where memory ran out, and time that is counted.

There need be no GPU: `together` is what makes an engine take turns, and torch raises the same errors wherever they come from.
"""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eo_batch.core.errors import ModelError, ResourceError
from eo_batch.models import busy, devices, engine
from eo_batch.models.busy import busy_seconds, counted
from eo_batch.models.devices import fetched, staged
from eo_batch.models.engine import TRIES, Engine

FULL = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 8 GiB"
OURS = "no_such_layer: shapes do not match"


def make(*, together: bool = True) -> Engine[Any]:
    return Engine(torch.nn.Linear(2, 2), torch.device("cpu"), torch.float32, segmenter="toy", together=together)


def failing(error: Exception, times: int) -> Any:
    """A computation that raises `error` so often, and then answers; `calls` counts."""

    def compute() -> str:
        compute.calls += 1  # type: ignore[attr-defined]
        if compute.calls <= times:  # type: ignore[attr-defined]
            raise error
        return "answer"

    compute.calls = 0  # type: ignore[attr-defined]
    return compute


def test_a_call_that_runs_out_of_memory_is_made_again_after_memory_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[torch.device] = []
    monkeypatch.setattr(engine, "let_go", given_back.append)
    compute = failing(torch.OutOfMemoryError(FULL), TRIES - 1)
    assert make().call(compute, threads=1, what="windows", windows=8) == "answer"
    assert (compute.calls, len(given_back)) == (TRIES, TRIES - 1)


def test_what_a_failed_call_held_is_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    monkeypatch.setattr(engine, "let_go", lambda device: held.append(large()))

    class Large:
        pass

    large: Any = lambda: None  # noqa: E731

    def compute() -> str:
        nonlocal large
        mine = Large()
        large = weakref.ref(mine)
        if not held:
            raise torch.OutOfMemoryError(FULL)
        return "answer"

    assert make().call(compute, threads=1, what="windows") == "answer"
    assert held == [None]


def test_a_call_that_never_fits_is_told_with_what_it_needs_and_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "room_of", lambda device, error: (9_800_000_000, 7_200_000_000))
    monkeypatch.setattr(engine, "name_of", lambda device: "GPU 0")
    compute = failing(torch.OutOfMemoryError(FULL), 99)
    with pytest.raises(ModelError) as caught:
        make().call(compute, threads=1, what="windows", windows=8)
    assert (caught.value.code, compute.calls) == ("model-oom", TRIES)
    assert "batch of 8 windows needs 9.8 GB, GPU 0 has 7.2 GB free" in str(caught.value)
    assert "Plan with batch 4" in str(caught.value)


@pytest.mark.parametrize(
    ("windows", "needed", "free", "advice"),
    [
        (8, 16, 16, "batch 4"),
        (8, 16, 4, "batch 1"),
        (8, 16, 1, "Not even one"),
        (1, 16, 99, "Not even one"),
        (6, 6, 6, "batch 4"),
    ],
)
def test_the_advice_is_the_largest_batch_that_fits_with_a_margin(windows: int, needed: int, free: int, advice: str) -> None:
    assert advice in engine._smaller(windows, needed, free)


def test_on_a_cpu_nothing_is_tried_again() -> None:
    compute = failing(torch.OutOfMemoryError(FULL), 1)
    with pytest.raises(ModelError, match=r"Lower model\.batch"):
        make(together=False).call(compute, threads=1, what="windows", windows=1)
    assert compute.calls == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_device_that_failed_is_told_apart_from_a_bug_and_from_full_memory(error: RuntimeError) -> None:
    compute = failing(error, 1)
    with pytest.raises(ResourceError, match="failed in the middle of the work") as caught:
        make().call(compute, threads=1, what="windows")
    assert (caught.value.code, compute.calls) == ("gpu-lost", 1)


def test_a_gpu_that_another_process_has_filled_is_full_and_not_lost() -> None:
    assert devices.is_full(torch.AcceleratorError("CUDA error: out of memory"))
    assert not devices.is_lost(torch.AcceleratorError("CUDA error: out of memory"))


def test_a_torch_that_has_no_class_for_errors_of_devices_tells_them_by_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "AcceleratorError")  # it came with 2.8
    assert devices.is_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not devices.is_lost(RuntimeError(OURS))


def test_a_bug_stays_a_bug() -> None:
    with pytest.raises(RuntimeError, match=OURS):
        make().call(failing(RuntimeError(OURS), 1), threads=1, what="windows")


def test_a_gpu_serves_one_thread_while_the_other_prepares() -> None:
    one, preparing, computing = make(), threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        def compute() -> None:
            computing.set()
            assert preparing.wait(60)  # the other prepares while this one computes
            order.append("first")

        one.call(compute, threads=1, what="windows")

    def second() -> None:
        assert computing.wait(60)
        staged([np.zeros((3, 4, 4), np.float32)], one.device)
        preparing.set()
        one.call(lambda: order.append("second"), threads=1, what="windows")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "second"]


def test_only_the_time_at_the_device_is_counted_and_not_the_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now, computing, waiting = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(busy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one, readings = make(), {}

    def first() -> None:
        def compute() -> None:
            computing.set()
            assert waiting.wait(60)
            now[0] += 5.0

        one.call(compute, threads=1, what="windows")
        readings["first"] = busy_seconds()

    def second() -> None:
        def compute() -> None:
            now[0] += 1.0

        assert computing.wait(60)
        with counted():  # as one does who asks a segmenter
            waiting.set()
            one.call(compute, threads=1, what="windows")
        readings["second"] = busy_seconds()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert readings == {"first": 5.0, "second": 1.0}


def test_threads_have_clocks_of_their_own_and_a_failure_is_counted_too() -> None:
    before = busy_seconds()
    others: list[float] = []
    thread = threading.Thread(target=lambda: others.append(busy_seconds()))
    with pytest.raises(RuntimeError), counted():
        raise RuntimeError
    thread.start()
    thread.join()
    assert busy_seconds() > before
    assert others == [0.0]


def test_on_a_cpu_calls_run_side_by_side_with_their_own_number_of_threads() -> None:
    one, both = make(together=False), threading.Barrier(2, timeout=60)
    seen: list[int] = []

    def work() -> None:
        def compute() -> None:
            both.wait()  # passes only when the other computes too
            seen.append(torch.get_num_threads())

        one.call(compute, threads=2, what="windows")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [2, 2]


def test_nothing_is_copied_for_a_cpu_but_the_batch_itself() -> None:
    images = [np.full((3, 4, 4), number, np.float32) for number in range(2)]
    pixels = staged(images, torch.device("cpu"))
    assert torch.equal(pixels, torch.from_numpy(np.stack(images)))
    assert fetched(pixels) is pixels
    assert devices.sent(pixels, torch.device("cpu")) is pixels
