"""What a run adds to its segmenter: wall time of a run over wall time of the segmenter alone on the same windows.

    python benchmarks/overhead.py --size 8192

Both sides use the same number of threads. The segmenter is the package's `window-mean`, whose `cost` makes a window as dear as a
network's: on the machine of docs/measured.md, 950 is a U-Net of 1.9 M parameters, 3600 one of 7.8 M. The demo region is written
first and not timed.
"""

from __future__ import annotations

import argparse
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from machine import machine

from eo_batch.core.clusters import ClusterSpec
from eo_batch.outputs.store import Store
from eo_batch.run.cost.plan import make_inputs_of, make_plan
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.task import make_context
from eo_batch.run.told.events import Event
from eo_batch.sources.synthetic import DemoRegion, write_demo


def pure_seconds(context, windows: int, workers: int) -> float:
    """Wall seconds of the segmenter alone on `windows` windows, `workers` threads."""
    spec = context.inputs.request.spec
    side = spec.model.window_px
    images = np.random.default_rng(1).random((spec.model.fixed_batch, len(spec.source.bands), side, side), np.float32)

    def call(_: int) -> None:
        context.answers.segmenter.decode(context.answers.segmenter.encode_images(images), context.answers.prompt_features)

    call(0)
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(call, range(-(-windows // spec.model.fixed_batch))))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=8192)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cost", type=int, default=3600, help="work per window of the segmenter")
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--composite", default="first", choices=("first", "median", "best"))
    parser.add_argument("--demo", type=Path, help="folder of a demo region of this size that is there already")
    chosen = parser.parse_args()
    print(machine())
    with TemporaryDirectory() as name:
        folder = Path(name)
        demo = chosen.demo or folder / "demo"
        if not (demo / "demo.toml").exists():
            write_demo(demo, DemoRegion(size_px=chosen.size))
        text = (demo / "demo.toml").read_text()
        head, tail = text.split("[model]", 1)
        rest = tail[tail.index("\n[") :] if "\n[" in tail else ""
        model = f'[model]\nname = "window-mean"\nwindow_px = 512\noverlap = 0.25\n[model.options]\ncost = {chosen.cost}\n'
        head = re.sub(r"chunk_px = \d+", f"chunk_px = {chosen.chunk}", head)
        head = re.sub(r'composite = "\w+"', f'composite = "{chosen.composite}"', head)
        pipeline = demo / "overhead.toml"
        pipeline.write_text(head + model + rest)
        request = load_pipeline(pipeline)
        inputs = make_inputs_of(request)
        context = make_context(Store(folder / "probe"), inputs)
        plan = make_plan(inputs, context.answers.segmenter, cluster=ClusterSpec(workers=chosen.workers))
        seconds: dict[str, float] = {}

        def listen(event: Event) -> None:
            for stage, spent in event.data.get("seconds", {}).items() if event.kind == "chunk" else ():
                seconds[stage] = seconds.get(stage, 0.0) + spent

        sample = plan.windows // 10
        before = pure_seconds(context, sample, chosen.workers)
        start = time.perf_counter()
        summary = start_run(request, folder / "run", cluster=ClusterSpec(workers=chosen.workers), listener=listen)
        wall = time.perf_counter() - start
        after = pure_seconds(context, sample, chosen.workers)
    pure = (before + after) / (2 * sample) * plan.windows
    print(f"{plan.windows:,} windows in {summary.total} chunks ({plan.recomputed:.2f}x distinct), {chosen.workers} workers")
    print("seconds per stage, all workers: " + ", ".join(f"{k} {v:.1f}" for k, v in seconds.items()))
    print(
        f"segmenter alone {pure:.1f} s (from a tenth of the windows before the run and a tenth after); "
        f"run {wall:.1f} s; overhead {wall / pure:.3f}"
    )


if __name__ == "__main__":
    main()
