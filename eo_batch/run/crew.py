"""How many hands a cluster has: worker processes, and chunks that each of them computes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from eo_batch.core.clusters import ClusterSpec

GPU_THREADS = 3
"""Chunks at once in a process whose segmenter has a GPU: one is scored while the others are read and written."""


@dataclass(frozen=True)
class Crew:
    """Workers of a cluster, in numbers.

    Parameters
    ----------
    processes : worker processes; 1 where the driver's own process computes.
    threads : chunks at once in each.
    is_here : they share the memory of this machine.
    is_driver : the only process is the driver's own.
    is_known : somebody said how many there are; otherwise one is assumed.
    """

    processes: int
    threads: int
    is_here: bool
    is_driver: bool = False
    is_known: bool = True

    @property
    def at_once(self) -> int:
        """Chunks that are computed at once."""
        return self.processes * self.threads

    def scoring(self, device: str) -> int:
        """Chunks that are scored at once: all of them on a CPU, one in each process on a GPU."""
        return self.at_once if device == "cpu" else self.processes


def crew_of(cluster: ClusterSpec, *, device: str = "cpu") -> Crew:
    """Workers of `cluster` as far as they are known before it is asked.

    Parameters
    ----------
    device : of the segmenter, as it says itself.
    """
    kind, _, argument = cluster.kind.partition(":")
    threads = cluster.threads or (1 if device == "cpu" else GPU_THREADS)
    if kind == "serial":
        return Crew(1, 1, is_here=True, is_driver=True)
    if kind == "local" and not argument:
        return Crew(1, cluster.workers or os.cpu_count() or 1, is_here=True, is_driver=True)
    if kind == "local":
        return Crew(int(argument), threads, is_here=True)
    return Crew(cluster.workers or 1, threads, is_here=kind == "gpus", is_known=cluster.workers is not None)
