"""Starts and resumes runs: freeze the inputs, hand out chunks, judge outcomes, merge, publish.

All state is on disk. The driver may be killed at any moment; `resume_run` continues from the receipts.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eo_batch.core.errors import ConfigError, EoBatchError, IntegrityError, StoreError
from eo_batch.core.grid import chunk_key
from eo_batch.core.hrefs import redact
from eo_batch.core.records import ChunkFailure, ChunkReceipt
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import prompt_warnings
from eo_batch.outputs.cube import create_cube
from eo_batch.outputs.store import Store
from eo_batch.run.events import Event, Listener, silent
from eo_batch.run.executors import Executor, Task, check_kind, make_executor
from eo_batch.run.lease import Lease, acquire, check_free
from eo_batch.run.ledger import put_failure, receipt_keys
from eo_batch.run.manifest import (
    RunInputs,
    SegmenterIdentity,
    check_resumable,
    check_same_request,
    read_inputs,
    read_manifest,
    read_request,
    write_inputs,
)
from eo_batch.run.merge import merge_and_publish, read_marker
from eo_batch.run.plan import make_inputs_of, make_plan
from eo_batch.run.request import Request
from eo_batch.run.status import pixel_area_km2
from eo_batch.run.task import execute, forget_contexts
from eo_batch.run.verify import requeue_damaged
from eo_batch.version import __version__

STOP_AFTER_EQUAL = 20
"""Stop early after so many failures in a row with one code, unless they are allowed: the archive is down."""


@dataclass(frozen=True)
class RunSummary:
    """How a run, or one sitting of it, ended."""

    path: Path
    total: int
    done: int
    empty: int
    failed: int
    seconds: float
    complete: bool
    interrupted: bool = False
    rows_per_prompt: dict[str, int] = field(default_factory=dict)

    @property
    def exit_status(self) -> int:
        """0 complete, 3 finished with failed chunks, 130 interrupted."""
        if self.interrupted:
            return 130
        return 3 if self.failed or not self.complete else 0

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of the final table."""
        rows = [
            ("chunks done", f"{self.done:,}"),
            ("chunks without observation", f"{self.empty:,}"),
            ("chunks failed", f"{self.failed:,}"),
        ]
        missing = self.total - self.done - self.empty - self.failed
        if missing:
            rows.append(("chunks still to do", f"{missing:,}"))
        rows += [(f'footprints "{text}"', f"{count:,}") for text, count in self.rows_per_prompt.items()]
        return [*rows, ("seconds", f"{self.seconds:.1f}"), ("run", str(self.path))]

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            "run": str(self.path),
            "total": self.total,
            "done": self.done,
            "empty": self.empty,
            "failed": self.failed,
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "interrupted": self.interrupted,
            "footprints": self.rows_per_prompt,
            "exit_status": self.exit_status,
        }


def start_run(
    request: Request,
    out: Path,
    *,
    executor: str | None = None,
    workers: int | None = None,
    allow_failed: int = 0,
    listener: Listener = silent,
) -> RunSummary:
    """Search, plan, and run a pipeline into a new folder.

    Raises
    ------
    EoBatchError : what stands in the way; nothing is left behind unless the run has begun.
    """
    began = time.monotonic()
    spec = request.spec
    check_kind(executor or spec.cluster.kind)
    store = Store(out)
    if store.exists("request.json"):
        check_free(store)
        _refuse_run(store, request)
    _refuse_foreign(store)
    segmenter = load_segmenter(spec.model, spec.source.bands)
    for text in prompt_warnings(segmenter, spec.prompt_set):
        listener(Event("warning", text))
    probe = probe_segmenter(segmenter, spec.prompt_set, spec.source.bands, window_px=spec.model.window_px, batch=spec.model.batch)
    if not probe.position_independent:
        text = f'segmenter "{segmenter.info.name}" answers a window otherwise in other company: its maps depend on the chunk size'
        listener(Event("warning", text))
    inputs = make_inputs_of(request, listener=listener)
    plan = make_plan(inputs, segmenter, executor=executor, workers=workers, out=out)
    listener(Event("plan", f"{plan.chunks:,} chunks, {plan.scenes:,} scenes", total=plan.chunks, data=plan.as_dict()))
    plan.check()
    with acquire(store) as lease:
        _refuse_run(store, request)  # another driver may have begun during the search
        identity = SegmenterIdentity(segmenter.info.name, segmenter.info.digest)
        write_inputs(store, inputs, segmenter=identity, version=__version__)
        return conduct(store, inputs, identity, lease, executor, workers, allow_failed, listener, began)


def resume_run(
    out: Path,
    *,
    request: Request | None = None,
    repair: bool = False,
    executor: str | None = None,
    workers: int | None = None,
    allow_failed: int = 0,
    listener: Listener = silent,
) -> RunSummary:
    """Continue a run from what is on disk; with `repair`, first requeue chunks whose files are damaged.

    Raises
    ------
    ResumeError : the run was made from something else than `request`, or by other code or weights.
    LockError : another driver is alive.
    """
    began = time.monotonic()
    store = Store(out)
    stored = read_request(store)
    check_kind(executor or stored.spec.cluster.kind)
    if request is not None:
        check_same_request(stored, request)
    with acquire(store, say=lambda text: listener(Event("warning", text))) as lease:
        if lease.swept:
            listener(Event("warning", f"removed {lease.swept} partial files of a killed driver"))
        inputs = make_inputs_of(stored, listener=listener) if not store.exists("items.parquet") else read_inputs(store)
        segmenter = load_segmenter(stored.spec.model, stored.spec.source.bands)
        manifest = read_manifest(store)
        if manifest is not None:
            check_resumable(manifest, inputs, segmenter_digest=segmenter.info.digest)
        identity = SegmenterIdentity(segmenter.info.name, segmenter.info.digest)
        write_inputs(store, inputs, segmenter=identity, version=__version__)
        if repair:
            for text in requeue_damaged(store, inputs):
                listener(Event("warning", text))
        return conduct(store, inputs, identity, lease, executor, workers, allow_failed, listener, began)


def conduct(
    store: Store,
    inputs: RunInputs,
    segmenter: SegmenterIdentity,
    lease: Lease,
    kind: str | None,
    workers: int | None,
    allow_failed: int,
    listener: Listener,
    began: float,
) -> RunSummary:
    """Everything between frozen inputs and the summary: compute what is missing, merge, publish.

    Parameters
    ----------
    segmenter : who answers, for the attributes of the results; nothing is loaded here.
    began : when the command began, `time.monotonic`.
    """
    spec = inputs.request.spec
    done = _finished(store, inputs, began)
    if done is not None:
        return done
    _create_cube(store, inputs, segmenter)
    ledger = _Ledger(store, inputs, listener, allow_failed)
    interrupted = False
    if ledger.missing:
        with make_executor(kind or spec.cluster.kind, workers or spec.cluster.workers) as pool, _stop_on_signals() as stop:
            try:
                ledger.run(pool, stop)
            finally:
                forget_contexts()
            interrupted = stop.is_set()
    counts = ledger.counts
    rows: dict[str, int] = {}
    complete = False
    if not interrupted and counts["failed"] <= allow_failed and not ledger.unfinished:
        lease.check()
        marker = merge_and_publish(store, inputs, segmenter, failed=counts["failed"], lease=lease, listener=listener)
        rows, counts, complete = marker["footprints"], marker["chunks"], True
    if interrupted:
        finished = counts["done"] + counts["empty"]
        text = f"interrupted: {finished:,} of {ledger.total:,} chunks done; resume with `eo-batch resume {store.root}`"
        listener(Event("warning", text, finished, ledger.total))
    return RunSummary(
        store.root,
        inputs.chunk_count,
        counts["done"],
        counts["empty"],
        counts["failed"],
        time.monotonic() - began,
        complete,
        interrupted,
        rows,
    )


def _finished(store: Store, inputs: RunInputs, began: float) -> RunSummary | None:
    """Summary of a run that is complete and lacks nothing, or None: there is work to do."""
    marker = read_marker(store)
    if marker is None or marker["partial"] or sum(1 for _ in receipt_keys(store)) != inputs.chunk_count:
        return None
    counts = marker["chunks"]
    seconds = time.monotonic() - began
    return RunSummary(
        store.root, inputs.chunk_count, counts["done"], counts["empty"], 0, seconds, True, rows_per_prompt=marker["footprints"]
    )


class _Ledger:
    """Counts of a sitting, and the judgement of outcomes."""

    def __init__(self, store: Store, inputs: RunInputs, listener: Listener, allow_failed: int) -> None:
        self.store, self.inputs, self.listener, self.allow_failed = store, inputs, listener, allow_failed
        self.finished = set(receipt_keys(store))
        self.total = inputs.chunk_count
        self.missing = self.total - len(self.finished)
        self.counts = {"done": len(self.finished), "empty": 0, "failed": 0}
        self.pixel_km2 = pixel_area_km2(inputs)
        self.km2, self.in_a_row, self.last_code = 0.0, 0, ""
        self.fatal: BaseException | None = None

    @property
    def unfinished(self) -> int:
        """Chunks that are neither finished nor failed."""
        return self.total - sum(self.counts.values())

    def run(self, pool: Executor, stop: threading.Event) -> None:
        """Hand out all missing chunks; returns when all are judged, or drained after a stop."""
        manifest = read_manifest(self.store)
        assert manifest is not None
        folder = str(self.store.root)
        self.listener(
            Event(
                "start",
                f"{self.missing:,} of {self.total:,} chunks to do",
                self.total - self.missing,
                self.total,
                data={"dashboard": pool.dashboard, "workers": pool.width},
            )
        )
        for task, result in pool.outcomes(execute, self._tasks(folder, manifest["digest"], stop)):
            self._judge(task, result)
            if self.fatal is not None:
                stop.set()
        if self.fatal is not None:
            raise self.fatal

    def _tasks(self, folder: str, run_digest: str, stop: threading.Event) -> Iterator[Task]:
        ny, nx = self.inputs.grid.chunks_yx
        for t in range(len(self.inputs.steps)):
            for iy in range(ny):
                for ix in range(nx):
                    if stop.is_set():
                        return
                    if chunk_key(t, iy, ix) not in self.finished:
                        yield folder, run_digest, t, iy, ix

    def _judge(self, task: Task, result: Any) -> None:
        if isinstance(result, ChunkReceipt):
            if not self.km2:
                self.store.delete("COMPLETE.json")  # of a partial map: it stays until there is something new
            self.counts[result.status] += 1
            self.in_a_row = 0
            self.km2 += result.inside_px * self.pixel_km2
            data = {"key": result.key, "status": result.status, "polygons": result.polygons, **result.telemetry}
            self._tell("chunk", f"chunk {result.key}: {result.status}", data)
            return
        if isinstance(result, StoreError | IntegrityError) or not isinstance(result, Exception):
            self.fatal = self.fatal or result
            return
        self._fail(chunk_key(*task[2:]), result)

    def _fail(self, key: str, error: Exception) -> None:
        code = error.code if isinstance(error, EoBatchError) else "unexpected"
        text = str(error) if isinstance(error, EoBatchError) else redact(f"unexpected {type(error).__name__}: {error}")
        self.counts["failed"] += 1
        self.in_a_row = self.in_a_row + 1 if code == self.last_code else 1
        self.last_code = code
        put_failure(self.store, ChunkFailure(key, code, text, 1))
        self._tell("failure", f"chunk {key} failed: {text}", {"key": key, "code": code})
        share = 100.0 * self.counts["failed"] / self.total
        too_many = share > self.inputs.request.spec.limits.max_failed_percent and self.counts["failed"] >= STOP_AFTER_EQUAL
        if self.counts["failed"] > self.allow_failed and (self.in_a_row >= STOP_AFTER_EQUAL or too_many):
            self.fatal = error

    def _tell(self, kind: str, text: str, data: dict[str, Any]) -> None:
        done = self.counts["done"] + self.counts["empty"]
        self.listener(Event(kind, text, done, self.total, self.km2, data))


def _refuse_run(store: Store, request: Request) -> None:
    """Keep a new run out of the folder of another."""
    if store.exists("request.json"):
        check_same_request(read_request(store), request)
        raise ConfigError(
            "config-invalid",
            "this folder already holds a run",
            where=str(store.root),
            fix=f"Continue it with eo-batch resume {store.root}, or give another --out.",
        )


def _refuse_foreign(store: Store) -> None:
    """Keep a run out of a folder that holds something else: files of the same name would be replaced.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    foreign = next((path for path in store.list() if not path.startswith(("lease/", "."))), None)
    if foreign:
        fix = "Give a new or empty folder as --out."
        raise ConfigError("config-invalid", f'the folder holds other files, such as "{foreign}"', where=str(store.root), fix=fix)


def _create_cube(store: Store, inputs: RunInputs, segmenter: SegmenterIdentity) -> None:
    spec = inputs.request.spec
    create_cube(
        store,
        grid=inputs.grid,
        prompts=spec.prompt_set,
        steps=inputs.steps,
        scores=spec.output.scores,
        attributes={
            "title": spec.name,
            "model": segmenter.name,
            "source_licence": inputs.request.catalog.licence,
            "software": f"eo-batch {__version__}",
        },
    )


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
