"""One sitting of a driver: hand out the chunks that are missing, and judge what comes back.

Outcomes are a receipt, a failure of one chunk (noted, the run goes on), or something fatal (drain and stop).
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import AssetError, EoBatchError, IntegrityError, ResourceError, ResumeError, StoreError
from eo_batch.core.grid import chunk_index, chunk_key
from eo_batch.core.hrefs import redact
from eo_batch.core.records import ChunkFailure, ChunkReceipt
from eo_batch.core.spec import SMALLEST_CHUNK_PX
from eo_batch.run.executors import Again, Executor, Group, Task, make_executor
from eo_batch.run.generations import Generation
from eo_batch.run.ledger import failures, put_failure, receipt_keys
from eo_batch.run.manifest import RunInputs, read_manifest
from eo_batch.run.merge import read_marker
from eo_batch.run.order import Index
from eo_batch.run.shared_windows import pieces_of
from eo_batch.run.task import execute, forget_contexts, prepare
from eo_batch.run.told.events import Event, Listener
from eo_batch.run.told.status import pixel_area_km2

NO_DEVICE = ("no-gpu", "gpu-lost")
"""Codes of failures that are no chunk's: there is nothing left that could compute."""
STOP_AFTER_EQUAL = 20
"""Stop early after so many failures in a row with one code, unless they are allowed: the archive is down."""
ITEM = " of item "
ITEMS_TOLD = 10
"""Items that failed are told of one by one, the worst first; so many of them."""


def sit(
    store: Generation,
    inputs: RunInputs,
    *,
    cluster: ClusterSpec,
    allow_failed: int,
    listener: Listener,
    only: Sequence[Index] | None = None,
) -> Sitting:
    """Compute the chunks that have no receipt; what came of it.

    Parameters
    ----------
    only : of these chunks, in this order; None: of all.

    Raises
    ------
    EoBatchError : why no chunk can be made, or why the run was stopped early; all that was finished is kept.
    """
    sitting = Sitting(store, inputs, listener, allow_failed, only)
    if sitting.missing:
        with make_executor(cluster, say=lambda text: listener(Event("wait", text))) as pool, _stop_on_signals() as stop:
            try:
                sitting.run(pool, stop)
            finally:
                forget_contexts()
            sitting.interrupted = stop.is_set()
    return sitting


class Sitting:
    """Counts of a sitting, and the judgement of outcomes."""

    def __init__(
        self,
        store: Generation,
        inputs: RunInputs,
        listener: Listener,
        allow_failed: int,
        only: Sequence[Index] | None = None,
    ) -> None:
        self.store, self.inputs, self.listener, self.allow_failed, self.only = store, inputs, listener, allow_failed, only
        self.left_out = np.zeros((len(inputs.steps), *inputs.grid.chunks_yx), bool)  # one byte a chunk: there may be millions
        for key in receipt_keys(store):
            index = chunk_index(key)
            if index is not None and all(i < n for i, n in zip(index, self.left_out.shape, strict=True)):
                self.left_out[index] = True
        self.total, self.finished = self.left_out.size, int(self.left_out.sum())
        self.missing = self.total - self.finished
        if only is not None:
            self.missing = sum(not self.left_out[index] for index in only)
        self.counts = {"done": self.finished, "empty": 0, "failed": 0}
        self.pixel_km2 = pixel_area_km2(inputs)
        self.km2, self.in_a_row, self.last_code = 0.0, 0, ""
        self.fatal: BaseException | None = None
        self.items: Counter[str] = Counter()
        self.item_errors: dict[str, str] = {}
        self.notes_told: set[str] = set()
        self.workers_lost = 0
        self.interrupted = self.outdates_marker = False

    @property
    def unfinished(self) -> int:
        """Chunks that are neither finished nor failed."""
        return self.total - sum(self.counts.values())

    def run(self, pool: Executor, stop: threading.Event) -> None:
        """Hand out all missing chunks; returns when all are judged, or drained after a stop."""
        manifest = read_manifest(self.store)
        assert manifest is not None
        marker = read_marker(self.store)
        self.outdates_marker = marker is not None and marker["run"] == manifest["digest"]
        folder = self.store.where
        pool.everywhere(forget_contexts)  # what could not be read is tried anew
        if pool.in_process:
            prepare(folder, manifest["digest"])
        for text in pool.notes:
            self.listener(Event("warning", text))
        self.listener(
            Event(
                "start",
                f"{self.missing:,} of {self.total:,} chunks to do",
                self.finished,
                self.total,
                data={"dashboard": pool.dashboard, "workers": pool.width},
            )
        )
        self._leave_out_blocked()
        missing = self._groups(folder, manifest["digest"], processes=pool.processes)
        try:
            for task, result in pool.outcomes(execute, missing, stop=stop, tell=self._tell_worker):
                self._judge(task, result)
                if self.fatal is not None:
                    stop.set()
        except ResourceError as error:
            raise self._still_there(error) from None
        finally:
            self._tell_items()
        if self.workers_lost:
            self.store.sweep()  # what they were writing when they died
        if self.fatal is not None:
            raise self.fatal

    def _leave_out_blocked(self) -> None:
        """Record chunks that the generation before could not make as failed: there is nothing to add to."""
        if self.store.earlier is None:
            return
        for failure in failures(self.store.earlier):
            index = chunk_index(failure.key)
            if index is not None and not self.left_out[index]:
                self.left_out[index] = True
                self._record(failure)

    def _groups(self, folder: str, run_digest: str, *, processes: int) -> Iterator[Group]:
        every = pieces_of(self.inputs, processes=processes)
        for group in every if self.only is None else ([index] for index in self.only):
            yield _Tasks(group, (folder, run_digest), self.left_out)

    def _judge(self, task: Task, result: Any) -> None:
        if isinstance(result, Again):
            self._tell_again(chunk_key(*task[2:]), result)
            return
        if isinstance(result, ChunkReceipt):
            if self.outdates_marker:
                self.store.delete("COMPLETE.json")  # of a partial map: it stays until there is something new
                self.outdates_marker = False
            self.counts[result.status] += 1
            self.in_a_row = 0
            self.km2 += result.inside_px * self.pixel_km2
            for text in result.telemetry.get("notes", ()):
                if text not in self.notes_told:  # worker processes do not know of each other's
                    self.notes_told.add(text)
                    self.listener(Event("warning", text))
            data = {"key": result.key, "status": result.status, "polygons": result.polygons, **result.telemetry}
            self._tell("chunk", f"chunk {result.key}: {result.status}", data)
            return
        if isinstance(result, StoreError | IntegrityError | ResumeError) or getattr(result, "code", "") in NO_DEVICE:
            self.fatal = self.fatal or result
            return
        if not isinstance(result, Exception):
            self.fatal = self.fatal or result
            return
        self._fail(chunk_key(*task[2:]), self._with_smaller(result))

    def _fail(self, key: str, error: Exception) -> None:
        code = error.code if isinstance(error, EoBatchError) else "unexpected"
        text = str(error) if isinstance(error, EoBatchError) else redact(f"unexpected {type(error).__name__}: {error}")
        self._record(ChunkFailure(key, code, text, 1))
        if isinstance(error, AssetError) and ITEM in error.where:
            item = error.where.partition(ITEM)[2]
            self.items[item] += 1
            self.item_errors.setdefault(item, text)
        self.in_a_row = self.in_a_row + 1 if code == self.last_code else 1
        self.last_code = code
        share = 100.0 * self.counts["failed"] / self.total
        too_many = share > self.inputs.request.spec.limits.max_failed_percent and self.counts["failed"] >= STOP_AFTER_EQUAL
        if self.counts["failed"] > self.allow_failed and (self.in_a_row >= STOP_AFTER_EQUAL or too_many):
            self.fatal = error

    def _record(self, failure: ChunkFailure) -> None:
        self.counts["failed"] += 1
        put_failure(self.store, failure)
        self._tell("failure", f"chunk {failure.key} failed: {failure.text}", {"key": failure.key, "code": failure.code})

    def _tell_items(self) -> None:
        """Say once of each bad item what came of it."""
        for item, count in self.items.most_common(ITEMS_TOLD):
            chunks = "1 chunk" if count == 1 else f"{count:,} chunks"
            self.listener(Event("warning", f"item {item} failed in {chunks}: {self.item_errors[item]}"))

    def _tell_worker(self, worker: str, state: str) -> None:
        self.workers_lost += state == "lost"
        self._tell("worker", f"worker {worker} {state}", {"worker": worker, "state": state})

    def _tell_again(self, key: str, again: Again) -> None:
        at = f" (last known stage: {again.stage})" if again.stage else ""
        text = f"chunk {key}: worker lost{at}, attempt {again.attempt} of {again.of}"
        self._tell("again", text, {"key": key, **asdict(again)})

    def _with_smaller(self, error: Exception) -> Exception:
        """The same error; of a chunk that no worker survives, with a size that needs less of them."""
        smaller = self.inputs.grid.chunk_px // 2
        if not isinstance(error, ResourceError) or error.code != "worker-lost" or smaller < SMALLEST_CHUNK_PX:
            return error
        fix = f"{error.fix} If that does not help, make the same map as a new run with chunk_px = {smaller}."
        return ResourceError(error.code, error.what, where=error.where, why=error.why, fix=fix)

    def _still_there(self, error: ResourceError) -> ResourceError:
        """The same error, with what is left of the run where the cluster is gone."""
        if error.code != "cluster-lost":
            return error
        what = f"{error.what}, store and receipts are intact, {self.unfinished:,} chunks remain"
        fix = f"Start the cluster again, then run `eo-batch resume {self.store.where}`."
        return ResourceError(error.code, what, where=error.where, why=error.why, fix=fix)

    def _tell(self, kind: str, text: str, data: dict[str, Any]) -> None:
        done = self.counts["done"] + self.counts["empty"]
        self.listener(Event(kind, text, done, self.total, self.km2, data))


@dataclass(frozen=True, eq=False)
class _Tasks(Sequence[Task | None]):
    """Arguments of `execute` for the chunks `indices`, made when they are asked for; None for what is finished."""

    indices: Sequence[Index]
    run: tuple[str, str]
    left_out: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, at: int) -> Task | None:  # type: ignore[override]
        index = self.indices[at]
        return None if self.left_out[index] else (*self.run, *index)


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second Ctrl-C raises KeyboardInterrupt."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
