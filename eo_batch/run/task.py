"""The journey of one chunk, as a straight line: read, score, decide, write, trace, commit.

`run_chunk` is a pure function of its context and the chunk's indices: run it twice, anywhere, and the bytes are the
same. `execute` is what an executor sends to a worker: three integers and a folder, never pixels.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.grid import Chunk, Span
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ChunkReceipt
from eo_batch.models.segmenter import Segmenter
from eo_batch.outputs.contributed import contributed_bytes, contributed_path
from eo_batch.outputs.cube import encode_shard, shard_path
from eo_batch.outputs.footprints import part_path
from eo_batch.outputs.trace import PART_SCHEMA, join_parts, part_bytes, trace_chunk
from eo_batch.run.answers import Answered, Answers, fresh_answers
from eo_batch.run.executors.worker import telling
from eo_batch.run.generations import Generation, with_manifest
from eo_batch.run.later.earlier import added_prompts, check_scene, earlier_of
from eo_batch.run.later.stored import stored_answers
from eo_batch.run.ledger import put_receipt
from eo_batch.run.manifest import RunInputs, check_answers, read_inputs, read_manifest
from eo_batch.run.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False)
class RunContext:
    """What every chunk of a run needs; loaded once per process.

    `prompts`: those that are answered now; where a run is extended, the last ones of all.
    """

    store: Generation
    inputs: RunInputs
    prompts: PromptSet
    answers: Answers

    @property
    def first(self) -> int:
        """Position of the first of `prompts` among all prompts of the run."""
        return len(self.inputs.request.spec.prompts) - len(self.prompts)


def make_context(store: Generation, inputs: RunInputs, segmenter: Segmenter | None = None) -> RunContext:
    """Context of a run: the only place that chooses who answers.

    Raises
    ------
    ResumeError : `weights-changed`: the segmenter here is not that of the run.
    """
    prompts = added_prompts(store, inputs)
    stored = None if segmenter else stored_answers(store, inputs)
    if stored is not None:
        return RunContext(store, inputs, prompts, stored)
    fresh = fresh_answers(inputs, prompts, segmenter, store=store)
    manifest = read_manifest(store)
    if manifest is not None:
        check_answers(manifest, fresh.segmenter.info)
    return RunContext(store, inputs, prompts, fresh)


def prepare(folder: str, run_digest: str) -> None:
    """Make ready in this process what every chunk of the run in `folder` needs.

    Raises
    ------
    EoBatchError : what keeps every chunk from being made; it need not be met chunk by chunk.
    """
    _context(folder, run_digest)


def execute(folder: str, run_digest: str, t: int, iy: int, ix: int, *, attempt: int = 1) -> ChunkReceipt:
    """Compute chunk (t, iy, ix) of the run in `folder`: the task that executors submit.

    Parameters
    ----------
    attempt : 2, 3, ... where workers were lost that had begun it.
    """
    with telling("load"):
        context = _context(folder, run_digest)
    return run_chunk(context, context.inputs.grid.chunk(t, iy, ix), attempt=attempt)


def run_chunk(run: RunContext, chunk: Chunk, *, attempt: int = 1) -> ChunkReceipt:
    """Make everything of one chunk: shards, part, receipt.

    Raises
    ------
    AssetError, ModelError : this chunk cannot be made.
    StoreError, IntegrityError : no chunk can be made.
    """
    clock = Stopwatch()
    inside_ring = run.inputs.region.inside(_ring(chunk.rows), _ring(chunk.cols))
    inside = inside_ring[1:-1, 1:-1]
    earlier = earlier_of(run.store, chunk)
    found = run.answers.answer(chunk, inside, clock)
    facts = _facts(run, found, inside)
    check_scene(run.store, earlier, chunk, facts=facts, observed=found.observed, grid=run.inputs.grid)
    traced = PART_SCHEMA.empty_table()
    if found.observed.any():
        with clock("trace"):
            traced = trace_chunk(
                found.masks,
                found.scores,
                chunk=chunk,
                grid=run.inputs.grid,
                prompts=run.prompts,
                items=found.items,
                contributed=found.contributed,
                inside_ring=inside_ring,
            )
    part = join_parts(earlier.part, traced, prompts_before=run.first)
    with clock("write"):
        files = _put_arrays(run, chunk, found, {**earlier.files, **found.files}, clock)
        files[part_path(chunk)] = clock.put(run.store, part_path(chunk), part_bytes(part))
    made = {"attempt": attempt, "device": run.answers.device, "bytes_read": found.bytes_read, "notes": list(found.notes)}
    telemetry = {**clock.telemetry(), **made, "windows": dict(found.windows)}
    receipt = ChunkReceipt(key=chunk.key, files=files, polygons=part.num_rows, telemetry=telemetry, **facts)
    put_receipt(run.store, receipt)
    return receipt


def _facts(run: RunContext, found: Answered, inside: NDArray[np.bool_]) -> dict[str, Any]:
    """What a receipt says of the scene: the same whatever the prompts."""

    def keys(items: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(sorted(run.inputs.items.items[item].key for item in items))

    return {
        "status": "done" if found.observed.any() else "empty",
        "items": keys(found.items),
        "skipped": keys(found.skipped),
        "valid_px": int(found.observed.sum()),
        "inside_px": int(inside.sum()),
    }


def _put_arrays(run: RunContext, chunk: Chunk, found: Answered, there: dict[str, str], clock: Stopwatch) -> dict[str, str]:
    """Write shards and, beside scores, which items gave the pixels; path -> sha256, of what was `there` already too."""
    files = dict(there)
    kept = run.inputs.request.spec.output.scores
    for name, values in {"mask": found.masks, **({"score": found.scores} if kept else {})}.items():
        for index in range(len(run.prompts)):
            path = shard_path(name, run.first + index, chunk)
            if path not in files:
                files[path] = clock.put(run.store, path, encode_shard(values[index], run.inputs.grid))
    if kept and contributed_path(chunk) not in files:
        data = contributed_bytes(found.items, found.contributed)
        files[contributed_path(chunk)] = clock.put(run.store, contributed_path(chunk), data)
    return files


def _ring(span: Span) -> Span:
    """The span and one pixel around it: region edges are told from a pixel's four neighbours."""
    return Span(span.start - 1, span.stop + 1)


def forget_contexts() -> None:
    """Let go of the segmenter and the items that this process keeps for its last run."""
    with _contexts_lock:
        _contexts.clear()


_contexts: dict[tuple[str, str], RunContext] = {}
_contexts_lock = threading.Lock()


def _context(folder: str, run_digest: str) -> RunContext:
    with _contexts_lock:
        key = (folder, run_digest)
        if key not in _contexts:
            store = with_manifest(folder, run_digest)
            context = make_context(store, read_inputs(store))
            _contexts.clear()
            _contexts[key] = context
        return _contexts[key]
