"""Which worker gets which task next. Knows nothing of Dask: a worker is a name.

Neighbours stay together: a worker has a hand, a group of tasks that it works through. With an empty hand it takes the next
group, and when there are no more groups, the tail half of the longest hand. Only one group for each worker is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

Task = tuple[Any, ...]


class Deal:
    """Deals the tasks of groups out to workers that come and go.

    Parameters
    ----------
    groups : tasks that lie side by side, one group after the other; taken only when a worker needs it.
    """

    def __init__(self, groups: Iterable[Sequence[Task]]) -> None:
        self._groups = iter(groups)
        self._returned: deque[deque[Task]] = deque()
        self._hands: dict[Hashable, deque[Task]] = {}
        self.has_groups = True
        """False as soon as only the workers' hands are left."""

    @property
    def is_done(self) -> bool:
        """Every task was taken."""
        return not (self.has_groups or self._returned or any(self._hands.values()))

    def take(self, worker: Hashable) -> Task | None:
        """The next task of `worker`, or None: there is nothing left to begin."""
        hand = self._hands.get(worker) or self._next_hand()
        if not hand:
            return None
        self._hands[worker] = hand
        return hand.popleft()

    def leave(self, worker: Hashable) -> None:
        """`worker` is gone: the rest of its hand is the next group."""
        rest = self._hands.pop(worker, None)
        if rest:
            self._returned.append(rest)

    def _next_hand(self) -> deque[Task]:
        if self._returned:
            return self._returned.popleft()
        while self.has_groups:
            group = next(self._groups, None)
            self.has_groups = group is not None
            if group:
                return deque(group)
        longest = max(self._hands.values(), key=len, default=deque())
        tail = [longest.pop() for _ in range((len(longest) + 1) // 2)]
        return deque(reversed(tail))
