"""The fast ways of computing against torch's plain ones."""

from __future__ import annotations

import pytest
import torch

from eo_batch.models import arithmetic
from eo_batch.models.arithmetic import by_rows, is_fast, linear, plain_arithmetic


@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "relu", "tanh"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_layers_agree(activation: str, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(2, 50, 24, generator=generator), torch.randn(16, 24, generator=generator)
    bias = torch.randn(16, generator=generator) if has_bias else None
    with torch.no_grad():
        fast = linear(x, weight, bias, activation=activation)
        with plain_arithmetic():
            plain = linear(x, weight, bias, activation=activation)
    assert fast.shape == (2, 50, 16)
    assert torch.allclose(fast, plain, atol=1e-5)


def test_the_fast_way_is_taken_on_a_cpu_without_gradients_only() -> None:
    x = torch.zeros(1)
    assert not is_fast(x)
    with torch.no_grad():
        assert is_fast(x)
        assert not is_fast(x.bfloat16())
        assert not is_fast(x.to("meta"))
        with plain_arithmetic():
            assert not is_fast(x)
        assert is_fast(x)


@pytest.mark.parametrize("count", [1, arithmetic.ROWS, 2 * arithmetic.ROWS + 5])
def test_rows_come_back_in_their_places(count: int) -> None:
    x, y = torch.arange(2.0 * count * 3).reshape(2, count, 3), torch.arange(2.0 * count).reshape(2, count, 1)
    with torch.no_grad():
        first, second = by_rows(lambda x, y: (x * y, y + 1), x, y)
    assert torch.equal(first, x * y)
    assert torch.equal(second, y + 1)
