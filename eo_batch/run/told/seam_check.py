"""Looks for seams in a finished map: do neighbouring pixels differ more often across the border of two chunks than beside it?

A border is compared with lines of pixels whole strides away from it: these have the same place among the windows of the lattice,
which leave traces of their own that no chunk size changes. The figures are made from the files of the run alone, so they do not
trust the code that made them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION, SCORE_STEPS
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Grid
from eo_batch.outputs.cube import decode_shard, shard_path
from eo_batch.outputs.store import Store

BORDERS = 48
"""Borders that are looked at, half of them upright; spread over the region."""
LINES = 8
"""Lines on each side of a border that it is compared with."""
FEW = 30
"""Fewer changes than this near the borders tell nothing."""
DEVIATIONS = 5.0
"""A border stands out where it lies so many standard deviations above the lines of pixels beside it, and above them all."""

Border = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Indices (t, iy, ix) of a chunk and of its neighbour to the right or below."""


@dataclass(frozen=True)
class SeamFigures:
    """What one prompt's map does at the borders of chunks.

    Parameters
    ----------
    borders : looked at.
    across, beside : share of pixel pairs whose mask changes across a border, and along the lines of pixels beside it.
    deviations : how far `across` lies above `beside`, in standard deviations of those lines.
    score_across, score_beside : mean change of the score; None where no scores were kept.
    verdict : "none", "seen", or "unknown" where too little changes.
    """

    prompt: str
    borders: int
    across: float
    beside: float
    deviations: float
    score_across: float | None
    score_beside: float | None
    verdict: str


def check_seams(store: Store, grid: Grid, prompts: Sequence[str], made: NDArray[np.bool_], *, scores: bool) -> list[SeamFigures]:
    """Figures of each prompt; none where no two chunks lie side by side.

    Parameters
    ----------
    made : bool (t, iy, ix): the chunk is finished and something was observed in it.
    scores : the run kept scores.
    """
    borders = _borders(made)
    if not borders:
        return []
    return [_figures(store, grid, index, text, borders, scores) for index, text in enumerate(prompts)]


def _figures(store: Store, grid: Grid, prompt: int, text: str, borders: list[Border], scores: bool) -> SeamFigures:
    mask = _lines(store, grid, "mask", prompt, borders)
    score = _lines(store, grid, "score", prompt, borders) if scores else None
    verdicts = [lines.verdict for lines in (mask, score) if lines is not None]
    return SeamFigures(
        prompt=text,
        borders=len(borders),
        across=mask.across,
        beside=mask.beside,
        deviations=mask.deviations,
        score_across=None if score is None else score.across / SCORE_STEPS,
        score_beside=None if score is None else score.beside / SCORE_STEPS,
        verdict=next((verdict for verdict in ("seen", "none") if verdict in verdicts), "unknown"),
    )


@dataclass(frozen=True, eq=False)
class _Lines:
    """Lines between two rows of pixels, the border in the middle of them: pairs that change, sums of changes, observed pairs."""

    changes: NDArray[np.int64]
    steps: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @property
    def _rates(self) -> NDArray[np.float64]:
        return self.steps / np.maximum(self.pairs, 1)

    @property
    def _others(self) -> NDArray[np.float64]:
        middle = len(self.pairs) // 2
        return np.delete(self._rates, middle)[np.delete(self.pairs, middle) > 0]

    @property
    def across(self) -> float:
        return float(self._rates[len(self.pairs) // 2])

    @property
    def beside(self) -> float:
        return float(self._others.mean()) if len(self._others) else 0.0

    @property
    def deviations(self) -> float:
        spread = float(self._others.std()) if len(self._others) else 0.0
        return (self.across - self.beside) / spread if spread > 0 else 0.0

    @property
    def verdict(self) -> str:
        if self.changes.sum() < FEW or not len(self._others):
            return "unknown"
        stands_out = self.deviations > DEVIATIONS and self.across > 1.2 * float(self._others.max())
        return "seen" if stands_out else "none"


def _lines(store: Store, grid: Grid, array: str, prompt: int, borders: list[Border]) -> _Lines:
    offsets = _offsets(grid)
    changes = np.zeros(len(offsets), np.int64)
    steps, pairs = np.zeros_like(changes), np.zeros_like(changes)

    @lru_cache(maxsize=4)
    def shard(t: int, iy: int, ix: int) -> NDArray[np.uint8] | None:
        try:
            return decode_shard(store.get(shard_path(array, prompt, grid.chunk(t, iy, ix))), grid)
        except (FileNotFoundError, IntegrityError):  # verify names it; here it is a border less
            return None

    for first, second in borders:
        here, there = shard(*first), shard(*second)
        if here is None or there is None:
            continue
        if first[2] == second[2]:
            here, there = here.T, there.T
        both = np.concatenate([here, there], axis=1)
        at = grid.chunk_px + offsets
        left, right = both[:, at - 1].astype(np.int16), both[:, at].astype(np.int16)
        seen = (left < NO_OBSERVATION) & (right < NO_OBSERVATION)
        step = np.abs(left - right) * seen
        changes += (step > 0).sum(axis=0)
        steps += step.sum(axis=0)
        pairs += seen.sum(axis=0)
    return _Lines(changes, steps, pairs)


def _offsets(grid: Grid) -> NDArray[np.int64]:
    """Pixels from a border to the lines that are looked at, itself in the middle.

    Where chunks are smaller than a stride, there is no line at the same place of the lattice, and the nearest ones must do.
    """
    apart = grid.stride_px if 2 * grid.stride_px < grid.chunk_px else 1
    count = min(LINES, (grid.chunk_px - 1) // apart)
    return np.arange(-count, count + 1) * apart


def _borders(made: NDArray[np.bool_]) -> list[Border]:
    """Borders between finished chunks, evenly drawn from all of them, always the same ones."""
    upright = [((t, y, x), (t, y, x + 1)) for t, y, x in _spread(made[:, :, :-1] & made[:, :, 1:])]
    level = [((t, y, x), (t, y + 1, x)) for t, y, x in _spread(made[:, :-1] & made[:, 1:])]
    return [*upright, *level]


def _spread(where: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    found = np.argwhere(where)
    for position in np.unique(np.linspace(0, len(found) - 1, min(len(found), BORDERS // 2)).astype(int)) if len(found) else ():
        t, y, x = found[position].tolist()
        yield t, y, x
