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
# # More questions: other thresholds and other prompts for a map that is there
#
# A team has a water map. Two things happen to every such team: somebody asks whether the threshold was right, and somebody
# asks "and where is the vegetation?". Neither needs the run again. In this notebook we
#
# 1. map water over the synthetic demo region, and keep the scores,
# 2. see what every threshold would have found, and which one comes closest to the truth,
# 3. make the map of that threshold **from the stored scores**: no scene is read, no model is asked,
# 4. add a prompt to the run **in place**: what is finished is not touched,
# 5. hold both against runs that had it all from the start: the same bytes.
#
# Everything happens on this machine: no network, no GPU, no weights. It takes about half a minute.

# %%
import hashlib
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import eo_batch
from eo_batch.run.driver import start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.later.rethreshold import rethreshold
from eo_batch.run.later.sweep import sweep
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, truth_masks, write_demo

folder = Path(tempfile.mkdtemp())


def files_of(run: Path) -> dict[str, str]:
    """sha256 of every file of the map: masks, scores, footprints, STAC."""
    wanted = [path for name in ("masks.zarr", "stac") for path in (run / name).rglob("*") if path.is_file()]
    wanted += [run / "footprints.parquet", run / "COMPLETE.json"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(wanted)}


# %% [markdown]
# ## 1. A map, with its scores
#
# `output.scores = true` keeps what the model said, in steps of 1/250, beside what was decided from it.

# %%
demo = DemoRegion(size_px=768)
files = write_demo(folder / "demo", demo)
text = files.pipeline.read_text()


def pipeline(name: str, prompts: str) -> Path:
    """The demo pipeline with these prompts; it keeps scores."""
    path = files.pipeline.with_name(f"{name}.toml")
    path.write_text(text[: text.index("[[prompts]]")] + prompts + "\n[output]\nscores = true\n")
    return path


water = '[[prompts]]\ntext = "water"\nthreshold = 0.75\n'
request = load_pipeline(pipeline("water", water))
start_run(request, folder / "run")
run = eo_batch.open_run(folder / "run")

fig, axes = plt.subplots(1, 2, figsize=(11, 5), constrained_layout=True)
scores = run.scores().isel(prompt=0, time=0).values
shown = axes[0].imshow(scores, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
fig.colorbar(shown, ax=axes[0], shrink=0.8)
axes[0].set_title("score of water")
mask = run.masks["mask"].isel(prompt=0, time=0).values
axes[1].imshow(np.where(mask > 1, np.nan, mask), cmap="Blues", interpolation="nearest")
axes[1].set_title("water from score 0.75")
for axis in axes:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## 2. What would other thresholds have found?
#
# One pass over the stored scores counts them all, with true areas. On the command line:
# `eo-batch rethreshold run --prompt water --sweep`. The demo region knows its truth, so here we can also say which
# threshold is the best one.

# %%
(counted,) = sweep(folder / "run")
thresholds = np.arange(0.05, 1.0, 0.05).round(2)
rows = counted.rows(list(thresholds))
grid = request.grid()[0]
truth = truth_masks(demo, "water", rows=grid.rows, cols=grid.cols)
seen = np.isfinite(scores)
iou = []
for threshold in thresholds:
    found = np.nan_to_num(scores) >= threshold
    iou.append((found & truth & seen).sum() / ((found | truth) & seen).sum())
best = float(thresholds[int(np.argmax(iou))])

fig, left = plt.subplots(figsize=(8, 4), constrained_layout=True)
left.plot(thresholds, [row.area_km2 for row in rows], color="tab:blue")
left.set_xlabel("threshold")
left.set_ylabel("water, km2", color="tab:blue")
right = left.twinx()
right.plot(thresholds, iou, color="tab:green")
right.set_ylabel("IoU with the truth", color="tab:green")
left.axvline(best, color="grey", linestyle=":")
left.set_title(f"best threshold here: {best}")
plt.show()

# %% [markdown]
# ## 3. The map of that threshold
#
# A new run beside the old one, made from the scores alone. To show that nothing else is needed, the scenes are taken away
# before.

# %%
hidden = shutil.move(files.catalog.parent, folder / "hidden")
summary = rethreshold(folder / "run", {"water": best})
shutil.move(hidden, files.catalog.parent)
print("new run:", Path(summary.path).name, "beside", Path(run.path).name)

fresh = folder / "fresh"
start_run(load_pipeline(pipeline("best", water.replace("0.75", str(best)))), fresh)
again = eo_batch.open_run(summary.path)
differ = set(files_of(fresh).items()) ^ set(files_of(Path(summary.path)).items())
print("files that differ from a run that had this threshold from the start:", len(differ))

# %%
before, after = (np.asarray(found.masks["mask"].isel(prompt=0, time=0)) == 1 for found in (run, again))
shown = np.zeros((*truth.shape, 3)) + 1.0
shown[before & after] = (0.2, 0.4, 0.8)
shown[after & ~before] = (0.95, 0.55, 0.1)
shown[before & ~after] = (0.8, 0.1, 0.1)
fig, axis = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
axis.imshow(shown[20:230, :400], interpolation="nearest")
axis.set_title(f"the river; blue: water in both maps, orange: new from score {best}")
axis.set_axis_off()
plt.show()

# %% [markdown]
# ## 4. And where is the vegetation?
#
# `eo-batch add-prompts run vegetation --threshold 0.6` computes the answers to the new prompt alone and publishes the map
# anew. Until then the map of before stays as it is; a driver that is killed leaves it, and `eo-batch resume` goes on.

# %%
shards = [path for path in (folder / "run" / "masks.zarr" / "mask" / "c" / "0").rglob("*") if path.is_file()]
written = {path: path.stat().st_mtime_ns for path in shards}
add_prompts(folder / "run", "vegetation", threshold=0.6)
touched = [path for path, when in written.items() if path.stat().st_mtime_ns != when]
print("shards of water that were touched:", len(touched))

run = eo_batch.open_run(folder / "run")
fig, axes = plt.subplots(1, 2, figsize=(11, 5), constrained_layout=True)
for axis, prompt, colours in zip(axes, run.prompts, ("Blues", "Greens"), strict=True):
    mask = run.masks["mask"].sel(prompt=prompt).isel(time=0).values
    axis.imshow(np.where(mask > 1, np.nan, mask), cmap=colours, interpolation="nearest")
    axis.set_title(f"{prompt}: {len(run.footprints(prompt)):,} footprints")
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## 5. The same bytes
#
# A run that had both prompts from the start is not distinguishable from the extended one.

# %%
both = folder / "both"
start_run(load_pipeline(pipeline("both", water + '\n[[prompts]]\ntext = "vegetation"\nthreshold = 0.6\n')), both)
extended, at_once = files_of(folder / "run"), files_of(both)
print("files:", len(at_once), "  files that differ:", len(set(extended.items()) ^ set(at_once.items())))
other = eo_batch.open_run(both)
print("pixels that differ:", int((run.masks["mask"].values != other.masks["mask"].values).sum()))

# %% [markdown]
# ## Where to go from here
#
# - `docs/guides/more-prompts.md`: what can be added to a run and what cannot, and what happens when something goes wrong.
# - Networks such as RSRefSeg see a window once for all prompts. `[cache] features = true` keeps what they saw on disk, so that a
#   prompt that is added later pays for its answer alone: `docs/concepts/prompts-cost.md`.
# - `eo-batch rethreshold RUN --prompt water --sweep` prints the table of section 2.
