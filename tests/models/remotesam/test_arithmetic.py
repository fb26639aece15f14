"""The fast ways of computing parts of the network against plain ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
