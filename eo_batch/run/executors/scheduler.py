"""Questions to a Dask scheduler, whose answers are not waited for without end: one that is frozen keeps its connections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eo_batch.core.errors import ResourceError

ANSWER_S = 30.0
"""How long the scheduler, or a worker with a result, may take to answer."""
LOOKS = 10
"""A worker whose last sign of life has stayed the same at so many looks in a row is given up."""


class Pulse:
    """Which workers have gone silent: those whose last sign of life stays the same.

    Looks are counted and no clocks compared: a process that was stopped for an hour has not waited for anybody.
    """

    def __init__(self) -> None:
        self._beats: dict[str, tuple[float, int]] = {}
        self.silent: frozenset[str] = frozenset()

    def feel(self, beats: Mapping[str, float]) -> None:
        """Look at all workers again: worker -> its last sign of life, by any clock."""
        before, self._beats = self._beats, {}
        for worker, beat in beats.items():
            last, same = before.get(worker, (None, 0))
            self._beats[worker] = (beat, same + 1 if beat == last else 0)
        self.silent = frozenset(worker for worker, (_, same) in self._beats.items() if same >= LOOKS)


def ask(client: Any, question: str, **options: Any) -> Any:
    """What the scheduler answers to a question of its protocol.

    Raises
    ------
    ResourceError : `cluster-lost`: it does not.
    """
    try:
        return client.sync(getattr(client.scheduler, question), **options, callback_timeout=ANSWER_S)
    except (OSError, RuntimeError, AttributeError):  # a client that closes itself has no connections, and no scheduler in the end
        raise cluster_lost("the scheduler does not answer") from None


def threads_of(client: Any) -> dict[str, int]:
    """Worker -> threads, of those that are there now."""
    return dict(ask(client, "ncores", workers=None))


def told_of(client: Any) -> dict[str, Mapping[str, Any]]:
    """Worker -> what the scheduler knows of it: `name`, `last_seen` and more."""
    return dict(ask(client, "identity", n_workers=-1)["workers"])


def beat_of(told: Mapping[str, Any]) -> float:
    """When the scheduler last heard of a worker, by its own clock, s; 0 of one that neither computes nor begins anything.

    Dask begins nothing on a worker whose memory is nearly full. Where nothing is computed that could free it, that is for ever.
    """
    is_stuck = told["status"] == "paused" and not told["metrics"].get("task_counts", {}).get("executing")
    return 0.0 if is_stuck else float(told["last_seen"])


def cluster_lost(why: str) -> ResourceError:
    """That nothing is computed any more."""
    fix = "Start the cluster again, then continue with `eo-batch resume RUN`."
    return ResourceError("cluster-lost", "the cluster is gone", why=why, fix=fix)
