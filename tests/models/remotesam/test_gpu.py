"""The published size on a GPU against float32 on the CPU; weights by the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from formula import remotesam_state

from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


def answer(network: RemoteSAM) -> Any:
    some = next(network.parameters())
    pixels = torch.randn(1, 3, 896, 896, generator=torch.Generator().manual_seed(1)).to(some)
    ids = torch.tensor([[101, 1996, 13297, 102] + [0] * 16, [101, 3719, 1999, 1996, 3746, 102] + [0] * 14])
    prompts = network.encode_text(ids.to(some.device), (ids > 0).long().to(some.device))
    return network.decode(network.encode_windows(pixels), prompts).cpu()


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    return remotesam_state(RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False))


@pytest.fixture(scope="module")
def truth(state: dict[str, Any]) -> Any:
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    network.load_state_dict(state)
    return answer(network)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1e-3), (torch.float16, 0.01), (torch.bfloat16, 0.03)])
def test_masks_are_nearly_those_of_the_cpu(state: dict[str, Any], truth: Any, dtype: Any, share: float) -> None:
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    network.load_state_dict(state)
    ours = answer(network.to("cuda", dtype))
    differ = float((ours.argmax(2) != truth.argmax(2)).float().mean())
    print(f"{torch.cuda.get_device_name()}, {dtype}: {differ:.4%} of the pixels differ")
    assert torch.isfinite(ours).all()
    assert differ < share


def test_a_gpu_repeats_itself(state: dict[str, Any]) -> None:
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    network.load_state_dict(state)
    network.to("cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        assert torch.equal(answer(network), answer(network))
