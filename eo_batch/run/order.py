"""In which order chunks are handed out: neighbours together, so that what they share is at hand."""

from __future__ import annotations

from collections.abc import Iterator

Index = tuple[int, int, int]
"""(t, iy, ix) of a chunk."""


def groups(steps: int, chunks_yx: tuple[int, int]) -> Iterator[list[Index]]:
    """All chunks of a run in groups of neighbours: here rows of chunks, step by step."""
    ny, nx = chunks_yx
    for t in range(steps):
        for iy in range(ny):
            yield [(t, iy, ix) for ix in range(nx)]
