"""The journey of one chunk, as a straight line: read, score, decide, write, trace, commit.

`run_chunk` is a pure function of its context and the chunk's indices: run it twice, anywhere, and the bytes are the
same. `execute` is what an executor sends to a worker: three integers and a folder, never pixels.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION, decide, quantise_scores
from eo_batch.core.grid import Chunk, Span
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ChunkReceipt, Scene
from eo_batch.models.inference import score_chunk
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter
from eo_batch.outputs.cube import encode_shard, shard_path
from eo_batch.outputs.footprints import part_path
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import PART_SCHEMA, part_bytes, trace_chunk
from eo_batch.run.ledger import put_receipt
from eo_batch.run.manifest import RunInputs, read_inputs
from eo_batch.sources.stack import SceneSource, open_source


@dataclass(frozen=True, eq=False)
class RunContext:
    """What every chunk of a run needs; loaded once per process."""

    store: Store
    inputs: RunInputs
    source: SceneSource
    segmenter: Segmenter
    prompts: PromptSet
    prompt_features: Any


def make_context(store: Store, inputs: RunInputs, segmenter: Segmenter | None = None) -> RunContext:
    """Context of a run: opens the source, loads the segmenter, encodes the prompts."""
    spec = inputs.request.spec
    segmenter = segmenter or load_segmenter(spec.model, spec.source.bands)
    prompts = spec.prompt_set
    source = open_source(inputs.items, inputs.grid, spec, inputs.request.catalog)
    return RunContext(store, inputs, source, segmenter, prompts, segmenter.encode_prompts(prompts))


def execute(folder: str, run_digest: str, t: int, iy: int, ix: int) -> ChunkReceipt:
    """Compute chunk (t, iy, ix) of the run in `folder`: the task that executors submit."""
    context = _context(folder, run_digest)
    return run_chunk(context, context.inputs.grid.chunk(t, iy, ix))


def run_chunk(run: RunContext, chunk: Chunk) -> ChunkReceipt:
    """Make everything of one chunk: shards, part, receipt.

    Raises
    ------
    AssetError, ModelError : this chunk cannot be made.
    StoreError, IntegrityError : no chunk can be made.
    """
    clock = Stopwatch()
    inside_ring = run.inputs.region.inside(_ring(chunk.rows), _ring(chunk.cols))
    inside = inside_ring[1:-1, 1:-1]
    with clock("read"):
        scene = _read(run, chunk, inside)
    observed = _observed(scene, chunk, inside)
    if scene is None or not observed.any():
        masks = scores = np.full((len(run.prompts), *chunk.shape), NO_OBSERVATION, np.uint8)
        part = PART_SCHEMA.empty_table()
    else:
        masks, scores = _answer(run, scene, observed, inside, chunk, clock)
        with clock("trace"):
            part = trace_chunk(
                masks,
                scores,
                chunk=chunk,
                grid=run.inputs.grid,
                prompts=run.prompts,
                items=scene.items,
                contributed=scene.contributed,
                inside_ring=inside_ring,
            )
    with clock("write"):
        files = _put_shards(run, chunk, masks, scores)
        files[part_path(chunk)] = run.store.put(part_path(chunk), part_bytes(part))
    receipt = ChunkReceipt(
        chunk.key,
        "done" if observed.any() else "empty",
        files,
        _keys(run, scene.items if scene else ()),
        _keys(run, scene.skipped if scene else ()),
        int(observed.sum()),
        int(inside.sum()),
        part.num_rows,
        {"seconds": clock.seconds, "bytes_read": scene.bytes_read if scene else 0},
    )
    put_receipt(run.store, receipt)
    return receipt


def _keys(run: RunContext, items: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(sorted(run.inputs.items.items[item].key for item in items))


@dataclass
class Stopwatch:
    """Seconds per stage, monotonic."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage under its name."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 4)


def _read(run: RunContext, chunk: Chunk, inside: NDArray[np.bool_]) -> Scene | None:
    step = run.inputs.steps[chunk.t]
    if not inside.any() or not run.source.candidates(chunk, step):
        return None
    return run.source.read_scene(chunk, step)


def _observed(scene: Scene | None, chunk: Chunk, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the interior that are inside the region and validly observed, bool (y, x)."""
    if scene is None:
        return np.zeros(chunk.shape, bool)
    rows, cols = chunk.rows.within(chunk.padded_rows), chunk.cols.within(chunk.padded_cols)
    return scene.valid[rows, cols] & inside


def _answer(
    run: RunContext, scene: Scene, observed: NDArray[np.bool_], inside: NDArray[np.bool_], chunk: Chunk, clock: Stopwatch
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Masks and scores of a chunk that was observed, uint8 (prompt, y, x)."""
    with clock("score"):
        logits = score_chunk(
            run.segmenter,
            run.prompt_features,
            pixels=scene.pixels,
            valid=scene.valid,
            inside=inside,
            grid=run.inputs.grid,
            chunk=chunk,
            prompts=len(run.prompts),
            batch=run.inputs.request.spec.model.batch,
        )
    with clock("decide"):
        scores = quantise_scores(logits, observed)
        return decide(scores, np.array([prompt.threshold for prompt in run.prompts])), scores


def _put_shards(run: RunContext, chunk: Chunk, masks: NDArray[np.uint8], scores: NDArray[np.uint8]) -> dict[str, str]:
    arrays = {"mask": masks}
    if run.inputs.request.spec.output.scores:
        arrays["score"] = scores
    files = {}
    for name, values in arrays.items():
        for index in range(len(run.prompts)):
            path = shard_path(name, index, chunk)
            files[path] = run.store.put(path, encode_shard(values[index], run.inputs.grid))
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
            store = Store(Path(folder))
            context = make_context(store, read_inputs(store))
            _contexts.clear()
            _contexts[key] = context
        return _contexts[key]
