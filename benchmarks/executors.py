"""What a cluster costs and gains: Dask against the serial loop on the same chunks, and two worker processes against one.

    python benchmarks/executors.py [--size PX] [--cost N] [--repeats N] [--workers-only]

(a) `local` with one worker and `local:1` over `serial`: how much longer the same chunks take (aim: at most 5 %).
(b) `local:2` against `local:1`, each process held to one thread (aim: at least 1.8 times as fast, where two cores are free).
    Beside it: what two processes that know nothing of each other gain on this machine, and how many windows were computed.
Kinds take turns within each repeat; ratios are of the medians of the time between the first and the last chunk of a sitting,
so that starting processes, searching and merging are not in them. The start is printed apart.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

from machine import machine  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

KINDS = {"serial": ("serial", None), "local, 1 worker": ("local", 1), "local:1": ("local:1", None), "local:2": ("local:2", None)}


def main() -> None:
    from toy import make_toy, toy_pipeline

    arguments = argparse.ArgumentParser()
    arguments.add_argument("--size", type=int, default=1200, help="pixels along a side of the region")
    arguments.add_argument("--cost", type=int, default=2500, help="multiplications for nothing, per window")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--workers-only", action="store_true", help="(b) alone, for large regions")
    asked = arguments.parse_args()
    kinds = {name: kind for name, kind in KINDS.items() if not asked.workers_only or name.startswith("local:")}
    print(machine(), f"load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = make_toy(Path(folder), dates=1, size=asked.size)
        text = toy_pipeline(size=asked.size, chunk_px=128)
        pipeline.write_text(text.replace("[output]", f"[model.options]\ncost = {asked.cost}\n[output]"))
        times: dict[str, list[float]] = {name: [] for name in kinds}
        starts: dict[str, list[float]] = {name: [] for name in kinds}
        windows = dict.fromkeys(kinds, 0)
        free: list[float] = []
        for repeat in range(asked.repeats):
            for name, (kind, workers) in kinds.items():
                start, took, chunks, windows[name] = run_once(pipeline, Path(folder) / f"{repeat}-{name}", kind, workers)
                starts[name].append(start)
                times[name].append(took)
            free.append(gain_of_two())
    first = next(iter(kinds))
    least = statistics.median(times[first])
    print(f"{chunks} chunks, {asked.repeats} repeats, segmenter cost {asked.cost}")
    for name, each in times.items():
        middle = statistics.median(each)
        ready, span = statistics.median(starts[name]), f"({min(each):.2f} to {max(each):.2f})"
        print(
            f"{name:16} {middle:7.2f} s {span}  {middle / least:5.3f} of {first}  ready in {ready:.2f} s  {windows[name]} windows"
        )
    gain = statistics.median(one / two for one, two in zip(times["local:1"], times["local:2"], strict=True))
    print(f"two worker processes are {gain:.2f} times as fast as one; two that share nothing {statistics.median(free):.2f} times")


def gain_of_two() -> float:
    """How much more two processes do at once than one, of work like the segmenter's: more than that no executor can gain."""

    def seconds(count: int) -> float:
        began = time.perf_counter()
        started = [multiprocessing.get_context("spawn").Process(target=multiply) for _ in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        return time.perf_counter() - began

    return 2 * seconds(1) / seconds(2)


def multiply() -> None:
    """Some seconds of multiplications of a window's pixels, as `window-mean` does them at a price."""
    import numpy as np

    values = np.ones((64, 64), np.float32)
    for _ in range(600_000):
        values * np.float32(1.000001)


def run_once(pipeline: Path, out: Path, kind: str, workers: int | None) -> tuple[float, float, int, int]:
    """(seconds until the first chunk was made, seconds from then to the last, chunks, windows computed)."""
    from eo_batch.run.driver import start_run
    from eo_batch.run.request import load_pipeline
    from eo_batch.run.told.events import Event

    seen: list[float] = []
    began, windows = 0.0, 0

    def listen(event: Event) -> None:
        nonlocal began, windows
        if event.kind == "plan":
            began = time.perf_counter()
        if event.kind == "chunk":
            seen.append(time.perf_counter())
            windows += event.data["windows"].get("computed", 0)

    summary = start_run(load_pipeline(pipeline), out, executor=kind, workers=workers, listener=listen)
    assert summary.exit_status == 0, summary
    return seen[0] - began, seen[-1] - seen[0], len(seen), windows


if __name__ == "__main__":
    main()
