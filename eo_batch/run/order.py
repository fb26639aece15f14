"""In which order chunks are handed out: neighbours together, so that what they share is at hand.

Each time step is cut into strips, as wide as the edges of a row of chunks can be kept; in a strip chunks go row by row. Several
processes get pieces of that order, about square, for what lies between two pieces is computed by both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

Index = tuple[int, int, int]
"""(t, iy, ix) of a chunk."""

PIECES_EACH = 2
"""Pieces for each process: fewer share more. Who has none left helps with another's, so they need not be small to balance."""


@dataclass(frozen=True)
class Piece:
    """Chunks of time step `t` in the strip of columns `first` to before `last`: row by row, places `start` to before `stop`."""

    t: int
    first: int
    last: int
    start: int
    stop: int

    @property
    def width(self) -> int:
        """Chunks abreast."""
        return self.last - self.first


def groups(steps: int, chunks_yx: tuple[int, int], *, processes: int = 1, widest: int | None = None) -> Iterator[list[Index]]:
    """All chunks of a run in groups of neighbours; with one process, in rows of strips, so that few are held at a time."""
    for piece in pieces(steps, chunks_yx, processes=processes, widest=widest):
        size = piece.width if processes == 1 else piece.stop - piece.start
        for start in range(piece.start, piece.stop, size):
            yield [(piece.t, at // piece.width, piece.first + at % piece.width) for at in range(start, start + size)]


def pieces(steps: int, chunks_yx: tuple[int, int], *, processes: int = 1, widest: int | None = None) -> Iterator[Piece]:
    """What one process computes in one go: strips where there is but one, pieces of strips where there are several.

    Parameters
    ----------
    processes : that the pieces are dealt out to.
    widest : chunks abreast in a strip at most; None: as many as there are.
    """
    ny, nx = chunks_yx
    size = ny * nx if processes == 1 else min(ny * nx, max(1, steps * ny * nx // (PIECES_EACH * processes)))
    square = nx if size == ny * nx else math.ceil(math.sqrt(size))
    for t in range(steps):
        for first, last in _strips(nx, min(widest or nx, square)):
            end = (last - first) * ny
            for start in range(0, end, size):
                yield Piece(t, first, last, start, min(start + size, end))


def _strips(nx: int, width: int) -> Iterator[tuple[int, int]]:
    """`nx` columns in strips of at most `width` that are as wide as each other, or one less."""
    count = -(-nx // max(1, min(width, nx)))
    for index in range(count):
        yield index * nx // count, (index + 1) * nx // count
