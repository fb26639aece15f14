"""How many reads may ask a host at once, and from when on: fewer and later when it asks for that, for all of this process.

The limit falls by half and rises one by one, which leads clients that know nothing of each other to fair shares of what a host
gives: Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance in computer networks", Computer
Networks and ISDN Systems 17 (1989). As in TCP, what was asked before a refusal is no second one (RFC 6582), and a limit that
nobody reaches does not rise (RFC 7661).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

_GATES: dict[str, HostGate] = {}
_LOCK = threading.Lock()


class HostRefuses(Exception):
    """A host refused whoever asked it, so often that a read that still waits for its turn gives up."""


@dataclass(eq=False)
class HostGate:
    """Reads of one host in this process. Use `gate_of`, so that all readers have the same.

    Parameters
    ----------
    host : its name, for people; "" for files of this machine, which never complain.
    now : monotonic seconds; replaced in tests, as `wait` is.
    wait : releases the lock of a condition until it is notified, or for so many seconds.
    limit : reads at once that the host bears as far as is known; infinite where it never asked for fewer, or none since long.
    """

    host: str
    now: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Condition, float | None], object] = threading.Condition.wait
    limit: float = math.inf
    refusals: int = 0
    _last_answer: int = 0  # how many refusals there were when a read was answered last
    _asking: int = 0
    _most: int = 0  # that asked at once, seen by those who entered since the last refusal
    _answers: int = 0  # since the limit was changed and then reached
    _closed_until: float = 0.0
    _line: deque[object] = field(default_factory=deque)  # those who wait, the longest first
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def is_closed(self) -> bool:
        """True while the host asked for patience: nobody begins to ask it."""
        return self._closed_until > self.now()

    def refused_in_a_row(self, since: int) -> int:
        """Refusals without an answer to anybody between, since there were `since`."""
        return self.refusals - max(since, self._last_answer)

    def enter(self, at_once: float, *, since: int, tries: int) -> int:
        """Wait for a turn, the first come first; the number of refusals by then.

        Parameters
        ----------
        at_once : reads at most, while the host bears them.
        since, tries : give up where the host refused `tries` times in a row since there were `since` refusals.

        Raises
        ------
        HostRefuses : given up.
        """
        with self._changed:
            place = object()
            self._line.append(place)
            try:
                while (closed_s := self._closed_until - self.now()) > 0 or not self._is_next(place, at_once):
                    if self.refused_in_a_row(since) >= tries:
                        raise HostRefuses
                    self.wait(self._changed, closed_s if closed_s > 0 else None)
            finally:
                self._line.remove(place)
                self._changed.notify_all()
            self._most = max(self._most, self._asking + 1)
            self._asking += 1
            return self.refusals

    def leave(self, entered: int, at_once: float, *, is_answered: bool) -> None:
        """End a turn that began at `entered`."""
        with self._changed:
            if is_answered and entered == self.refusals:
                self._last_answer = self.refusals
                self._answers += self._most >= self.limit
                if self._answers >= self.limit:
                    self._answers = 0
                    self.limit = self.limit + 1 if self.limit + 1 < at_once else math.inf
            self._asking -= 1
            self._changed.notify_all()

    def refuse(self, entered: int, wait_s: float) -> bool:
        """Nobody begins to ask for `wait_s` seconds; True where this is a new refusal and so the limit was halved."""
        with self._changed:
            self._closed_until = max(self._closed_until, self.now() + wait_s)
            if entered < self.refusals:
                return False
            self.refusals += 1
            self.limit = max(1, min(self.limit, self._most) // 2)
            self._most = self._answers = 0
            return True

    def _is_next(self, place: object, at_once: float) -> bool:
        return self._line[0] is place and self._asking < min(at_once, self.limit)


class Turns:
    """The turns of one read at its host: a context manager, entered for each try.

    Parameters
    ----------
    gate, at_once, tries : see `HostGate.enter`.
    tell : called with the host and the reads at once that are left, when a refusal of this read halved them.
    """

    def __init__(self, gate: HostGate, *, at_once: float, tries: int, tell: Callable[[str, int], None]) -> None:
        self._gate, self._tries, self._tell = gate, tries, tell
        self._at_once = at_once if gate.host else math.inf
        self._since = gate.refusals - gate.is_closed  # who comes while it is closed waits as if refused itself
        self._entered = 0

    def __enter__(self) -> Turns:
        self._entered = self._gate.enter(self._at_once, since=self._since, tries=self._tries)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._gate.leave(self._entered, self._at_once, is_answered=kind is None)

    @property
    def host(self) -> str:
        """Name of the host."""
        return self._gate.host

    @property
    def is_refused(self) -> bool:
        """True where the host refused somebody since this turn began."""
        return self._gate.refusals > self._entered

    @property
    def refused(self) -> int:
        """How often in a row the host refused, since this read began."""
        return self._gate.refused_in_a_row(self._since)

    def refuse(self, wait_s: float) -> None:
        """Tell all readers of the host that it asks for patience."""
        if self._gate.refuse(self._entered, wait_s):
            self._tell(self.host, int(self._gate.limit))


class SlowHosts:
    """What people are told of hosts that ask for slower reads: each number once. Picklable."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}
        self._notes: list[str] = []

    def note(self, host: str, at_once: int) -> None:
        """Keep a note, unless this or fewer was told of the host."""
        with _LOCK:
            if at_once < self._told.get(host, at_once + 1):
                self._told[host] = at_once
                requests = "1 request" if at_once == 1 else f"{at_once} requests"
                self._notes.append(f"asset-rate-limited: {host} asks for slower reads; now {requests} at once")

    def take(self) -> tuple[str, ...]:
        """Notes that were not taken yet."""
        with _LOCK:
            notes, self._notes = tuple(self._notes), []
        return notes


def server_of(href: str) -> str:
    """Host whose patience reads of `href` need ("example.org", "example.org:8080", "s3 bucket"), or "" for a file."""
    try:
        parts = urlsplit(href)
    except ValueError:
        return ""
    name = parts.netloc.rpartition("@")[2].lower()
    return {"http": name, "https": name, "s3": f"s3 {name}"}.get(parts.scheme, "")


def gate_of(host: str) -> HostGate:
    """The gate of a host in this process."""
    with _LOCK:
        return _GATES.setdefault(host, HostGate(host))
