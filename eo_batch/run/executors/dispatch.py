"""Tasks on their way through a Dask scheduler: pinned to workers, few at a time, and tried again when a worker is lost.

The scheduler knows only what is in flight. Tasks that a worker had when it died are suspects: each of them is tried
again alone in a process, so that one that ends its worker every time is found without blame for its neighbours.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from eo_batch.core.errors import EoBatchError, ResourceError
from eo_batch.run.executors.dealing import Deal, Group, Task
from eo_batch.run.executors.scheduler import ANSWER_S, Pulse, ask, beat_of, cluster_lost, threads_of, told_of
from eo_batch.run.executors.worker import STAGES, leave

DEATHS = 4
"""A task that has ended so many workers is given up."""
ATTEMPTS = 16
"""So often a task is begun at most, also where its workers were told to leave: it may take longer than they live."""
DRAIN_S = 60.0
"""How long running tasks may take to finish after a stop."""
QUIET_S = 10.0
"""After so long without news the scheduler is asked whether it is there."""
PULSE_S = 30.0
"""How often it is looked whether all workers live."""
ASIDE_S = 2.0
"""How long a result may be on its way before its worker is looked for."""
LOOK_S = 0.5
"""How often a stop is looked for."""

Tell = Callable[[str, str], None]
"""(worker, "joined" or "lost")."""


@dataclass(frozen=True)
class Again:
    """In place of a result: the task has lost its worker, and is to be tried again.

    Parameters
    ----------
    stage : the last one of the task that was heard of, or "".
    attempt : the next one: 2, 3, ...
    of : so many there will be at most, if only deaths follow.
    """

    worker: str
    stage: str
    attempt: int
    of: int


@dataclass(eq=False)
class _Flight:
    """One task at one worker."""

    task: Task
    attempt: int = 1
    deaths: int = 0
    worker: str = ""
    stage: str = ""
    future: Any = None
    is_suspect: bool = False
    """Its worker is gone: it is tried again alone."""


class Dispatch:
    """One call of `Executor.outcomes`.

    Parameters
    ----------
    client : of the scheduler.
    patience_s : how long the cluster may be without any worker.
    tell : told of workers that come and go.
    """

    def __init__(self, client: Any, work: Callable[..., Any], groups: Iterable[Group], *, patience_s: float, tell: Tell) -> None:
        self._client, self._work, self._patience_s, self._tell = client, work, patience_s, tell
        self._deal = Deal(groups)
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._name, self._count = f"chunk-{uuid4().hex[:8]}", 0
        self._threads: dict[str, int] = {}
        self._aboard: dict[str, dict[Any, _Flight]] = {}
        self._suspects: deque[_Flight] = deque()
        self._kept_free: set[str] = set()
        self._sent_away: set[str] = set()
        self._lost: list[tuple[Task, Any]] = []
        self._pulse = Pulse()
        self._heard = self._had_workers = self._felt = time.monotonic()

    def outcomes(self, stop: threading.Event) -> Iterator[tuple[Task, Any]]:
        """See `Executor.outcomes`.

        Raises
        ------
        ResourceError : `cluster-lost`.
        """
        from distributed.client import ClosedClientError

        topics = {"all": self._note_worker, STAGES: self._note_stage}
        for topic, note in topics.items():
            self._client.subscribe_topic(topic, lambda event, note=note: note(event[1]))
        try:
            yield from self._until_done(stop)
        except ClosedClientError:
            raise cluster_lost("the connection to the scheduler has broken") from None
        finally:
            with suppress(ClosedClientError):
                for topic in topics:
                    self._client.unsubscribe_topic(topic)

    def _until_done(self, stop: threading.Event) -> Iterator[tuple[Task, Any]]:
        self._look_for_workers()
        self._fill(list(self._threads))
        while not stop.is_set() and (self._in_flight or self._suspects or not self._deal.is_done):
            yield from self._news()
        deadline = time.monotonic() + DRAIN_S
        self._suspects.clear()
        self._drop_unbegun()
        while self._in_flight and time.monotonic() < deadline:
            yield from self._news(is_open=False)

    @property
    def _in_flight(self) -> bool:
        return any(self._aboard.values())

    def _news(self, *, is_open: bool = True) -> Iterator[tuple[Task, Any]]:
        """Wait a little for one thing to happen, and act on it; outcomes of what has ended.

        Parameters
        ----------
        is_open : tasks are still handed out.
        """
        changed = self._lose_frozen()
        try:
            kind, fact = self._inbox.get(timeout=LOOK_S)
        except queue.Empty:
            changed += self._ask_after_silence()
        else:
            self._heard = time.monotonic()
            if kind == "done":
                flight = self._landed(*fact)
                if flight is not None:
                    yield from self._outcome(flight)
                    changed.append(flight.worker)
            elif kind == "lost":
                worker, was_expected = fact
                changed += self._lose(worker, was_expected=was_expected)
            else:
                changed += self._look_for_workers()
        yield from self._lost
        self._lost.clear()
        if is_open and self._suspects:
            self._fill(list(self._threads))
        elif is_open:
            self._fill([*changed, *self._kept_free])
            self._kept_free.clear()

    def _fill(self, workers: Sequence[str]) -> None:
        """Give tasks to `workers` that have room."""
        if self._suspects:  # those with the least to do are emptied for them
            workers = sorted(workers, key=lambda worker: len(self._aboard[worker]))
        wanted = len(self._suspects)
        for worker in workers:
            aboard = self._aboard.get(worker)
            if aboard is None or worker in self._sent_away or any(flight.is_suspect for flight in aboard.values()):
                continue
            if wanted:
                wanted -= 1
                self._kept_free.add(worker)
                if not aboard:
                    self._send(self._suspects.popleft(), worker)
                continue
            while len(aboard) < self._threads[worker] + self._deal.has_more(worker):
                task = self._deal.take(worker)
                if task is None:
                    break
                self._send(_Flight(task), worker)

    def _send(self, flight: _Flight, worker: str) -> None:
        self._count += 1
        flight.worker, flight.stage = worker, ""
        again = {"attempt": flight.attempt} if flight.attempt > 1 else {}
        key = (self._name, self._count)  # short, and of one group, or the scheduler would keep something for each
        flight.future = self._client.submit(
            outcome_of, self._work, *flight.task, key=key, workers=[worker], pure=False, retries=0, **again
        )
        self._aboard[worker][key] = flight
        flight.future.add_done_callback(lambda _future: self._inbox.put(("done", (worker, key))))

    def _note_worker(self, fact: Any) -> None:
        """A worker has come or gone; in the client's thread. Whoever has this scheduler can write on its topics, and anything."""
        match fact:
            case {"action": "add-worker"}:
                self._inbox.put(("joined", None))
            case {"action": "remove-worker", "worker": str(worker), **more}:
                self._inbox.put(("lost", (worker, bool(more.get("expected")))))

    def _note_stage(self, fact: Any) -> None:
        """A stage lasts somewhere; in the client's thread, so before it is heard that the worker has gone."""
        match fact:
            case {"key": [str(name), int(number)], "stage": str(stage), "worker": str(worker)}:
                flight = self._aboard.get(worker, {}).get((name, number))
                if flight is not None:
                    flight.stage = stage

    def _landed(self, worker: str, key: Any) -> _Flight | None:
        """The flight that ended, or None if it was given up before."""
        return self._aboard.get(worker, {}).pop(key, None)

    def _outcome(self, flight: _Flight) -> Iterator[tuple[Task, Any]]:
        from distributed import KilledWorker

        future, flight.future = flight.future, None
        if future.status == "cancelled":  # by nobody here: the scheduler has gone, or has forgotten this client
            raise cluster_lost("the connection to the scheduler has broken")
        try:
            result = self._result(future, flight.worker)
        except (OSError, CancelledError):  # of the connection: what a task raises comes as a value
            threads_of(self._client)  # or the scheduler is gone
            result = KilledWorker(future.key, flight.worker, 0)
        except Exception as error:  # such as a result that cannot be sent: an outcome, judged by the driver
            result = error
        if isinstance(result, KilledWorker):
            self._suspect(flight)
        elif getattr(result, "code", "") == "no-gpu" and self._others_may_have_it(flight):
            self._send_away(flight)
        else:
            yield flight.task, result

    def _others_may_have_it(self, flight: _Flight) -> bool:
        """There are workers that have not said that they have no device; a cluster without any is not asked for ever."""
        return flight.attempt < DEATHS and bool(self._threads.keys() - self._sent_away - {flight.worker})

    def _send_away(self, flight: _Flight) -> None:
        """A worker has not the device that the run needs: others compute what it was given."""
        self._suspect(flight, was_expected=True)
        if flight.worker in self._threads and flight.worker not in self._sent_away:
            self._sent_away.add(flight.worker)
            ask(self._client, "retire_workers", workers=[flight.worker], close_workers=True)

    def _result(self, future: Any, worker: str) -> Any:
        """What a task gave; KilledWorker where its worker took it along."""
        from distributed import KilledWorker

        if future.status == "error":
            return future.exception(timeout=ANSWER_S)
        deadline = time.monotonic() + ANSWER_S
        # Asked for once: to give up waiting and ask again would find the first request half cancelled, and fail with it.
        fetched = asyncio.run_coroutine_threadsafe(self._client.gather(future, asynchronous=True), self._client.loop.asyncio_loop)
        while not wait([fetched], timeout=ASIDE_S).done:
            if time.monotonic() > deadline or worker not in threads_of(self._client):
                fetched.cancel()
                return KilledWorker(future.key, worker, 0)  # its files are there, and making them again is harmless
        return fetched.result()

    def _suspect(self, flight: _Flight, *, was_expected: bool = False) -> None:
        """A worker has gone while it worked on this task."""
        begun = flight.attempt
        flight.deaths += not was_expected
        flight.attempt += 1
        flight.is_suspect = True
        if flight.deaths < DEATHS and begun < ATTEMPTS:
            self._suspects.append(flight)
            of = min(ATTEMPTS, DEATHS + begun - flight.deaths)
            self._lost.append((flight.task, Again(flight.worker, flight.stage, flight.attempt, of)))
        else:
            self._lost.append((flight.task, worker_lost(flight.deaths, begun, flight.stage)))

    def _lose(self, worker: str, *, was_expected: bool) -> list[str]:
        """A worker is gone: what it had goes elsewhere; the workers that may now find something to do."""
        if worker not in self._threads:
            return []
        del self._threads[worker]
        self._sent_away.discard(worker)
        self._deal.leave(worker)
        for flight in self._aboard.pop(worker).values():  # which of them it had begun cannot be known for certain
            flight.future.release()
            self._suspect(flight, was_expected=was_expected)
        self._tell(worker, "lost")
        return list(self._threads)

    def _look_for_workers(self) -> list[str]:
        """Take in workers that are new; their names."""
        found = threads_of(self._client)
        new = [worker for worker in found if worker not in self._threads and worker not in self._pulse.silent]
        for worker in new:
            self._threads[worker], self._aboard[worker] = found[worker], {}
            self._tell(worker, "joined")
        return new

    def _ask_after_silence(self) -> list[str]:
        """Where nothing was heard for long: find out who is there; workers that may find something to do."""
        now = time.monotonic()
        if self._threads:
            self._had_workers = now
        elif now - self._had_workers > self._patience_s:
            raise cluster_lost(f"no worker was left for {self._patience_s:.0f} s")
        if now - self._heard < QUIET_S:
            return []
        found, self._heard = threads_of(self._client), now
        gone = [worker for worker in self._threads if worker not in found]
        for worker in gone:
            self._lose(worker, was_expected=False)
        new = self._look_for_workers()
        return list(self._threads) if gone else new

    def _lose_frozen(self) -> list[str]:
        """Now and then: give up workers that are still there but have gone silent; workers that may find something to do."""
        now = time.monotonic()
        if now - self._felt < PULSE_S:
            return []
        self._felt, before = now, self._pulse.silent
        self._pulse.feel({worker: beat_of(told) for worker, told in told_of(self._client).items()})
        changed: list[str] = []
        for worker in sorted(self._pulse.silent - before):
            changed += self._lose(worker, was_expected=False)
        return changed + (self._look_for_workers() if before - self._pulse.silent else [])

    def _drop_unbegun(self) -> None:
        """Take back what workers have not begun."""
        for worker, aboard in self._aboard.items():
            for key in list(aboard)[self._threads[worker] :]:
                aboard.pop(key).future.release()  # or it would be begun: whoever waits for its end holds it


def outcome_of(work: Callable[..., Any], *task: Any, **again: int) -> Any:
    """What `work` gives, or the exception it raises: Dask would print it into logs, and keep it."""
    try:
        return work(*task, **again)
    except EoBatchError as error:
        if error.code == "gpu-lost":
            leave()
        return error
    except Exception as error:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))  # the way it came is lost between processes
        return error


def worker_lost(deaths: int, attempts: int, stage: str) -> ResourceError:
    """Why a chunk was given up that ends every worker, or outlives every one."""
    at = f" (last known stage: {stage})" if stage else ""
    if deaths < DEATHS:
        why, fix = "workers had to leave before it was done", "Resume with workers that may stay longer."
        return ResourceError("worker-lost", f"it was begun {attempts} times{at}", why=why, fix=fix)
    why, fix = "most likely it needs more memory than they have", "Resume with fewer threads or more memory_gb."
    return ResourceError("worker-lost", f"it ended {deaths} workers{at}", why=why, fix=fix)
