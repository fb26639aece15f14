"""What a run tells while it works: plain values, printed by the command line or ignored by a notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    kind : "search", "plan", "start", "chunk", "failure", "merge", "publish", "warning", "wait" (for workers),
        "worker" (has come or gone), "again" (a chunk lost its worker).
    text : one line for people.
    done, total : chunks finished and planned.
    km2 : area of the region finished so far, all time steps together.
    data : details as JSON values.
    """

    kind: str
    text: str
    done: int = 0
    total: int = 0
    km2: float = 0.0
    data: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""
