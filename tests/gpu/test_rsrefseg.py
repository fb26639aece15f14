"""A small RSRefSeg on a GPU, as a run uses it, against float32 on the CPU; weights by the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tinyref import SIDE, tiny_config, upstream_state

from eo_batch.models.rsrefseg import RSRefSeg
from eo_batch.models.rsrefseg.engine import RSRefSegEngine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]
DEVICE = "cuda"
SENTENCES = ([4, 9, 21, 1], [7, 1], [30, 3, 3, 12, 8, 25, 1])
"""Numbers of word pieces; what they mean does not matter."""


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return upstream_state()


def engine(state: dict[str, Any], device: str, dtype: Any) -> RSRefSegEngine:
    network = RSRefSeg.from_upstream(state, tiny_config()).requires_grad_(False)
    network.place(torch.device(device), dtype)
    return RSRefSegEngine(network, torch.device(device), dtype, together=device != "cpu")


def windows(count: int) -> Any:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def answer(asked: RSRefSegEngine, pixels: Any) -> Any:
    """Logits, float32 (prompt, n, side, side)."""
    prompts = [asked.encode_sentence(torch.tensor(sentence), threads=1) for sentence in SENTENCES]
    entries = asked.encode_pixels(pixels, threads=1)
    made = [torch.cat([asked.answer(entry, prompt, (SIDE, SIDE), threads=1) for entry in entries]) for prompt in prompts]
    return torch.stack(made)


@pytest.mark.parametrize(
    ("dtype", "rms", "share"), [(torch.float32, 1e-4, 1e-3), (torch.float16, 0.03, 0.02), (torch.bfloat16, 0.15, 0.08)]
)
def test_logits_and_masks_are_nearly_those_of_the_cpu(state: dict[str, Any], dtype: Any, rms: float, share: float) -> None:
    truth = answer(engine(state, "cpu", torch.float32), windows(3))
    ours = answer(engine(state, DEVICE, dtype), windows(3))
    assert (ours.dtype, ours.device.type) == (torch.float32, "cpu")
    assert torch.isfinite(ours).all()
    assert float((ours - truth).square().mean().sqrt() / truth.std()) < rms
    assert float(((ours > 0) != (truth > 0)).float().mean()) < share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_repeats_itself(state: dict[str, Any], dtype: Any) -> None:
    asked = engine(state, DEVICE, dtype)
    assert torch.equal(answer(asked, windows(3)), answer(asked, windows(3)))


def test_windows_together_are_nearly_windows_apart(state: dict[str, Any]) -> None:
    asked, pixels = engine(state, DEVICE, torch.float32), windows(3)
    alone = torch.cat([answer(asked, window) for window in pixels.split(1)], 1)
    assert torch.allclose(answer(asked, pixels), alone, atol=1e-3)
