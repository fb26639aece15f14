"""What a batch system knows of the jobs that were asked for, and others in place of those that end without a worker.

A job may be cancelled while it is queued, preempted, or given a node that fails: no worker is lost then, because none ever came,
and only the queue knows. A script that ends at once would do so for ever, so it is asked for again a few times only.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.core.hrefs import redact
from eo_batch.run.executors.pool import CLOSE_S

COMMANDS = {"slurm": ("squeue", "-h", "--me", "-t", "all", "-o", "%A %T (%r)"), "pbs": ("qstat", "-u")}
ENDED = {
    "slurm": "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT",
    "pbs": "C F X",
}
"""States that nothing follows; a job that the system has forgotten has ended, too."""
PBS_STATE = 9
"""Column of `qstat -u`."""
REFUSALS = (OSError, RuntimeError, ValueError)
"""What dask-jobqueue raises where a job cannot be submitted."""
ANSWER_S = 30.0
ASK_EVERY_S = 5.0
"""How often it is looked whether a job is missing."""
LOOK_EVERY_S = 30.0
"""How often the batch system is asked at most: it serves others, too."""
GIVE_UP = 4
"""So many looks may find jobs that ended without a worker while none came."""
LOG_BYTES, LOG_LINES, LOG_CHARACTERS = 8192, 3, 400


def states_of(kind: str) -> dict[str, str]:
    """Number -> state of each job of this user that the batch system knows.

    Raises
    ------
    OSError, subprocess.SubprocessError : it does not answer.
    """
    import getpass

    command = [*COMMANDS[kind], *([getpass.getuser()] if kind == "pbs" else [])]
    told = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=True)  # noqa: S603 (nothing of a user in it)
    lines = [line.split() for line in told.stdout.decode(errors="replace").splitlines()]
    if kind == "slurm":
        return {words[0]: " ".join(words[1:]) for words in lines if words}
    rows = ((re.match(r"\d+", words[0]), words) for words in lines if len(words) > PBS_STATE)
    return {number[0]: words[PBS_STATE] for number, words in rows if number}


def states_told(states: Mapping[str, str]) -> str:
    """`2 PENDING (Resources), 1 RUNNING (None)`."""
    return ", ".join(f"{count} {state}" for state, count in sorted(Counter(states.values()).items()))


async def ask_for(cluster: Any, wanted: int) -> None:
    """Submit the jobs that are missing; raises what the batch system answers: `REFUSALS`."""
    from distributed import Status

    while len(cluster.worker_spec) < wanted:
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        await cluster
    finally:
        for job in cluster.workers.values():
            if job.job_id is None:
                job.status = Status.failed  # or the cluster cannot be closed


def what_was_said(refusal: BaseException) -> str:
    """The line that matters of what the batch system said when it was asked."""
    lines = [line.strip() for line in redact(refusal).splitlines() if line.strip()]
    said = next((line for line in lines if "error" in line.lower() and "Command" not in line), lines[-1] if lines else "")
    return said[:300]


class Replacements:
    """Asks for another job wherever one is missing; in a thread of its own from `start` to `stop`.

    Parameters
    ----------
    cluster : of dask-jobqueue.
    wanted : jobs that there should be.
    """

    def __init__(self, cluster: Any, spec: ClusterSpec, wanted: int) -> None:
        self._cluster, self._spec, self._wanted = cluster, spec, wanted
        self._arrived: set[str] = set()
        self._misses, self._refusal = 0, ""
        self._lost_hope: ResourceError | None = None
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="eo-batch-queue", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Ask for nothing more."""
        self._end.set()
        self._thread.join(timeout=CLOSE_S)

    def notes(self) -> list[str]:
        """What happened since the last call, for people: told in the thread of the driver."""
        return [self._notes.get() for _ in range(self._notes.qsize())]

    @property
    def lost_hope(self) -> ResourceError | None:
        """Why no worker will come any more; None while one may."""
        return self._lost_hope

    def _watch(self) -> None:
        since_look = 0.0
        while not self._end.wait(ASK_EVERY_S):
            since_look += ASK_EVERY_S
            waiting = self._without_worker()
            try:
                if waiting and since_look >= LOOK_EVERY_S:
                    since_look = 0.0
                    self._look(waiting)
                if len(self._cluster.workers) < self._wanted:
                    self._cluster.sync(ask_for, self._cluster, self._wanted)
            except REFUSALS as error:
                self._refusal = what_was_said(error)

    def _without_worker(self) -> dict[str, str | None]:
        """Name -> number of each job whose worker never came; the number is None where the system did not take it."""
        there = {str(worker["name"]) for worker in list(self._cluster.scheduler_info["workers"].values())}
        numbers = {name: job.job_id for name, job in list(self._cluster.workers.items())}
        arrived = {numbers[name] for name in there & numbers.keys()} - self._arrived
        if arrived:
            self._arrived |= arrived
            self._misses, self._lost_hope = 0, None
        return {name: number for name, number in numbers.items() if number not in self._arrived}

    def _look(self, waiting: Mapping[str, str | None]) -> None:
        """Find jobs that have ended, and drop them: others are asked for in their place, unless that never helps."""
        try:
            states = states_of(self._spec.kind)
        except (OSError, subprocess.SubprocessError):
            return  # nothing is known, so nothing is done
        still = sorted(waiting.items() & self._without_worker().items())
        ended = {name: number for name, number in still if self._is_over(number, states)}
        if not ended:
            return
        refused = f"refused ({self._refusal})"
        told = states_told({name: states.get(number, "gone") if number else refused for name, number in ended.items()})
        what = f"jobs that brought no worker: {told}"
        if self._misses < GIVE_UP:
            self._cluster.sync(self._drop, ended)
            self._notes.put(f"{what}; asking again")
        elif self._misses == GIVE_UP:
            self._notes.put(f"{what}, as those before them: no more are asked for until a worker comes. {self._log(ended)}")
        self._misses += 1
        if self._misses > GIVE_UP and len(ended) == len(self._cluster.workers):
            self._lost_hope = self._hopeless(told, ended)

    def _is_over(self, number: str | None, states: Mapping[str, str]) -> bool:
        state = states.get(number or "", "")
        return not state or state.split()[0] in ENDED[self._spec.kind].split()

    async def _drop(self, ended: Mapping[str, str | None]) -> None:
        """Forget jobs, so that they are missing; each is cancelled, should it not have ended after all."""
        from distributed import Status

        for name in ended:
            job = self._cluster.workers.pop(name, None)
            if job is not None:
                await job.close()
                job.status = Status.closed

    def _hopeless(self, told: str, ended: Mapping[str, str | None]) -> ResourceError:
        what = f"jobs bring no worker, {GIVE_UP + 1} times one after the other"
        fix = "Mend what ends them, such as setup, directives or interface in [cluster.batch]; then eo-batch resume."
        where = f"cluster {self._spec.kind}"
        return ResourceError("cluster-unreachable", what, where=where, why=f"{told}. {self._log(ended)}", fix=fix)

    def _log(self, ended: Mapping[str, str | None]) -> str:
        """What the log of one of the jobs says at its end."""
        folder = self._spec.batch.log_folder
        number = next((number for number in ended.values() if number), None)
        if folder is None or number is None:
            return "Set log_folder in [cluster.batch] to see more"
        tail = tail_of(Path(os.path.expanduser(folder)), number)
        return f"The log of {number} ends: {tail}" if tail else f"There is no log of {number} in {folder}"


def tail_of(folder: Path, number: str) -> str:
    """The last lines that job `number` wrote into `folder`, errors after what it printed, as one line; "" for none."""
    its_own = re.compile(rf"(?<!\d){number}(?!\d)")
    lines: list[str] = []
    try:
        for path in sorted(folder.iterdir(), reverse=True):  # .out before .err, .o17 before .e17, .OU before .ER
            if its_own.search(path.name) and path.is_file():
                with path.open("rb") as file:
                    file.seek(max(path.stat().st_size - LOG_BYTES, 0))
                    lines += [line for line in file.read(LOG_BYTES).decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return redact(" | ".join(line.strip() for line in lines[-LOG_LINES:]))[-LOG_CHARACTERS:]
