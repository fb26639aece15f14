"""In which order chunks are handed out: neighbours together, so that what they share is at hand.

Each time step is cut into strips, as wide as the edges of a row of chunks can be kept; in a strip chunks go row by row. Several
processes get pieces of that order, about square, for what lies between two pieces is computed by both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Index = tuple[int, int, int]
"""(t, iy, ix) of a chunk."""


@dataclass(frozen=True)
class Piece(Sequence[Index]):
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

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, number: int) -> Index:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        at = self.start + number
        return self.t, at // self.width, self.first + at % self.width


def pieces(steps: int, chunks_yx: tuple[int, int], *, processes: int = 1, widest: int | None = None) -> Iterator[Piece]:
    """What one process computes in one go: strips where there is but one, pieces of strips where there are several.

    Parameters
    ----------
    processes : that the pieces are dealt out to.
    widest : chunks abreast in a strip at most; None: as many as there are.
    """
    ny, nx = chunks_yx
    size = ny * nx if processes == 1 else min(ny * nx, max(1, -(-steps * ny * nx // processes)))
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
