"""The fast ways of computing against torch's plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from eo_batch.models.remotesam import arithmetic
from eo_batch.models.remotesam.arithmetic import by_rows, is_fast, linear, plain_arithmetic
from eo_batch.models.remotesam.rotated import Router
from eo_batch.models.remotesam.windows import window_bands
from eo_batch.models.remotesam.winograd import convolve


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 4), (5, 7), (28, 28), (30, 61), (225, 224)])
def test_winograd_is_a_convolution(height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(height, width, 24, generator=generator)
    weight, shift = torch.randn(16, 24, 3, 3, generator=generator), torch.randn(16, generator=generator)
    truth = F.relu(F.conv2d(x.permute(2, 0, 1)[None].double(), weight.double(), shift.double(), padding=1))[0].permute(1, 2, 0)
    ours = torch.full((height, width, 16), torch.nan)
    convolve((x[..., :10], x[..., 10:]), weight, shift, ours)
    assert (ours - truth).square().mean().sqrt() < 1e-5 * truth.square().mean().sqrt()


@pytest.mark.parametrize("activation", ["none", "gelu", "relu", "tanh"])
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


def test_the_angle_of_a_large_map_is_known_in_half_precision_too() -> None:
    torch.manual_seed(4)
    router = Router(16)
    with torch.no_grad():
        router.norm.norm.weight.fill_(4)  # sums over the map are larger than float16 can hold
        x = torch.randn(1, 16, 224, 224)
        truth = router(x)
        ours = router.half()(x.half())
    for value, exact in zip(ours, truth, strict=True):
        assert value.dtype == torch.float32
        assert torch.allclose(value, exact, atol=1e-3)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("band_tokens", [1, 100, 10_000])
@pytest.mark.parametrize(("height", "width"), [(4, 5), (12, 12), (13, 20)])
def test_bands_of_windows_hold_every_token_once_beside_its_neighbours(
    height: int, width: int, band_tokens: int, shift: int
) -> None:
    window, seen = 6, set()
    for band in window_bands(height, width, window, shift, band_tokens, torch.device("cpu")):
        for token, slot in zip(band.tokens.tolist(), band.slots.tolist(), strict=True):
            seen.add(token)
            number, place = divmod(slot, window**2)
            mask = next(mask for first, end, mask in band.groups if first <= number < end)
            others = [t for t, s in zip(band.tokens.tolist(), band.slots.tolist(), strict=True) if s // window**2 == number]
            places = [s % window**2 for s in band.slots.tolist() if s // window**2 == number]
            for other, other_place in zip(others, places, strict=True):
                is_heard = mask is None or bool(mask[place, other_place] == 0)
                near = all(
                    (a - shift) // window == (b - shift) // window
                    for a, b in zip(divmod(token, width), divmod(other, width), strict=True)
                )
                assert is_heard == near
    assert seen == set(range(height * width))
