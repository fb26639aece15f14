"""What it saves that chunks share windows on their edges: windows computed, planned and counted, and the CPU time of serial runs.

    python benchmarks/shared_windows.py --size 4096 --chunk 1024

The demo region, mapped by segmenters of different price: `spectral`, which costs next to nothing, and `window-mean`, whose `cost`
makes a window as dear as a network's. Times are CPU seconds of one thread, so that a
busy machine does not change them much; the demo region is written first and not timed.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import machine

from eo_batch.core.clusters import ClusterSpec
from eo_batch.models.registry import load_segmenter
from eo_batch.outputs.store import Store
from eo_batch.run import answers, shared_windows
from eo_batch.run.cost.plan import make_inputs_of, make_plan
from eo_batch.run.driver import start_run
from eo_batch.run.ledger import get_receipt, receipt_keys
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, write_demo

KINDS = ("serial", "local", "local:2", "local:8")


@contextmanager
def sharing(most: int) -> Iterator[None]:
    """Runs that keep at most so many bytes of what they share."""
    before, shared_windows.SHARED_BYTES = shared_windows.SHARED_BYTES, most
    try:
        yield
    finally:
        shared_windows.SHARED_BYTES = before


def measure(pipeline: Path, out: Path, most: int) -> tuple[int, float, float]:
    """Windows that a serial run computes, CPU seconds of its scoring, and of all of it."""
    plain, scoring = answers.score_chunk, 0.0

    def timed(*args, **named):
        nonlocal scoring
        began = time.process_time()
        logits = plain(*args, **named)
        scoring += time.process_time() - began
        return logits

    answers.score_chunk = timed
    try:
        with sharing(most):
            began = time.process_time()
            assert start_run(load_pipeline(pipeline), out, executor="serial").exit_status == 0
            whole = time.process_time() - began
    finally:
        answers.score_chunk = plain
    store = Store(out)
    told = [get_receipt(store, key).telemetry["windows"] for key in receipt_keys(store)]
    return sum(one.get("computed", 0) for one in told), scoring, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--costs", type=int, nargs="*", default=[0, 30, 300], help="work per window of `window-mean`")
    chosen = parser.parse_args()
    print(machine())
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_demo(folder, DemoRegion(size_px=chosen.size))
        text = re.sub(r"chunk_px = \d+", f"chunk_px = {chosen.chunk}", (folder / "demo.toml").read_text())
        models = {"spectral": text}
        for cost in chosen.costs:
            model = f'name = "window-mean"\noptions = {{ cost = {cost} }}'
            models[f"window-mean, cost {cost}"] = text.replace('name = "spectral"', model)
        for label, content in models.items():
            pipeline = folder / f"{len(label)}-{hash(label) % 10_000}.toml"
            pipeline.write_text(content)
            inputs = make_inputs_of(load_pipeline(pipeline))
            segmenter = load_segmenter(inputs.request.spec.model, inputs.request.spec.source.bands)
            print(label)
            for kind in KINDS:
                plan = make_plan(inputs, segmenter, cluster=ClusterSpec(kind=kind, workers=2 if kind == "local" else None))
                factors = f"{plan.windows_alone / plan.windows_distinct:.3f} alone, {plan.recomputed:.3f} shared"
                print(f"  planned, {kind:8} {factors}; memory {plan.memory.shared / 1e6:.0f} MB")
            (many, slow, all_slow), (few, fast, all_fast) = (
                measure(pipeline, folder / f"{pipeline.stem}-{most}", most) for most in (0, shared_windows.SHARED_BYTES)
            )
            distinct = plan.windows_distinct
            print(f"  counted: {many / distinct:.3f} alone, {few / distinct:.3f} shared, of {distinct} windows")
            print(f"  scoring {slow:.2f} s alone, {fast:.2f} s shared: {fast / slow:.2f}x; run {all_fast / all_slow:.2f}x")


if __name__ == "__main__":
    main()
