"""Which chunks a pilot computes, and how many chunks each of them stands for.

Systematic sampling with probability proportional to planned work (Madow 1949, Ann. Math. Stat. 20, 333): chunks lie one after the
other along a curve that keeps neighbours together, step after step, each as long as its planned work, and are picked at equal
distances. So heavy and light chunks, all parts of the region and all time steps come in their share, the same ones every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.run.order import Index

IDLE_SHARE = 10
"""One chunk in so many of a pilot is one that no scene touches, where there are such."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Chunks of a pilot.

    Parameters
    ----------
    chunks : (t, iy, ix) of each.
    stands_for : chunks that each stands for: one over the probability that it was picked. float64 (chunk).
    is_idle : no scene touches it: these are picked apart from the others. bool (chunk).
    """

    chunks: tuple[Index, ...]
    stands_for: NDArray[np.float64]
    is_idle: NDArray[np.bool_]

    def part(self, picked: NDArray[np.bool_]) -> Sample:
        """Those of the chunks that are `picked`; within each kind they stand for the others too."""
        chunks = tuple(chunk for chunk, is_in in zip(self.chunks, picked, strict=True) if is_in)
        stands_for = self.stands_for.copy()
        for kind in (True, False):
            of_kind = self.is_idle == kind
            left = np.count_nonzero(of_kind & picked)
            if left:
                stands_for[of_kind] *= np.count_nonzero(of_kind) / left
        return Sample(chunks, stands_for[picked], self.is_idle[picked])


def choose_sample(loads: NDArray[np.float32], count: int) -> Sample:
    """At most `count` chunks of a run.

    Parameters
    ----------
    loads : planned work of each chunk, in any unit; 0 where no scene touches it. (step, chunk row, chunk column).
    """
    steps, ny, nx = loads.shape
    curve = _curve(ny, nx)
    along = np.concatenate([t * ny * nx + (curve if t % 2 == 0 else curve[::-1]) for t in range(steps)])
    work = loads.reshape(-1)[along].astype(np.float64)
    idle, busy = along[work == 0], along[work > 0]
    few = min(len(idle), max(1, count // IDLE_SHARE)) if len(idle) and (count > 1 or not len(busy)) else 0
    picked_busy, for_busy = _pick(work[work > 0], min(count - few, len(busy)))
    picked_idle, for_idle = _pick(np.ones(len(idle)), few)
    flat = np.concatenate([busy[picked_busy], idle[picked_idle]])
    where = np.unravel_index(flat, loads.shape)
    chunks = tuple((int(t), int(iy), int(ix)) for t, iy, ix in zip(*where, strict=True))
    is_idle = np.repeat([False, True], [len(picked_busy), len(picked_idle)])
    return Sample(chunks, np.concatenate([for_busy, for_idle]), is_idle)


def _pick(work: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions at equal distances along the work, and how many each stands for."""
    if count <= 0:
        return np.zeros(0, np.int64), np.zeros(0)
    if count >= len(work):
        return np.arange(len(work)), np.ones(len(work))
    length = work
    while length.max() > length.sum() / count * (1 + 1e-9):  # none may be picked twice: what is longer than a step is cut to one
        length = np.minimum(length, length.sum() / count)
    ends = np.cumsum(length)
    step = ends[-1] / count
    positions = np.minimum(np.searchsorted(ends, (np.arange(count) + 0.5) * step), len(work) - 1)
    return positions, step / length[positions]


def _curve(ny: int, nx: int) -> NDArray[np.int64]:
    """Flat indices of a grid along Morton's curve (1966): cells that follow each other lie near each other."""
    iy, ix = np.divmod(np.arange(ny * nx, dtype=np.int64), nx)
    return np.argsort(_spread(iy) << 1 | _spread(ix), kind="stable")


def _spread(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each bit of `values` at twice its place."""
    out = np.zeros_like(values)
    for bit in range(int(values.max(initial=0)).bit_length()):
        out |= (values >> bit & 1) << 2 * bit
    return out
