"""Peak memory of a run must not grow with the region: two demo regions, one 16 times larger, each in its own process.

python benchmarks/memory.py --small 2048
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from machine import machine

from eo_batch.sources.synthetic import DemoRegion, write_demo


def child(demo: Path, out: Path, chunk_px: int) -> None:
    """Run the demo of `demo` and print the peak memory of this process in megabytes."""
    from eo_batch.run.driver import start_run
    from eo_batch.run.request import load_pipeline

    lines = (demo / "demo.toml").read_text().replace('"median"', '"first"').splitlines()
    pipeline = demo / "memory.toml"
    pipeline.write_text("\n".join(f"chunk_px = {chunk_px}" if line.startswith("chunk_px") else line for line in lines))
    summary = start_run(load_pipeline(pipeline), out, workers=2)
    assert summary.exit_status == 0
    print(f"{summary.total} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", type=int, default=2048, help="side of the smaller region in pixels; the larger has four times this side"
    )
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--large-demo", type=Path, help="folder of the larger demo region if it is there already")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        child(*chosen.child, chosen.chunk)
        return
    print(machine())
    peaks = []
    with TemporaryDirectory() as name:
        for size in (chosen.small, 4 * chosen.small):
            demo = Path(name) / f"demo-{size}"
            if size != chosen.small and chosen.large_demo:
                demo = chosen.large_demo
            else:
                write_demo(demo, DemoRegion(size_px=size))
            command = [sys.executable, __file__, "--chunk", str(chosen.chunk), "--child", str(demo), f"{name}/run-{size}"]
            chunks, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-2:]
            peaks.append(float(peak))
            print(f"{size:6} px, {int(chunks):5} chunks: peak {float(peak):.0f} MB")
    print(f"16 times the area, {peaks[1] / peaks[0]:.3f} times the peak memory")


if __name__ == "__main__":
    main()
