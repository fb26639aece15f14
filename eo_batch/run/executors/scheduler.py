"""Questions to a Dask scheduler, whose answers are not waited for without end: one that is frozen keeps its connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eo_batch.core.errors import ResourceError

ANSWER_S = 30.0
"""How long the scheduler, or a worker with a result, may take to answer."""
FROZEN_S = 300.0
"""A worker that has not told the scheduler for so long that it lives is given up, as schedulers do by default."""


class Pulse:
    """Which workers have gone silent: those whose last sign of life stays the same. No clocks are compared."""

    def __init__(self) -> None:
        self._beats: dict[str, tuple[float, float]] = {}
        self.silent: frozenset[str] = frozenset()

    def feel(self, beats: Mapping[str, float], now: float) -> None:
        """Look at all workers again.

        Parameters
        ----------
        beats : worker -> when the scheduler last heard of it, by its own clock, s.
        now : s, monotonic.
        """
        before, self._beats = self._beats, {}
        for worker, beat in beats.items():
            last, since = before.get(worker, (None, now))
            self._beats[worker] = (beat, since if beat == last else now)
        self.silent = frozenset(worker for worker, (_, since) in self._beats.items() if now - since >= FROZEN_S)


def ask(client: Any, question: Callable[..., Any], **options: Any) -> Any:
    """What the scheduler answers.

    Raises
    ------
    ResourceError : `cluster-lost`: it does not.
    """
    try:
        return client.sync(question, **options, callback_timeout=ANSWER_S)
    except (OSError, TimeoutError, AttributeError):  # AttributeError: a client that has closed itself has no scheduler
        raise cluster_lost("the scheduler does not answer") from None


def threads_of(client: Any) -> dict[str, int]:
    """Worker -> threads, of those that are there now."""
    return dict(ask(client, client.scheduler.ncores, workers=None))


def told_of(client: Any) -> dict[str, Mapping[str, Any]]:
    """Worker -> what the scheduler knows of it: `name`, `last_seen` and more."""
    return dict(ask(client, client.scheduler.identity, n_workers=-1)["workers"])


def cluster_lost(why: str) -> ResourceError:
    """That nothing is computed any more."""
    fix = "Start the cluster again, then continue with `eo-batch resume RUN`."
    return ResourceError("cluster-lost", "the cluster is gone", why=why, fix=fix)
