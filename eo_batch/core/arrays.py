"""The numbers that pixels of the result may hold, and the one rule that turns logits into them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NO = 0
"""Mask value: observed, and not what the prompt asks for."""
YES = 1
"""Mask value: observed, and what the prompt asks for."""
NO_OBSERVATION = 254
"""Mask and score value: no valid observation, or outside the region."""
NOT_COMPUTED = 255
"""Mask and score value, and fill value of the cube: nobody has computed this pixel."""
SCORE_STEPS = 250
"""A stored score is round(250 x score): 0..250, steps of 0.004."""


def quantise_scores(logits: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Scores as stored: `round(250 * sigmoid(logit))`, 254 where not `valid`.

    Parameters
    ----------
    logits : float32 (prompt, y, x), finite where `valid`.
    valid : bool (y, x).

    Returns
    -------
    uint8 (prompt, y, x).
    """
    codes = np.empty(logits.shape, np.uint8)
    source, target = logits.reshape(-1), codes.reshape(-1)
    for start in range(0, source.size, _BLOCK):
        target[start : start + _BLOCK] = _steps(source[start : start + _BLOCK])
    np.copyto(codes, np.uint8(NO_OBSERVATION), where=~valid)
    return codes


def least_step(threshold: float) -> int:
    """Least stored score that reaches `threshold`: ceil(250 x threshold), so 100 for 0.4 and 101 for 0.401."""
    return int(np.ceil(threshold * SCORE_STEPS - 1e-9))


def decide(scores: NDArray[np.uint8], thresholds: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Masks of stored scores: 1 where the stored score reaches the prompt's threshold, 254 where there is none.

    The decision uses the stored (quantised) score, so a mask can be made again from a stored score cube.

    Parameters
    ----------
    scores : uint8 (prompt, y, x) from `quantise_scores`.
    thresholds : float64 (prompt,), each in (0, 1).

    Returns
    -------
    uint8 (prompt, y, x) of 0, 1 and 254.
    """
    least = np.array([least_step(threshold) for threshold in thresholds], np.uint8)
    masks = (scores >= least[:, None, None]).astype(np.uint8)
    masks[scores == NO_OBSERVATION] = NO_OBSERVATION
    return masks


# Logits at which round(250 * sigmoid) steps up. Comparing with 250 edges is exact and the same on every CPU, where exp()
# may differ in its last bit between vector widths.
_EDGES = np.log((np.arange(SCORE_STEPS) + 0.5) / (SCORE_STEPS - np.arange(SCORE_STEPS) - 0.5)).astype(np.float32)
_BINS_PER_LOGIT = np.float32(64)
_OUTERMOST = np.float32(7)
_BLOCK = 1 << 16


def _bins(logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Bin of width 1/64 of each logit, rising with the logit; NaN and everything below -7 is in the first one."""
    near = np.fmin(np.fmax(logits, -_OUTERMOST), _OUTERMOST)
    return ((near + _OUTERMOST) * _BINS_PER_LOGIT).astype(np.intp)


def _steps(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Number of edges at or below each logit: those of lower bins, and the one of its own bin if that is reached."""
    bins = _bins(logits)
    return _STEPS_BEFORE.take(bins) + (logits >= _EDGE_WITHIN.take(bins))


def _bin_tables() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Edges in lower bins, uint8 (bin,), and the edge in each bin (NaN: none, nothing reaches it), float32 (bin,)."""
    count = int(2 * _OUTERMOST * _BINS_PER_LOGIT) + 1
    within = _bins(_EDGES)
    assert len(set(within.tolist())) == len(_EDGES), "two edges in one bin"
    edge = np.full(count, np.nan, np.float32)
    edge[within] = _EDGES
    return np.searchsorted(within, np.arange(count), side="left").astype(np.uint8), edge


_STEPS_BEFORE, _EDGE_WITHIN = _bin_tables()
