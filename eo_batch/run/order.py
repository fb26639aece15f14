"""In which order chunks are handed out: neighbours together, so that what they share is at hand.

Each time step is cut into strips, as wide as the edges of a row of chunks can be kept; in a strip chunks go row by row. What is
dealt out to worker processes are pieces of that order: large and about square at first, for what two pieces share is computed
by both; smaller and smaller towards the end, so that nobody waits long for the last one (Flynn Hummel, Schonberg and Flynn 1992,
doi:10.1145/135226.135232).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

Index = tuple[int, int, int]
"""(t, iy, ix) of a chunk."""

ROUNDS = 2
"""Pieces that each process would get if all were as large as the next one."""


def groups(steps: int, chunks_yx: tuple[int, int], *, processes: int = 1, widest: int | None = None) -> Iterator[list[Index]]:
    """All chunks of a run in groups of neighbours; a process that takes consecutive groups goes on where it was.

    Parameters
    ----------
    processes : that the groups are dealt out to. With one, a group is a row of a strip.
    widest : chunks abreast in a strip at most; None: as many as there are.
    """
    ny, nx = chunks_yx
    left = steps * ny * nx
    for t in range(steps):
        size = ny * nx if processes == 1 else _share(left, processes)
        square = nx if size >= ny * nx else math.ceil(math.sqrt(size))
        for first, last in _strips(nx, min(widest or nx, square)):
            width = last - first
            done = 0
            while done < width * ny:
                some = min(width if processes == 1 else _share(left, processes), width * ny - done)
                yield [(t, place // width, first + place % width) for place in range(done, done + some)]
                done += some
                left -= some


def _share(left: int, processes: int) -> int:
    return max(1, left // (ROUNDS * processes))


def _strips(nx: int, width: int) -> Iterator[tuple[int, int]]:
    """`nx` columns in strips of at most `width` that are as wide as each other, or one less."""
    count = -(-nx // max(1, min(width, nx)))
    for index in range(count):
        yield index * nx // count, (index + 1) * nx // count
