"""What a whole takes, from some of its chunks: totals, what follows from them, and how far chance may have moved them.

A total is the sum over the pilot of (figure of a chunk) x (chunks it stands for): Horvitz and Thompson (1952, J. Am. Stat. Assoc.
47, 663). Its range holds the truth in 8 of 10 pilots: the pilot's chunks are drawn anew with replacement, many times (Efron 1979,
Ann. Stat. 7, 1), each time as many, chunks with work and idle ones apart. Two corrections, on a logarithmic scale so that nothing
becomes negative and long tails stay long: few chunks vary less than they should, by n/(n-1) and Student's t for n-1 against
the normal distribution; and chunks that are in the pilot are no longer uncertain, by 1 - (share of the run that they are).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.run.cost.sample import Sample

DRAWS = 2000
"""Times that the pilot is drawn anew."""
INSIDE = 0.8
"""Share of pilots whose range holds the truth."""

Figures = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Range:
    """A figure, and the range that holds it in `INSIDE` of all pilots."""

    low: float
    middle: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """As JSON values."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}


def estimate(sample: Sample, of_chunks: Figures, follow: Callable[[Figures], Figures]) -> dict[str, Range]:
    """Ranges of what follows from the totals of a run.

    Parameters
    ----------
    of_chunks : name -> figure of each chunk of the pilot, 0 or more. float64 (chunk).
    follow : gives the wanted figures from totals; both arrays of any one length.
    """
    names = list(of_chunks)
    weighted = np.stack([np.asarray(of_chunks[name], np.float64) * sample.stands_for for name in names], axis=1)
    random = np.random.default_rng(0)  # a seed, so that a pilot says the same twice
    drawn = np.zeros((DRAWS, len(names)))
    for idle in (False, True):
        rows = weighted[sample.is_idle == idle]
        if len(rows):
            drawn += rows[random.integers(0, len(rows), (DRAWS, len(rows)))].sum(axis=1)

    def figures(totals: NDArray[np.float64]) -> Figures:
        return follow(dict(zip(names, totals.T, strict=True)))

    middles, draws, widen = figures(weighted.sum(axis=0)[None]), figures(drawn), _widening(sample)
    return {name: _range(float(middles[name][0]), np.asarray(draws[name]), widen) for name in middles}


def _range(middle: float, draws: NDArray[np.float64], widen: float) -> Range:
    draws = draws[draws > 0]
    if middle <= 0 or not len(draws):
        return Range(middle, middle, middle)
    low, high = np.quantile(np.log(draws / middle), [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return Range(middle * math.exp(min(low * widen, 0.0)), middle, middle * math.exp(max(high * widen, 0.0)))


def _widening(sample: Sample) -> float:
    """By what the spread of the draws is multiplied."""
    busy = sample.stands_for[~sample.is_idle] if (~sample.is_idle).any() else sample.stands_for
    count = len(busy)
    if count < 2:
        return 1.0
    certain = float(np.mean(1.0 / np.maximum(busy, 1.0)))
    normal = 1.2816
    student = normal * (1 + (normal**2 + 1) / (4 * (count - 1)))  # its first term (Fisher 1926): exact enough from 3 chunks on
    return student / normal * math.sqrt(count / (count - 1) * max(1.0 - certain, 0.0))
