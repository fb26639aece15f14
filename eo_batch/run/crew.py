"""How many hands a cluster has: worker processes, and chunks that each of them computes at once."""

from __future__ import annotations

import os
from dataclasses import dataclass

from eo_batch.core.clusters import ClusterSpec


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
        """Chunks that are scored at once: on a CPU as many as it has cores for, on a GPU one in each process."""
        if device != "cpu":
            return self.processes
        return min(self.at_once, cores_here()) if self.is_here else self.at_once


def cores_here() -> int:
    """CPU cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crew_of(cluster: ClusterSpec) -> Crew:
    """Workers of `cluster` as far as they are known before it is asked.

    Raises
    ------
    ResourceError : `no-gpu`: it is the GPUs of this machine, and there are none.
    """
    kind, _, argument = cluster.kind.partition(":")
    if kind == "serial":
        return Crew(1, 1, is_here=True, is_driver=True)
    if kind == "local" and not argument:
        return Crew(1, cluster.workers or cores_here(), is_here=True, is_driver=True)
    if kind == "local":
        return Crew(int(argument), cluster.threads or 1, is_here=True)
    if kind == "gpus":
        from eo_batch.run.gpus import GPU_THREADS, gpu_names  # executors ask for their crew too

        here = len(gpu_names())
        return Crew(min(cluster.workers or here, here), cluster.threads or GPU_THREADS, is_here=True)
    is_asked_for = kind not in ("tcp", "tls")
    threads = cluster.asked_threads if is_asked_for else cluster.threads or 1
    return Crew(cluster.workers or 1, threads, is_here=False, is_known=is_asked_for or cluster.workers is not None)
