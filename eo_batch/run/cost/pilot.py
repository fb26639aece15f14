"""A pilot: some chunks of a run computed for the sake of its price, on the cluster that will compute the rest.

The run is begun like any other and stopped after the chosen chunks; `eo-batch resume` goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from eo_batch.core.digest import canonical_json
from eo_batch.core.grid import chunk_key
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.store import Store
from eo_batch.run.cost.compare import PILOT, figure, read_plan
from eo_batch.run.cost.coverage import loads_of
from eo_batch.run.cost.estimate import INSIDE, Range
from eo_batch.run.cost.foretell import Terms, are_warm, foretell, kept_at_work
from eo_batch.run.cost.measured import ChunkWork, work_of
from eo_batch.run.cost.sample import Sample, choose_sample
from eo_batch.run.driver import RunSummary, start_run
from eo_batch.run.generations import Generation
from eo_batch.run.ledger import get_receipt, receipt_path
from eo_batch.run.manifest import RunInputs, read_inputs
from eo_batch.run.order import Index
from eo_batch.run.request import Request
from eo_batch.run.told.events import Event, Listener, silent


@dataclass(frozen=True)
class Pilot:
    """What a pilot measured, and what it foretells of the whole run.

    Parameters
    ----------
    where : of the run that it began.
    chunks, failed, total : computed by the pilot, failed in it, and planned for the run.
    processes : worker processes that are paid for.
    are_warm : the first chunks of every worker, which also load and compile, are left out of the figures of a chunk.
    figures : name -> range, of the whole run with the pilot's chunks.
    """

    where: str
    cluster: str
    chunks: int
    failed: int
    total: int
    processes: int
    price_per_hour: float | None
    currency: str
    are_warm: bool
    terms: Terms
    figures: Mapping[str, Range]

    def rows(self) -> list[tuple[str, str, str]]:
        """Label, value with its range, and remark of each printed line."""
        terms = self.terms
        search, start, merge = (figure(s, "s") for s in (terms.search_s, terms.start_s, self.figures["merge_s"].middle))
        rows = [
            ("pilot", f"{self.chunks:,} of {self.total:,} chunks", f"{terms.at_once} at once on {self.cluster}"),
            self._row("time", "total_s", "s", f"search {search}, start {start}, computing, merge {merge} (assumed)"),
            self._row("computing", "computing_s", "s", f"workers have a chunk {100 * terms.kept_at_work:.0f} % of the time"),
            self._row("read", "bytes_read", "bytes", "decoded pixels"),
            self._row("written", "bytes_written", "bytes", "shards and parts"),
            self._row("windows", "windows", "", "computed"),
            self._row("windows/s", "windows_per_s", "", "all workers together"),
            self._row("busy", "busy_percent", "%", "of the time the segmenter computes"),
        ]
        if "money" in self.figures:
            price = f"{self.price_per_hour:g} {self.currency} an hour for each of {self.processes} worker processes"
            rows.append(self._row("money", "money", self.currency, price))
        rows.append(
            ("range", f"{100 * INSIDE:.0f} %", "of such pilots give a range that holds the truth, if nothing else changes")
        )
        if not self.are_warm and self.chunks < self.total:
            rows.append(
                ("too few", f"{self.chunks:,}", f"the first chunks of workers are slower; say --pilot {3 * terms.at_once}")
            )
        if self.failed:
            rows.append(("failed", f"{self.failed:,}", "chunks of the pilot; the others stand for them"))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The pilot as JSON values."""
        terms = self.terms
        return {
            "run": self.where,
            "cluster": self.cluster,
            "chunks": self.chunks,
            "failed": self.failed,
            "total": self.total,
            "at_once": terms.at_once,
            "processes": self.processes,
            "price_per_hour": self.price_per_hour,
            "currency": self.currency,
            "search_s": round(terms.search_s, 3),
            "start_s": round(terms.start_s, 3),
            "kept_at_work": round(terms.kept_at_work, 4),
            "are_warm": self.are_warm,
            "inside": INSIDE,
            "figures": {name: found.as_dict() for name, found in self.figures.items()},
        }

    def _row(self, label: str, name: str, unit: str, remark: str) -> tuple[str, str, str]:
        found = self.figures[name]
        low, middle, high = (figure(value, unit) for value in (found.low, found.middle, found.high))
        return label, middle if low == high else f"{middle} ({low} to {high})", remark


def run_pilot(
    request: Request,
    out: str,
    *,
    chunks: int,
    executor: str | None = None,
    workers: int | None = None,
    listener: Listener = silent,
) -> Pilot | RunSummary:
    """Begin a run in `out`, compute some of its chunks, and foretell the rest; writes `pilot.json` there.

    Parameters
    ----------
    chunks : to compute, at most.
    executor, workers, listener : as in `start_run`; errors too.

    Returns
    -------
    RunSummary : of a pilot that was interrupted, or could not make a single chunk.
    """
    watch = _Watch(listener, chunks)
    summary = start_run(request, out, executor=executor, workers=workers, listener=watch.tell, choose=watch.choose)
    store = Generation(out)
    assert watch.sample is not None
    is_done = np.array([store.exists(receipt_path(chunk_key(*chunk))) for chunk in watch.sample.chunks], bool)
    if summary.interrupted or not is_done.any():
        return summary
    pilot = _judge(store, watch, watch.sample.part(is_done))
    store.put(PILOT, canonical_json(pilot.as_dict()))
    return pilot


@dataclass
class _Watch:
    """Chooses the chunks of a pilot, keeps when things happened, and tells of them as if there were no other chunks."""

    listener: Listener
    chunks: int
    sample: Sample | None = None
    at_once: int = 1
    began: float = field(default_factory=time.time)
    planned: float = 0.0

    def choose(self, inputs: RunInputs) -> Sequence[Index]:
        """The chunks, far from each other one after the other: the first ones of all workers lie everywhere."""
        self.sample = choose_sample(loads_of(inputs), self.chunks)
        golden = (1 + 5**0.5) / 2
        return [self.sample.chunks[i] for i in np.argsort(np.arange(len(self.sample.chunks)) * golden % 1)]

    def tell(self, event: Event) -> None:
        """Listener of the run."""
        if event.kind == "plan":
            self.planned = time.time()
        if event.kind == "start":
            self.at_once = int(event.data.get("workers", 1))
        few = None if self.sample is None else len(self.sample.chunks)
        self.listener(replace(event, total=min(few, event.total)) if few is not None else event)


def _judge(store: Store, watch: _Watch, sample: Sample) -> Pilot:
    """What the finished chunks of a pilot say."""
    assert watch.sample is not None
    plan, inputs = read_plan(store), read_inputs(store)
    receipts = [get_receipt(store, chunk_key(*chunk)) for chunk in sample.chunks]
    took = [_alone(work_of(receipt), receipt, inputs, chunk) for receipt, chunk in zip(receipts, sample.chunks, strict=True)]
    processes, at_once = int(plan["processes"]), int(plan["workers"])
    if not plan["workers_known"]:
        processes, at_once = len({work.worker for work in took}), watch.at_once
    warm = are_warm(took, max(1, at_once // processes))
    kept = [work for work, is_warm in zip(took, warm, strict=True) if is_warm]
    late = float(np.mean([work.seconds for work, is_warm in zip(took, warm, strict=True) if not is_warm] or [0.0]))
    first = min((work.began for work in took if work.began is not None), default=watch.planned)
    price = plan["price_per_hour"]
    terms = Terms(
        chunks=inputs.chunk_count,
        at_once=at_once,
        scoring=processes if any(receipt.telemetry.get("device") == "cuda" for receipt in receipts) else at_once,
        kept_at_work=kept_at_work(took, at_once),
        search_s=watch.planned - watch.began,
        start_s=max(first - watch.planned, 0.0) + max(late - float(np.mean([work.seconds for work in kept])), 0.0),
        longest_s=max(work.seconds for work in kept),
        window_share=plan["windows"] / plan["windows_alone"] if plan["windows_alone"] else 1.0,
        price_per_s=(price or 0.0) * processes / 3600,
    )
    return Pilot(
        where=store.where,
        cluster=plan["cluster"],
        chunks=len(took),
        failed=len(watch.sample.chunks) - len(took),
        total=inputs.chunk_count,
        processes=processes,
        price_per_hour=price,
        currency=plan["currency"],
        are_warm=not warm.all(),
        terms=terms,
        figures=foretell(sample.part(warm), kept, terms),
    )


def _alone(work: ChunkWork, receipt: ChunkReceipt, inputs: RunInputs, index: Index) -> ChunkWork:
    """The work as if the chunk had computed all windows that it needs; as many as planned where nobody counted them."""
    if work.windows < 0:
        windows = sum(1 for _ in inputs.grid.windows(inputs.grid.chunk(*index))) if receipt.status == "done" else 0
        return replace(work, windows=windows)
    more = work.busy_s * max(work.shared, 0) / work.windows if work.windows else 0.0
    windows = work.windows + max(work.shared, 0)
    return replace(work, windows=windows, shared=0, busy_s=work.busy_s + more, seconds=work.seconds + more)
