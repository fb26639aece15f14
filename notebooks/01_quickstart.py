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
# # Quickstart: from a region and two words to a map
#
# A team wants to know where the water and the vegetation of a region are. In this notebook we
#
# 1. write a small **synthetic** region (satellite scenes, a STAC catalog, and the truth),
# 2. ask `eo-batch` for a plan, and look at what it would cost,
# 3. run it, and look at masks and footprints,
# 4. hold the map against the truth,
# 5. do it again with other chunks, and see that not one pixel changes.
#
# Everything happens on this machine: no network, no GPU, no weights. It takes about a minute.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio

import eo_batch
from eo_batch.run.cost.plan import plan_run
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, truth_masks, write_demo

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. A region to map
#
# The demo region lies astride a UTM zone border. Two orbits see it, on three dates, with clouds. The scenes are real
# Cloud-Optimized GeoTIFFs and the catalog is a real STAC catalog: only the landscape is made up.

# %%
demo = DemoRegion(size_px=1024)
files = write_demo(folder / "demo", demo)

fig, axes = plt.subplots(1, 3, figsize=(15, 5), constrained_layout=True)
scenes = sorted(path.parent for path in files.catalog.parent.glob("**/B04.tif"))
for axis, scene in zip(axes, [scenes[0], scenes[3], scenes[4]], strict=True):
    bands = []
    for band in ("B04", "B03", "B02"):
        with rasterio.open(scene / f"{band}.tif") as source:
            bands.append(source.read(1, out_shape=(source.height // 2, source.width // 2)))
    image = np.stack(bands, axis=-1)
    axis.imshow(np.where(image == 0, 1.0, np.clip((image * 1e-4 - 0.1) * 3.5, 0, 1)))
    axis.set_title(scene.name, fontsize=9)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# White corners are where an orbit did not look; white tufts are clouds. The pipeline below asks for two things, and for the
# median of all clear observations.

# %%
text = files.pipeline.read_text()
pipeline = files.pipeline.with_name("two-words.toml")
pipeline.write_text(text.replace('[[prompts]]\ntext = "snow"\nmin_area_m2 = 1000\n', ""))
print(pipeline.read_text())

# %% [markdown]
# That file is the whole job: a region, a period, a catalog, a grid, a model and prompts. Pipelines are plain TOML.
# The ones in `pipelines/` use real archives.
#
# ## 2. What will it cost?

# %%
request = load_pipeline(pipeline)
plan = plan_run(request)
for label, value, remark in plan.rows():
    print(f"{label:12} {value:>22}   {remark}")

# %% [markdown]
# ## 3. Run it
#
# On the command line this is `eo-batch run demo.toml --out run`. It can be killed at any moment;
# `eo-batch resume run` then goes on and ends with the same bytes.

# %%
summary = start_run(request, folder / "run")
for label, value in summary.rows()[:-1]:
    print(f"{label:28} {value}")

# %%
run = eo_batch.open_run(folder / "run")
run.masks

# %% [markdown]
# The cube is Zarr, so plain `xarray.open_zarr` reads it too. A mask holds 1 (yes), 0 (no), 254 (nobody saw this pixel)
# and 255 (not computed: never in a finished run).

# %%
prompts = [str(p) for p in run.masks.prompt.values]
fig, axes = plt.subplots(1, len(prompts), figsize=(5 * len(prompts), 5), constrained_layout=True)
for axis, prompt in zip(np.atleast_1d(axes), prompts, strict=True):
    mask = run.masks["mask"].sel(prompt=prompt).isel(time=0).values
    axis.imshow(np.where(mask > 1, np.nan, mask), cmap="Blues", interpolation="nearest")
    axis.set_title(prompt)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# ## 4. Footprints, and the truth
#
# Footprints are the same map as polygons, with areas in true square metres, scores, and the scenes they were seen in.

# %%
footprints = run.footprints()
footprints.drop(columns=["geometry", "bbox"], errors="ignore").sort_values("area_m2", ascending=False).head()

# %%
grid = request.grid()[0]
for prompt in prompts:
    mask = run.masks["mask"].sel(prompt=prompt).isel(time=0).values
    wanted = truth_masks(demo, prompt, rows=grid.rows, cols=grid.cols)
    found, seen = mask == 1, mask <= 1
    print(f"{prompt:12} IoU {(found & wanted & seen).sum() / ((found | wanted) & seen).sum():.3f}")

# %% [markdown]
# ## 5. Other chunks, the same map
#
# The chunk size decides how much memory a worker needs, and nothing else.

# %%
other = folder / "demo" / "other.toml"
other.write_text(
    "\n".join("chunk_px = 300" if line.startswith("chunk_px") else line for line in pipeline.read_text().splitlines())
)
start_run(load_pipeline(other), folder / "other")
again = eo_batch.open_run(folder / "other")
print("pixels that differ:", int((run.masks["mask"].values != again.masks["mask"].values).sum()))
print("footprints that differ:", len(set(run.footprints().id) ^ set(again.footprints().id)))

# %% [markdown]
# ## Where to go from here
#
# - `eo-batch --help`, and the pipelines in `pipelines/` over public archives.
# - `docs/concepts/` on how reading, the window lattice and footprints work.
# - `eo-batch export RUN --out DIR` for Cloud-Optimized GeoTIFFs and a GeoPackage.
