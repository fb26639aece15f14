"""Which worker gets which task next. Knows nothing of Dask: a worker is a name.

Neighbours stay together: a worker has a hand, a group of tasks that it works through. With an empty hand it takes the next
group, and when there are no more groups, the tail half of the longest hand. A group is never copied: of a million tasks only
those are made that are handed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

Task = tuple[Any, ...]
Group = Sequence[Task | None]
"""Tasks that lie side by side: best computed one after the other by one worker process. None where nothing is to be done."""


FEW = 8
"""A worker with no more tasks in its hand is near its end: others will want to help it with all of them."""


class Deal:
    """Deals the tasks of groups out to workers that come and go.

    Parameters
    ----------
    groups : one group after the other; taken only when a worker needs it.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self._groups = iter(groups)
        self._returned: deque[_Hand] = deque()
        self._hands: dict[Hashable, _Hand] = {}
        self._has_groups = True

    @property
    def is_done(self) -> bool:
        """Every task was taken."""
        return not (self._has_groups or self._returned or any(self._hands.values()))

    def has_more(self, worker: Hashable) -> bool:
        """`worker` will hardly run out of tasks soon: one can be given to it before it has room."""
        return self._has_groups or len(self._hands.get(worker, ())) > FEW

    def take(self, worker: Hashable) -> Task | None:
        """The next task of `worker`, or None: there is nothing left to begin."""
        while hand := self._hands.get(worker) or self._next_hand():
            self._hands[worker] = hand
            task = hand.take()
            if task is not None:
                return task
        return None

    def leave(self, worker: Hashable) -> None:
        """`worker` is gone: the rest of its hand is the next group."""
        rest = self._hands.pop(worker, None)
        if rest:
            self._returned.append(rest)

    def _next_hand(self) -> _Hand:
        if self._returned:
            return self._returned.popleft()
        while self._has_groups:
            group = next(self._groups, None)
            self._has_groups = group is not None
            if group:
                return _Hand(group, 0, len(group))
        longest = max(self._hands.values(), key=len, default=_Hand((), 0, 0))
        return longest.give_tail()


class _Hand:
    """Places `start` to before `stop` of a group: those that are still to be taken."""

    def __init__(self, group: Group, start: int, stop: int) -> None:
        self._group, self._start, self._stop = group, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self) -> Task | None:
        """The first task, or None where none is left."""
        while self:
            self._start += 1
            task = self._group[self._start - 1]
            if task is not None:
                return task
        return None

    def give_tail(self) -> _Hand:
        """The second half; it is no longer of this hand."""
        middle = self._start + len(self) // 2
        tail = _Hand(self._group, middle, self._stop)
        self._stop = middle
        return tail
