"""How often the range of a pilot holds the truth: many pilots of other chunks, on what the chunks of a finished run took.

python benchmarks/pilot.py --run runs/water-2024
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import machine
from numpy.typing import NDArray

from eo_batch.core.grid import chunk_index
from eo_batch.run.cost.coverage import loads_of
from eo_batch.run.cost.estimate import Figures, estimate
from eo_batch.run.cost.measured import works
from eo_batch.run.cost.sample import choose_sample
from eo_batch.run.driver import start_run
from eo_batch.run.generations import Generation
from eo_batch.run.manifest import read_inputs
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, write_demo

TURNS = ((1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1))
"""Ways to look at the region, so that other chunks are picked."""


def demo_run(folder: Path) -> Path:
    """A finished run over a demo region, in chunks of 128 px, scene by scene."""
    files = write_demo(folder / "demo", DemoRegion(size_px=1024, seed=7, dates=3))
    text = files.pipeline.read_text()
    for old, new in (("chunk_px = 1024", "chunk_px = 128"), ("window_px = 512", "window_px = 128"), ('"all"', '"scene"')):
        text = text.replace(old, new)
    files.pipeline.write_text(text.replace('"median"', '"first"'))
    start_run(load_pipeline(files.pipeline), folder / "run", executor="serial")
    return folder / "run"


def same(totals: Figures) -> Figures:
    """Totals as they are."""
    return totals


def judge(run: Path) -> None:
    """Print, for pilots of few and many chunks, the share of ranges that hold the truth, and how wide they are."""
    store = Generation(run)
    loads = loads_of(read_inputs(store))
    took: dict[str, NDArray[np.float64]] = {name: np.zeros(loads.shape) for name in ("seconds", "bytes_read", "windows")}
    for work in works(store):
        index = chunk_index(work.key)
        assert index is not None
        for name, values in took.items():
            values[index] = max(getattr(work, name), 0)
    print(f"{loads.size:,} chunks, {np.count_nonzero(took['windows']):,} of them with windows to compute")
    for first, last in ((12, 24), (24, 48), (48, 96)):
        for name, values in took.items():
            held, width = [], []
            for count in range(first, min(last, loads.size)):
                for turn in TURNS:
                    turned = tuple(slice(None, None, way) for way in turn)
                    sample = choose_sample(np.ascontiguousarray(loads[turned]), count)
                    found = estimate(sample, {name: np.array([values[turned][index] for index in sample.chunks])}, same)[name]
                    held.append(found.low <= values.sum() <= found.high)
                    width.append((found.high - found.low) / values.sum())
            print(f"{first} to {last - 1} chunks, {name}: {100 * np.mean(held):.0f} % hold, {100 * np.mean(width):.0f} % wide")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--run", type=Path, help="a finished run; default: one over a demo region is made")
    run = options.parse_args().run
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        judge(run or demo_run(Path(folder)))


if __name__ == "__main__":
    main()
