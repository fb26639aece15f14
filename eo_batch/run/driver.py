"""Starts and resumes runs: freeze the inputs, have the chunks computed, merge, publish.

All state is on disk. The driver may be killed at any moment; `resume_run` continues from the receipts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter, prompt_warnings
from eo_batch.outputs.cube import create_cube
from eo_batch.outputs.layers import BOXES, PRODUCTS
from eo_batch.outputs.store import Store
from eo_batch.run.clusters import choose_cluster
from eo_batch.run.cost.compare import put_plan
from eo_batch.run.cost.plan import make_inputs_of, make_plan
from eo_batch.run.features import check_keeps
from eo_batch.run.generations import Generation, check_no_gap, generations, newest
from eo_batch.run.later.derived import kept_identity
from eo_batch.run.lease import Lease, acquire, check_free
from eo_batch.run.ledger import receipt_keys
from eo_batch.run.manifest import (
    RunInputs,
    SegmenterIdentity,
    check_resumable,
    check_same_request,
    identity_of,
    read_inputs,
    read_manifest,
    read_request,
    write_inputs,
)
from eo_batch.run.merge import merge_and_publish, read_marker
from eo_batch.run.order import Index
from eo_batch.run.request import Request
from eo_batch.run.settled import settle
from eo_batch.run.sitting import Sitting, sit
from eo_batch.run.told.events import Event, Listener, silent
from eo_batch.run.told.journal import journal
from eo_batch.run.verify import forget_damaged_manifests, requeue_damaged
from eo_batch.version import __version__


@dataclass(frozen=True)
class RunSummary:
    """How a run, or one sitting of it, ended."""

    path: str
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
        rows += [("seconds", f"{self.seconds:.1f}"), ("run", str(self.path))]
        if self.interrupted:  # said when it was
            return rows
        return [*rows, ("next", f"eo-batch {'report' if self.complete else 'resume'} {self.path}")]

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
    out: str | Path,
    *,
    executor: str | None = None,
    workers: int | None = None,
    allow_failed: int = 0,
    listener: Listener = silent,
    choose: Callable[[RunInputs], Sequence[Index]] | None = None,
) -> RunSummary:
    """Search, plan, and run a pipeline into a new folder.

    Parameters
    ----------
    choose : gives the chunks that this sitting computes, in their order; None: all.

    Raises
    ------
    EoBatchError : what stands in the way; nothing is left behind unless the run has begun.
    """
    began = time.monotonic()
    spec = request.spec
    cluster = choose_cluster(spec.cluster, executor, workers, base=request.folder)
    store = Generation(out)
    if store.exists("request.json"):
        check_free(store)
        _refuse_run(store, request)
    _refuse_foreign(store)
    settled = settle(request, cluster, say=lambda text: listener(Event("wait", text)))
    request, segmenter = settled.request, settled.segmenter
    spec = request.spec
    for text in prompt_warnings(segmenter, spec.prompt_set):
        listener(Event("warning", text))
    probe = settled.probe or probe_segmenter(
        segmenter,
        spec.prompt_set,
        spec.source.bands,
        window_px=spec.model.window_px,
        batch=spec.model.fixed_batch,
        keeps_features=check_keeps(segmenter, spec.cache) is not None,
    )
    if not probe.position_independent:
        text = f'segmenter "{segmenter.info.name}" answers a window otherwise in other company: its maps depend on the chunk size'
        listener(Event("warning", f"{text}, and no features are kept" if spec.cache.features else text))
    inputs = make_inputs_of(request, listener=listener)
    plan = make_plan(inputs, segmenter, cluster=cluster, out=out, price=settled.price)
    listener(Event("plan", f"{plan.chunks:,} chunks, {plan.scenes:,} scenes", total=plan.chunks, data=plan.as_dict()))
    plan.check()
    with acquire(store) as lease:
        _refuse_run(store, request)  # another driver may have begun during the search
        identity = identity_from(segmenter)
        write_inputs(store, inputs, segmenter=identity, version=__version__)
        put_plan(store, plan)
        only = None if choose is None else choose(inputs)
        return conduct(store, inputs, identity, lease, cluster, allow_failed, listener, began, only=only)


def resume_run(
    out: str | Path,
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
    cluster = choose_cluster(read_request(newest(out)).spec.cluster, executor, workers)
    if request is not None:
        check_same_request(read_request(newest(out)), request)
    with acquire(Generation(out), say=lambda text: listener(Event("warning", text))) as lease:
        if lease.swept:
            listener(Event("warning", f"removed {lease.swept} partial files of a killed driver"))
        chain = generations(out)
        store = chain[-1]
        check_no_gap(store)
        if repair:
            for text in forget_damaged_manifests(chain):
                listener(Event("warning", text))
        found = store.exists("items.parquet")
        inputs = read_inputs(store) if found else make_inputs_of(read_request(store), listener=listener)
        identity = _who_answers(store, inputs)
        write_inputs(store, inputs, segmenter=identity, version=__version__)
        for each in chain[:-1]:
            if not each.exists("manifest.json"):
                write_inputs(each, read_inputs(each), segmenter=identity, version=__version__)
        if repair:
            for text in requeue_damaged(chain, [read_inputs(each) for each in chain]):
                listener(Event("warning", text))
        return conduct(store, inputs, identity, lease, cluster, allow_failed, listener, began)


def _who_answers(store: Generation, inputs: RunInputs) -> SegmenterIdentity:
    """The segmenter that goes on with a run; errors as `check_resumable`."""
    spec = inputs.request.spec
    manifest = next((found for each in reversed(generations(store.where)) if (found := read_manifest(each))), None)
    try:
        identity = kept_identity(store) or identity_from(load_segmenter(spec.model, spec.source.bands))
    except ResourceError as error:
        if error.code != "no-gpu" or manifest is None:
            raise
        identity = identity_of(manifest)  # workers may have the GPU that is not here; each holds its own segmenter against it
    if manifest is not None:
        check_resumable(manifest, inputs, segmenter_digest=identity.digest)
    return identity


def identity_from(segmenter: Segmenter) -> SegmenterIdentity:
    """What a run keeps of a segmenter."""
    return SegmenterIdentity(segmenter.info.name, segmenter.info.digest)


def conduct(
    store: Generation,
    inputs: RunInputs,
    segmenter: SegmenterIdentity,
    lease: Lease,
    cluster: ClusterSpec,
    allow_failed: int,
    listener: Listener,
    began: float,
    *,
    only: Sequence[Index] | None = None,
) -> RunSummary:
    """Everything between frozen inputs and the summary: compute what is missing, merge, publish.

    Parameters
    ----------
    segmenter : who answers, for the attributes of the results; nothing is loaded here.
    began : when the command began, `time.monotonic`.
    only : the chunks of this sitting; None: all. Where others are missing after it, nothing is published.
    """
    done = _finished(store, inputs, began)
    if done is not None:
        return done
    with journal(store, lease.epoch, listener) as noted:
        sitting = _sit_down(store, inputs, segmenter, only=only, cluster=cluster, allow_failed=allow_failed, listener=noted)
        failed = sitting.counts["failed"]
        if sitting.interrupted or sitting.unfinished or failed > allow_failed:
            return _summary(store, sitting, began)
        lease.check()
        _withdraw(store, inputs, segmenter, noted)
        marker = merge_and_publish(store, inputs, segmenter, failed=failed, lease=lease, listener=noted)
        return _summary(store, sitting, began, marker)


def _sit_down(
    store: Generation, inputs: RunInputs, segmenter: SegmenterIdentity, *, only: Sequence[Index] | None, **settings: Any
) -> Sitting:
    """The sitting that computes what is missing, or an earlier generation's that was interrupted."""
    if store.number == 0:
        _create_cube(store, inputs, segmenter)  # what is computed can be looked at while the rest is
    for earlier in generations(store.where)[: store.number]:  # they lack chunks only after a repair
        sitting = sit(earlier, read_inputs(earlier), **settings)
        if sitting.interrupted:
            return sitting
    return sit(store, inputs, only=only, **settings)


def _withdraw(store: Generation, inputs: RunInputs, segmenter: SegmenterIdentity, listener: Listener) -> None:
    """Take back what was published of the generation before, where there is one: readers saw it and nothing else until here."""
    if store.number:
        if store.exists("COMPLETE.json") and store.exists(BOXES):
            text = f"{PRODUCTS}/ holds the map as it was: `eo-batch products {store.where}` makes it anew"
            listener(Event("warning", text))
        store.delete("COMPLETE.json")
        _create_cube(store, inputs, segmenter)


def _summary(store: Store, sitting: Sitting, began: float, marker: dict[str, Any] | None = None) -> RunSummary:
    """How a sitting ended; says how to go on where it was interrupted."""
    counts = marker["chunks"] if marker else sitting.counts
    done, empty, failed = counts["done"], counts["empty"], counts["failed"]
    if sitting.interrupted:
        text = f"interrupted: {done + empty:,} of {sitting.total:,} chunks done; resume with `eo-batch resume {store.where}`"
        sitting.listener(Event("warning", text, done + empty, sitting.total))
    rows = marker["footprints"] if marker else {}
    seconds = time.monotonic() - began
    return RunSummary(store.where, sitting.total, done, empty, failed, seconds, marker is not None, sitting.interrupted, rows)


def _finished(store: Store, inputs: RunInputs, began: float) -> RunSummary | None:
    """Summary of a run that is complete and lacks nothing, or None: there is work to do."""
    marker, manifest = read_marker(store), read_manifest(store)
    if marker is None or manifest is None or marker["run"] != manifest["digest"]:
        return None
    if marker["partial"] or sum(1 for _ in receipt_keys(store)) != inputs.chunk_count:
        return None
    counts = marker["chunks"]
    seconds = time.monotonic() - began
    return RunSummary(
        store.where, inputs.chunk_count, counts["done"], counts["empty"], 0, seconds, True, rows_per_prompt=marker["footprints"]
    )


def _refuse_run(store: Store, request: Request) -> None:
    """Keep a new run out of the folder of another."""
    if store.exists("request.json"):
        check_same_request(read_request(newest(store.where)), request)
        raise ConfigError(
            "config-invalid",
            "this folder already holds a run",
            where=store.where,
            fix=f"Continue it with eo-batch resume {store.where}, or give another --out.",
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
        raise ConfigError("config-invalid", f'the folder holds other files, such as "{foreign}"', where=store.where, fix=fix)


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
