"""Time that passes by waiting alone: tests see how long reads would wait for a host, and do not wait."""

from __future__ import annotations

import threading

import pytest

from eo_batch.sources import gates
from eo_batch.sources.gates import HostGate, server_of


class MustWait(Exception):
    """A turn that is to be had when another one ends."""


class Clock:
    """Clock of a gate. `waits` are the seconds that were waited for, in order; who waits for a turn to end gets `MustWait`."""

    def __init__(self) -> None:
        self.time, self.waits = 0.0, list[float]()

    def now(self) -> float:
        return self.time

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        if seconds is None:
            raise MustWait
        self.waits.append(seconds)
        self.time += seconds

    def gate(self, host: str = "example.org") -> HostGate:
        return HostGate(host, now=self.now, wait=self.wait)


def clock_of(address: str, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Clock of the reads of this process from a server."""
    clock, host = Clock(), server_of(address)
    monkeypatch.setitem(gates._GATES, host, clock.gate(host))
    return clock
