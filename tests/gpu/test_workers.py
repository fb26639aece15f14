"""What a GPU worker rests on: turns at the device, pinned memory, the batch that fits, and memory that runs out."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tinyclipseg import SIDE, load_tiny, make_tiny, prompts_of

from eo_batch.core.errors import ModelError
from eo_batch.models import devices
from eo_batch.models.batch import GPU_BATCHES, choose_batch
from eo_batch.models.busy import busy_seconds
from eo_batch.models.devices import fetched, finish, sent, staged

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
GPU = torch.device("cuda")
PROMPTS = prompts_of("water", "road")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def windows(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, 3, SIDE, SIDE), dtype=np.float32) * 0.25


def answers(segmenter: Any, images: np.ndarray) -> np.ndarray:
    return segmenter.decode(segmenter.encode_images(images), segmenter.encode_prompts(PROMPTS))


def test_pixels_go_through_pinned_memory_and_come_back_the_same() -> None:
    images = list(windows(3))
    pixels = staged(images, GPU)
    back = fetched(sent(pixels, GPU))
    finish(GPU)
    assert pixels.is_pinned()
    assert back.is_pinned()
    assert back.numpy().tobytes() == np.stack(images).tobytes()


def test_the_pinned_path_gives_the_bits_of_the_plain_one(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, images = load_tiny(weights, device="cuda"), windows(4)
    pinned = answers(segmenter, images)
    plain = "eo_batch.models.clipseg.engine"
    monkeypatch.setattr(f"{plain}.staged", lambda some, device: torch.from_numpy(np.stack(some)))
    monkeypatch.setattr(f"{plain}.sent", lambda pixels, device: pixels.to(device))
    monkeypatch.setattr(f"{plain}.fetched", lambda answer: answer.cpu())
    assert answers(segmenter, images).tobytes() == pinned.tobytes()


def test_threads_that_take_turns_get_the_answers_of_one_alone(weights: Path) -> None:
    """And their clocks together never count more than the time that went by."""
    segmenter = load_tiny(weights, device="cuda")
    batches = [windows(count) for count in (2, 3, 4, 5)]
    alone = [answers(segmenter, images) for images in batches]
    found: dict[int, list[bytes]] = {}
    busy: list[float] = []

    def work(number: int) -> None:
        found[number] = [answers(segmenter, batches[number]).tobytes() for _ in range(20)]
        busy.append(busy_seconds())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end.record()
    end.synchronize()
    assert all(set(each) == {alone[number].tobytes()} for number, each in found.items())
    assert 0 < sum(busy) <= start.elapsed_time(end) / 1000 + 0.001


def test_the_device_is_done_when_its_lock_is_free(weights: Path) -> None:
    engine = load_tiny(weights, device="cuda").engine
    large = torch.rand(4096, 4096, device=GPU)

    def compute() -> torch.Tensor:
        product = large
        for _ in range(20):
            product = product @ large / 4096
        return fetched(product.sum()[None])

    answer = engine.call(compute, threads=1, what="a product")
    assert torch.cuda.current_stream().query()
    assert torch.isfinite(answer).all()


def test_memory_that_runs_out_once_changes_no_bit(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, images = load_tiny(weights, device="cuda"), windows(4)
    expected, original, failures = answers(segmenter, images), type(segmenter.engine)._look, []

    def look(self: Any, pixels: torch.Tensor) -> Any:
        if len(failures) < 2:
            failures.append(len(pixels))
            torch.empty(2**50, dtype=torch.uint8, device=GPU)  # a real failure of a real allocator
        return original(self, pixels)

    monkeypatch.setattr(type(segmenter.engine), "_look", look)
    assert answers(segmenter, images).tobytes() == expected.tobytes()
    assert failures == [4, 4]


def test_memory_that_never_suffices_is_told_in_figures(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_tiny(weights, device="cuda")
    monkeypatch.setattr(type(segmenter.engine), "_look", lambda self, pixels: torch.empty(2**50, dtype=torch.uint8, device=GPU))
    with pytest.raises(ModelError, match=r"batch of 4 windows needs [0-9.]+ GB, GPU 0 has [0-9.]+ GB free"):
        answers(segmenter, windows(4))


def test_the_batch_that_is_found_fits_and_less_room_gives_a_smaller_one(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = load_tiny(weights, device="cuda")
    settings: dict[str, Any] = {"window_px": SIDE, "tasks": 3, "memory_bytes": 0}
    most = choose_batch(segmenter, PROMPTS, ("red", "green", "blue"), **settings)
    assert most == GPU_BATCHES[-1]
    assert np.isfinite(answers(segmenter, windows(most))).all()
    monkeypatch.setattr(devices, "usable", lambda device: 1)
    assert choose_batch(segmenter, PROMPTS, ("red", "green", "blue"), **settings) == 1
