"""Which tokens of a grid attend to which: square windows, shifted or not, padded to whole ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SHIFT_MASK = -100.0
"""Added to attention between tokens that are neighbours only because the grid was rolled."""


@dataclass(frozen=True)
class WindowBand:
    """Some rows of windows.

    Parameters
    ----------
    tokens : (n,) row-major numbers of the grid's tokens in these windows, in the order of their slots.
    slots : (n,) their places among the `count * window ** 2` slots of the windows; the others are padding.
    count : windows.
    is_padded : some slots hold no token.
    groups : (first, end, mask) of windows in a row that have the same mask (query, key), or None.
    """

    tokens: Tensor
    slots: Tensor
    count: int
    is_padded: bool
    groups: tuple[tuple[int, int, Tensor | None], ...]


@lru_cache(maxsize=64)
def window_bands(
    height: int, width: int, window: int, shift: int, band_tokens: int, device: torch.device
) -> tuple[WindowBand, ...]:
    """All windows of a grid, in bands of whole rows of windows with about `band_tokens` tokens."""
    with torch.inference_mode(False):  # what is kept must serve training too
        rows, cols = -(-height // window), -(-width // window)
        y, x = ((torch.arange(count * window) + shift) % (count * window) for count in (rows, cols))
        numbers = torch.where((y < height)[:, None] & (x < width), y[:, None] * width + x, -1)
        parts = _part(rows, window, shift)[:, None] * 3 + _part(cols, window, shift)
        numbers, parts = (grid.reshape(rows, window, cols, window).transpose(1, 2).flatten(2) for grid in (numbers, parts))
        step = max(1, round(band_tokens / (window * width)))
        return tuple(
            _band(numbers[row : row + step].flatten(0, 1), parts[row : row + step].flatten(0, 1), device)
            for row in range(0, rows, step)
        )


def _part(count: int, window: int, shift: int) -> Tensor:
    """For every row (or column) of the rolled grid: 0, in the last window 1, and 2 where it was rolled around."""
    part = torch.zeros(count * window, dtype=torch.int64)
    if shift:
        part[-window:] = 1
        part[-shift:] = 2
    return part


def _band(numbers: Tensor, parts: Tensor, device: torch.device) -> WindowBand:
    # Only the last column and the last row of windows hold parts that must not meet: windows are ordered by what they hold,
    # which the smallest and the largest part tell.
    kinds = parts.amax(1) * 9 + parts.amin(1)
    order = torch.argsort(kinds, stable=True)
    numbers, parts, kinds = numbers[order].flatten(), parts[order], kinds[order]
    slots = torch.nonzero(numbers >= 0)[:, 0]
    groups = []
    for kind in kinds.unique():
        where = torch.nonzero(kinds == kind)[:, 0]
        part = parts[where[0]]
        mask = torch.where(part[:, None] == part, 0.0, SHIFT_MASK).to(device) if len(part.unique()) > 1 else None
        groups.append((int(where[0]), int(where[-1]) + 1, mask))
    is_padded = len(slots) < len(numbers)
    return WindowBand(numbers[slots].to(device), slots.to(device), len(kinds), is_padded, tuple(groups))
