# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A cluster: many workers, some of which die, and the same map
#
# A pipeline file says *what* to map. *Who* computes is another word on the command line: `--cluster`. In this notebook we
#
# 1. map the synthetic demo region in one process, and keep that map as the measure,
# 2. run the same pipeline file with two worker processes,
# 3. kill a worker while it works, then the driver itself, without warning,
# 4. go on with `eo-batch resume`, and compare every byte,
# 5. read the report that tells all of it.
#
# Everything happens on this machine: no network, no GPU, no weights. It takes less than a minute. The same commands work with
# `--cluster tls://HOST:PORT` for a Dask scheduler of your own, and with files for SLURM, PBS and Kubernetes.

# %%
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

import eo_batch
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.status import run_status
from eo_batch.sources.synthetic import DemoRegion, write_demo

folder = Path(tempfile.mkdtemp())


def eo_batch_command(*words: object) -> subprocess.Popen:
    """An `eo-batch` command that works while the notebook goes on."""
    command = [sys.executable, "-m", "eo_batch.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603 (ours)


def files_of(run: Path) -> dict[str, str]:
    """sha256 of every file of the map: masks, footprints, STAC."""
    wanted = [path for name in ("masks.zarr", "stac") for path in (run / name).rglob("*") if path.is_file()]
    wanted += [run / "footprints.parquet", run / "COMPLETE.json"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(wanted)}


# %% [markdown]
# ## 1. The measure: one process, one chunk after the other

# %%
files = write_demo(folder / "demo", DemoRegion(size_px=256))
pipeline = files.pipeline.with_name("small-chunks.toml")
lines = files.pipeline.read_text().splitlines()
pipeline.write_text("\n".join("chunk_px = 64" if line.startswith("chunk_px") else line for line in lines))
summary = start_run(load_pipeline(pipeline), folder / "serial", executor="serial")
print(f"{summary.done} chunks, {sum(summary.rows_per_prompt.values())} footprints")

# %% [markdown]
# ## 2. The same file, two worker processes
#
# The driver hands out chunks: three numbers and the place of the run each. Workers read, segment, write, and put a receipt last.

# %%
out = folder / "cluster"
driver = eo_batch_command("run", pipeline, "--out", out, "--cluster", "local:2", "--quiet")


def finished() -> int:
    """Chunks that have a receipt."""
    return sum(1 for _ in (out / "receipts").rglob("*.json"))


def wait_for(chunks: int) -> None:
    """Until so many chunks are finished."""
    while finished() < chunks and driver.poll() is None:
        time.sleep(0.02)


wait_for(3)
print(finished() >= 3)

# %% [markdown]
# ## 3. Accidents
#
# First a worker goes, as a node does that loses power. What it had begun is begun again by another; nobody needs to do anything.
# Then the driver goes. Now nobody hands out chunks any more.

# %%
workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
workers[0].kill()
wait_for(6)
driver.kill()
driver.wait()
status = run_status(out)
print(status.state, "with a part of the chunks finished:", 6 <= status.finished <= summary.done)

# %% [markdown]
# ## 4. Go on
#
# `resume` finds what is finished by its receipts and computes the rest, here with another number of workers.

# %%
last = eo_batch_command("resume", out, "--cluster", "local:1", "--quiet")
print(*[line for line in last.communicate()[0].splitlines() if line.startswith(("chunks", "footprints"))], sep="\n")

# %%
undisturbed, disturbed = files_of(folder / "serial"), files_of(out)
one, other = eo_batch.open_run(folder / "serial"), eo_batch.open_run(out)
print("pixels that differ:", int((one.masks["mask"].values != other.masks["mask"].values).sum()))
print("files that differ:", len(undisturbed.items() ^ disturbed.items()), "of", len(undisturbed))

# %% [markdown]
# ## 5. What happened?
#
# `eo-batch report RUN` writes one page: the result, the state of every chunk, who worked when, what was planned and what it took,
# and a look for seams. In a notebook, `run.report()` shows the same page. It loads nothing from elsewhere, so it can be sent to
# anybody.

# %%
other.report()

# %% [markdown]
# ## Where to go from here
#
# - `docs/guides/clusters.md`: your own scheduler, SLURM, PBS, Kubernetes, several GPUs.
# - `docs/guides/watching-a-run.md`: status, journal and report.
# - `docs/guides/when-things-go-wrong.md`: what each accident means for a run.
