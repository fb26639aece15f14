"""The published size on a GPU, as a run uses it, against float32 on the CPU; weights by the formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from formula import remotesam_state

from eo_batch.core.errors import ModelError
from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.remotesam.engine import RemoteSAMEngine, place_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
SIDE = 896
SENTENCES = ([101, 1996, 13297, 102], [101, 3719, 1999, 1996, 3746, 102])
"""Numbers of word pieces; what they mean does not matter."""


def engine(state: dict[str, Any], device: str, dtype: Any) -> RemoteSAMEngine:
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    network.load_state_dict(state)
    place_network(network.requires_grad_(False), torch.device(device), dtype)
    return RemoteSAMEngine(network, torch.device(device), dtype, together=device != "cpu")


def windows(count: int) -> Any:
    """Waves and noise, normalised."""
    y, x = torch.meshgrid(*[(torch.arange(SIDE) + 0.5) / SIDE] * 2, indexing="ij")
    waves = [torch.sin(6.28 * (1 + k % 4) * y + k) * torch.cos(6.28 * (1 + k % 5) * x + k) for k in range(3 * count)]
    noise = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return 0.9 * torch.stack(waves).reshape(count, 3, SIDE, SIDE) + 0.4 * noise


def answer(asked: RemoteSAMEngine, pixels: Any) -> Any:
    """Logits, float32 (prompt, n, side, side)."""
    prompts = []
    for sentence in SENTENCES:
        ids = torch.tensor(sentence + [0] * (20 - len(sentence)))
        prompts.append(asked.encode_sentence(ids, (ids > 0).long(), threads=torch.get_num_threads()))
    entries = asked.encode_pixels(pixels, threads=torch.get_num_threads())
    return torch.stack([torch.cat([asked.answer(entry, prompt, threads=1) for entry in entries]) for prompt in prompts])


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return remotesam_state(RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False))


@pytest.fixture(scope="module")
def truth(state: dict[str, Any]) -> Any:
    return answer(engine(state, "cpu", torch.float32), windows(2))


@pytest.fixture(autouse=True)
def memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize(
    ("dtype", "rms", "share"), [(torch.float32, 1e-4, 1e-4), (torch.float16, 0.03, 0.01), (torch.bfloat16, 0.15, 0.04)]
)
def test_logits_and_masks_are_nearly_those_of_the_cpu(
    state: dict[str, Any], truth: Any, dtype: Any, rms: float, share: float
) -> None:
    ours = answer(engine(state, "cuda", dtype), windows(2))
    assert (ours.dtype, ours.device.type) == (torch.float32, "cpu")
    error = float((ours - truth).square().mean().sqrt() / truth.std())
    differ = float(((ours > 0) != (truth > 0)).float().mean())
    print(f"{torch.cuda.get_device_name()}, {dtype}: rel-rms {error:.2e}, {differ:.4%} of the mask pixels differ")
    assert torch.isfinite(ours).all()
    assert error < rms
    assert differ < share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_repeats_itself(state: dict[str, Any], dtype: Any) -> None:
    asked = engine(state, "cuda", dtype)
    assert torch.equal(answer(asked, windows(2)), answer(asked, windows(2)))


def test_a_batch_that_does_not_fit_is_told_with_a_batch_that_does(state: dict[str, Any]) -> None:
    asked = engine(state, "cuda", torch.float32)
    pixels = windows(4)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    answer(asked, pixels[:1])
    one = torch.cuda.max_memory_allocated()
    answer(asked, pixels)
    four = torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((one + four) / 2 / total)
    try:
        with pytest.raises(ModelError, match="model-oom: .*batch of 4 windows needs") as caught:
            answer(asked, pixels)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Plan with batch" in caught.value.fix
    assert torch.isfinite(answer(asked, pixels)).all(), "the GPU can go on"
