"""Very many chunks through a real sitting, with nothing to compute: what a chunk costs, and that memory is flat.

    python benchmarks/million_chunks.py [--chunks N] [--cluster local:2|local]

A grid of N chunks is made, and the task does nothing and hands back a receipt. Memory of this process (driver and scheduler) is
sampled; what one chunk costs and what memory grows by per chunk, over the second half, are printed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from machine import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SAMPLES = 20


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--chunks", type=int, default=1_000_000)
    arguments.add_argument("--cluster", default="local:2")
    asked = arguments.parse_args()
    print(machine(), f"load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        drive(Path(folder), asked.chunks, asked.cluster)


def drive(folder: Path, chunks: int, kind: str) -> None:
    """One sitting of so many chunks."""
    from dataclasses import replace

    from toy import make_toy
    from workerwork import receipt_of_nothing

    from eo_batch.core.clusters import ClusterSpec
    from eo_batch.core.grid import Span
    from eo_batch.run import sitting
    from eo_batch.run.driver import start_run
    from eo_batch.run.generations import Generation
    from eo_batch.run.manifest import read_inputs
    from eo_batch.run.request import load_pipeline
    from eo_batch.run.told.events import Event

    start_run(load_pipeline(make_toy(folder, dates=1, size=200)), folder / "run", executor="serial")
    store = Generation(folder / "run")
    inputs = read_inputs(store)
    side = math.isqrt(chunks)
    wide = side * inputs.grid.chunk_px
    grid = replace(inputs.grid, rows=Span(0, wide), cols=Span(0, wide))
    inputs = replace(inputs, grid=grid, steps=inputs.steps[:1])
    process, began, seen = psutil.Process(), 0.0, 0
    samples: list[tuple[int, float, float]] = []

    def listen(event: Event) -> None:
        nonlocal began, seen
        if event.kind == "start":
            began = time.perf_counter()
        if event.kind != "chunk":
            return
        seen += 1
        if seen == 1 or seen % max(1, side * side // SAMPLES) == 0:
            samples.append((seen, time.perf_counter() - began, process.memory_info().rss / 1e6))
            print(f"{seen:>9,} chunks  {samples[-1][1]:8.1f} s  {samples[-1][2]:7.1f} MB", flush=True)

    nothing: Any = receipt_of_nothing
    with patch.object(sitting, "execute", nothing), patch.object(sitting, "receipt_keys", lambda store: iter(())):
        sitting.sit(store, inputs, cluster=ClusterSpec(kind=kind, workers=2), allow_failed=0, listener=listen)
    half = samples[len(samples) // 2]
    grown = 1e6 * (samples[-1][2] - half[2]) / (samples[-1][0] - half[0])
    print(f"{kind}: {1e3 * samples[-1][1] / seen:.2f} ms a chunk; memory grew by {grown:.1f} bytes a chunk over the second half")


if __name__ == "__main__":
    main()
