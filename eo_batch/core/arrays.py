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
    # logits at which round(250 * sigmoid) steps up: a search over 250 edges is exact and the same on every CPU,
    # where exp() may differ in its last bit between vector widths.
    codes = np.searchsorted(_EDGES, logits, side="right").astype(np.uint8)
    codes[:, ~valid] = NO_OBSERVATION
    return codes


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
    least = np.ceil(np.asarray(thresholds) * SCORE_STEPS - 1e-9).astype(np.uint8)
    masks = (scores >= least[:, None, None]).astype(np.uint8)
    masks[scores == NO_OBSERVATION] = NO_OBSERVATION
    return masks


def _edges() -> NDArray[np.float32]:
    share = (np.arange(SCORE_STEPS) + 0.5) / SCORE_STEPS
    return np.log(share / (1 - share)).astype(np.float32)


_EDGES = _edges()
