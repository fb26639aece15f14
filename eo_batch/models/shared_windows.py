"""Answers to windows that neighbouring chunks share: whoever comes first computes, the others take.

A window's answer is a function of what the segmenter sees in it, so what a neighbour computed is, to the bit, what this chunk
would compute. Only the edge is kept, only until the last chunk that reaches into it had its turn, and never more than a budget.

Nobody waits while others wait for it: a chunk holds claims only while it computes them, and takes what others compute when it
has published its own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.grid import Chunk, Grid, Span, Window

STEPS_REMEMBERED = 2
"""Time steps whose finished chunks are remembered: the one that ends and the one that begins."""

_Place = tuple[int, int, int]
_ChunkIndex = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Answer:
    """Logits of a part of a window: float32 (prompt, y, x) over `rows` x `cols`, absolute pixels."""

    logits: NDArray[np.float32]
    rows: Span
    cols: Span


@dataclass(eq=False)
class _Edge:
    """One shared window: claimed while `answer` is None, then kept for the chunks that are `left`.

    Parameters
    ----------
    left : chunks (iy, ix) that have not had their turn; the answer holds what each of them needs.
    seen : digest of what the segmenter was shown: pixels at one place differ only where files come and go during a run.
    users : visits that wait for it or read it: it is not let go before they have.
    is_gone : it will not come, or was let go.
    """

    seen: bytes
    left: set[_ChunkIndex]
    answer: Answer | None = None
    users: int = 0
    is_gone: bool = False


class SharedWindows:
    """Answers that the chunks of one run share in one process; used by all its threads at once.

    Parameters
    ----------
    grid : of the run.
    budget : most bytes that are held; what was used longest ago goes first.
    """

    def __init__(self, grid: Grid, *, budget: int) -> None:
        self.grid, self.budget = grid, budget
        self.held = self.most_held = 0
        self._edges: OrderedDict[_Place, _Edge] = OrderedDict()
        self._finished: OrderedDict[int, NDArray[np.bool_]] = OrderedDict()
        self._changed = threading.Condition()

    def visit(self, chunk: Chunk) -> Visit:
        """The turn of a chunk, a context manager: after it, nothing is kept for this chunk any more."""
        return Visit(self, chunk)

    def _claim(self, chunk: Chunk, window: Window, image: NDArray[np.float32]) -> Claim:
        place = (chunk.t, window.row, window.col)
        index = (chunk.iy, chunk.ix)
        others = set(self.grid.chunks_touching(window)) - {index}
        if not others or not self.budget:
            return Claim(self, chunk, window)
        seen = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        with self._changed:
            edge = self._edges.get(place)
            if edge is None:
                left = {other for other in others if not self._is_finished(chunk.t, other)}
                if not left:
                    return Claim(self, chunk, window)
                edge = self._edges[place] = _Edge(seen, left)
                return Claim(self, chunk, window, edge)
            if edge.seen != seen or index not in edge.left:  # other pixels; or its part is not kept: it had its turn before
                return Claim(self, chunk, window)
            edge.users += 1
            self._edges.move_to_end(place)
            return Claim(self, chunk, window, edge, is_mine=False)

    def _publish(self, place: _Place, edge: _Edge, window: Window, logits: NDArray[np.float32]) -> None:
        with self._changed:
            rows, cols = self._reach(window, edge.left)
            if self._make_room(len(logits) * len(rows) * len(cols) * logits.itemsize):
                part = logits[:, rows.within(window.rows), cols.within(window.cols)].copy()
                edge.answer = Answer(part, rows, cols)
                self.held += part.nbytes
                self.most_held = max(self.most_held, self.held)
                self._changed.notify_all()
            else:
                self._let_go(place, edge)

    def _reach(self, window: Window, left: set[_ChunkIndex]) -> tuple[Span, Span]:
        """Smallest rectangle of the window that holds all that these chunks need of it."""
        if not left:
            return Span(0, 0), Span(0, 0)
        chunks = [self.grid.chunk(0, *index) for index in left]
        rows = [chunk.rows.intersect(window.rows) for chunk in chunks]
        cols = [chunk.cols.intersect(window.cols) for chunk in chunks]
        return (
            Span(min(span.start for span in rows), max(span.stop for span in rows)),
            Span(min(span.start for span in cols), max(span.stop for span in cols)),
        )

    def _make_room(self, size: int) -> bool:
        """Let go of what was used longest ago until `size` bytes fit; False where they cannot, or where nobody wants them."""
        if not 0 < size <= self.budget:
            return False
        for place, edge in list(self._edges.items()):
            if self.held + size <= self.budget:
                break
            if edge.answer is not None and not edge.users:
                self._let_go(place, edge)
        return self.held + size <= self.budget

    def _let_go(self, place: _Place, edge: _Edge) -> None:
        if edge.answer is not None:
            self.held -= edge.answer.logits.nbytes
        edge.answer, edge.is_gone = None, True
        if self._edges.get(place) is edge:
            del self._edges[place]
        self._changed.notify_all()

    def _wait(self, edge: _Edge, index: _ChunkIndex) -> Answer | None:
        with self._changed:
            self._changed.wait_for(lambda: edge.answer is not None or edge.is_gone)
            return edge.answer if index in edge.left else None  # another visit of the chunk may have ended: its part is not kept

    def _release(self, place: _Place, edge: _Edge, *, is_mine: bool) -> None:
        with self._changed:
            if not is_mine:
                edge.users -= 1
            elif edge.answer is None:
                self._let_go(place, edge)

    def _leave(self, chunk: Chunk) -> None:
        index = (chunk.iy, chunk.ix)
        with self._changed:
            self._finish(chunk.t, index)
            for window in self.grid.windows(chunk):
                place = (chunk.t, window.row, window.col)
                edge = self._edges.get(place)
                if edge is not None:
                    edge.left.discard(index)
                    if edge.answer is not None and not edge.left and not edge.users:
                        self._let_go(place, edge)

    def _finish(self, t: int, index: _ChunkIndex) -> None:
        if t not in self._finished:
            self._finished[t] = np.zeros(self.grid.chunks_yx, bool)
            if len(self._finished) > STEPS_REMEMBERED:
                self._finished.popitem(last=False)
        self._finished[t][index] = True

    def _is_finished(self, t: int, index: _ChunkIndex) -> bool:
        return t in self._finished and bool(self._finished[t][index])


class Claim:
    """What a chunk may do about one window: compute it (`is_mine`), or take the answer of another.

    Parameters
    ----------
    chunk : whose claim it is.
    edge : what it shares; None: it computes for itself alone.
    """

    def __init__(
        self, shared: SharedWindows, chunk: Chunk, window: Window, edge: _Edge | None = None, *, is_mine: bool = True
    ) -> None:
        self.window, self.is_mine = window, is_mine
        self._shared, self._edge = shared, edge
        self._place, self._index = (chunk.t, window.row, window.col), (chunk.iy, chunk.ix)

    def publish(self, logits: NDArray[np.float32]) -> None:
        """Keep what others want of the answer, float32 (prompt, y, x) over the window, and let those go on who wait for it."""
        if self._edge is not None:
            self._shared._publish(self._place, self._edge, self.window, logits)

    def wait(self) -> Answer | None:
        """The answer of another; None where it failed, or where there was no room for it. Only without claims of one's own."""
        assert self._edge is not None
        assert not self.is_mine
        return self._shared._wait(self._edge, self._index)

    def release(self) -> None:
        """Done with it, whatever came of it."""
        edge, self._edge = self._edge, None
        if edge is not None:
            self._shared._release(self._place, edge, is_mine=self.is_mine)


class Visit:
    """The turn of one chunk; counts the windows that it computed and those that it took."""

    def __init__(self, shared: SharedWindows, chunk: Chunk) -> None:
        self.computed = self.taken = 0
        self.chunk, self._shared = chunk, shared
        self._claims: list[Claim] = []

    def claim(self, window: Window, image: NDArray[np.float32]) -> Claim:
        """Who computes a window of the chunk that the segmenter would be shown as `image`, float32 (band, y, x)."""
        claim = self._shared._claim(self.chunk, window, image)
        self._claims.append(claim)
        return claim

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for claim in self._claims:
            claim.release()
        self._shared._leave(self.chunk)
