"""What other thresholds cost: seconds of a rethreshold over seconds of the run it is made from, in one process; and disk.

    python benchmarks/rethreshold.py --size 2048 --cost 3600
    python benchmarks/rethreshold.py --pipelines pipelines/real --catalog ../shared/data/stac/catalog.json

The first form maps the demo region (a median of cloudy scenes) with the package's `spectral`, and with its `window-mean`, whose
`cost` makes a window as dear as a network's: on the machine of docs/measured.md 3600 is a U-Net of 7.8 M parameters. Scenes are
written first and not timed; a first run, also not timed, warms everything up.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from machine import machine

from eo_batch.outputs.contributed import contributed_bytes, read_contributed
from eo_batch.outputs.store import Store
from eo_batch.run.driver import start_run
from eo_batch.run.later.rethreshold import Change, rethreshold
from eo_batch.run.manifest import read_manifest
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, write_demo

THRESHOLD = 0.6


def measure(name: str, pipeline: Path, out: Path, *, catalog: str | None, workers: int) -> str:
    """One line of figures of a pipeline."""
    request = load_pipeline(pipeline, catalog=catalog)
    start = time.perf_counter()
    summary = start_run(request, out, workers=workers)
    run_s = time.perf_counter() - start
    assert summary.exit_status == 0, summary
    start = time.perf_counter()
    changes = {prompt.text: Change(THRESHOLD) for prompt in request.spec.prompt_set}
    again = rethreshold(out, changes, out.with_name(f"{out.name}-again"), workers=workers)
    again_s = time.perf_counter() - start
    assert again.exit_status == 0, again
    chunks = (read_manifest(Store(out)) or {})["chunks"]
    kept = sizes(out / "contributed")
    scores = sizes(out / "masks.zarr" / "score" / "c")
    both = f"{run_s:.1f} s, rethreshold {again_s:.1f} s ({again_s / run_s:.3f} of it)"
    disk = f"contributed {sum(kept) / chunks:,.0f} bytes a chunk (greatest {max(kept):,}), scores {sum(scores) / chunks:,.0f}"
    return f"{name}: {chunks} chunks, run {both}; {disk}"


def sizes(folder: Path) -> list[int]:
    """Bytes of the files below a folder."""
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def packing(side: int = 2048) -> str:
    """Milliseconds to write and read what one chunk keeps of its items."""
    lines = []
    y, x = np.mgrid[0:side, 0:side]
    ragged = np.random.default_rng(0).normal(size=(side, side)) * 40
    for items in (1, 12):
        planes = np.stack([np.hypot(x - 170 * i, y - 900) + ragged > 250 + 40 * i for i in range(items)])
        seconds = [timed(lambda planes=planes: contributed_bytes(range(len(planes)), planes)) for _ in range(5)]
        data = contributed_bytes(range(items), planes)
        reading = [timed(lambda data=data: read_contributed(data, (side, side))) for _ in range(5)]
        lines.append(f"{items} items: {len(data):,} bytes, write {min(seconds) * 1e3:.1f} ms, read {min(reading) * 1e3:.1f} ms")
    return f"contributed file of {side} x {side} px; " + "; ".join(lines)


def timed(action) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--cost", type=int, default=3600, help="work per window of the dear segmenter")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--pipelines", type=Path, help="folder of pipelines with output.scores = true, instead of the demo region"
    )
    parser.add_argument("--catalog", help="catalog of these pipelines")
    chosen = parser.parse_args()
    print(machine())
    print(packing())
    with TemporaryDirectory() as name:
        folder = Path(name)
        demo = write_demo(folder / "demo", DemoRegion(size_px=chosen.size)).pipeline if chosen.pipelines is None else None
        if demo is None:
            pipelines = {path.stem: path for path in sorted(chosen.pipelines.glob("*.toml"))}
        else:
            text = demo.read_text()
            dear = demo.with_name("dear.toml")
            options = f'name = "window-mean"\noptions = {{ cost = {chosen.cost} }}'
            dear.write_text(text.replace('name = "spectral"', options))
            pipelines = {"warm": demo, "spectral": demo, "as dear as a network": dear}
        for label, path in pipelines.items():
            if re.search(r"^scores = true", path.read_text(), re.MULTILINE):
                out = folder / path.stem / label.replace(" ", "-")
                line = measure(label, path, out, catalog=chosen.catalog, workers=chosen.workers)
                if label != "warm":
                    print(line, flush=True)


if __name__ == "__main__":
    main()
