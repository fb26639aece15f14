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
# # RemoteSAM: from sentences to masks, boxes, counts and captions
#
# RemoteSAM is one network that answers a sentence about an image with a mask; all other answers (boxes, counts, classes,
# captions) are read off the mask. Its published weights take 2.6 GB and state no licence, so this notebook does not download
# them. Instead we
#
# 1. build a **small network of the same architecture** and train it for less than a minute on a made-up region,
# 2. save it as weights that `eo-batch` can load,
# 3. ask it about a single image of **another** region,
# 4. map that whole region, and hold the map against the truth,
# 5. turn the map into boxes and counts per cell.
#
# With the published weights (`eo-batch models fetch remotesam`), leave out steps 1 and 2: everything after is the same.
# No network, no GPU; about two minutes.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

import eo_batch
from eo_batch.core.grid import Span
from eo_batch.core.spec import ModelSpec
from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.remotesam.pictures import prepare
from eo_batch.models.remotesam.tokens import Tokenizer, stack
from eo_batch.models.stretch import Stretch
from eo_batch.models.templates import Wording
from eo_batch.models.weights.checkpoints import convert_checkpoint, find_architecture
from eo_batch.run.driver import start_run
from eo_batch.run.images.segment import segment_image
from eo_batch.run.layers.products import Cells, make_products
from eo_batch.run.request import load_pipeline
from eo_batch.sources.synthetic import DemoRegion, render, truth_masks, write_demo
from eo_batch.view.overlay import overlay_of

folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
torch.set_num_threads(1)
WORDS = ["water", "forest", "crops"]

# %% [markdown]
# ## 1. A small network, and something to learn from
#
# All sizes of the published network are in `RemoteSAMConfig`; smaller ones give the same architecture with 0.3 % of the
# parameters, for windows of 96 pixels instead of 896.

# %%
config = RemoteSAMConfig(
    window_px=96, embed_dim=16, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), swin_window=4, mlp_ratio=2,
    cross_heads=2, cross_key_dim=8, cross_value_dim=16, decoder_dim=32,
    vocabulary=32, text_dim=32, text_layers=1, text_heads=2, text_ffn_dim=64, text_positions=16, text_tokens=8,
)  # fmt: skip
network = RemoteSAM.from_config(config)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters; published: 241,590,421")

vocabulary = folder / "vocab.txt"
vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "in", "the", "image", *WORDS]) + "\n")
tokenizer, wording, stretch = Tokenizer(vocabulary, tokens=config.text_tokens), Wording(), Stretch()
print([wording.ask(word).sentence for word in WORDS])

# %% [markdown]
# The training region is seed 11, the region we map later is seed 7: other lakes, other fields. Pictures are made by the same
# recipe as in a run (`Stretch`): reflectance becomes 8-bit colour by constants, never by the statistics of a scene.

# %%
school = DemoRegion(size_px=2048, seed=11)
scene = next(s for s in school.scenes() if s.crs == school.crs and s.acquisition.cloud_cover == 0)
rows, cols = scene.rows.intersect(school.rows), scene.cols.intersect(school.cols)
rows, cols = (Span(span.start + span.start % 2, span.stop - span.stop % 2) for span in (rows, cols))
numbers = render(school, scene, rows, cols)
reflectance = np.stack([numbers[band] for band in ("red", "green", "blue")]).astype(np.float32) * 1e-4 - 0.1
picture = stretch.rgb(reflectance[None])[0]
truth = np.stack([truth_masks(school, word, rows=rows, cols=cols) for word in WORDS])

fig, axes = plt.subplots(1, 4, figsize=(16, 7), constrained_layout=True)
for axis, image, title in zip(axes, [picture, *truth], ["what the network sees", *WORDS], strict=True):
    axis.imshow(image, cmap="Greens", interpolation="nearest")
    axis.set_title(title)
    axis.set_axis_off()
plt.show()

# %% [markdown]
# From the published recipe: AdamW, and 0.9 cross-entropy (foreground weighs 1.1, background 0.9) + 0.1 Dice. Ours are the
# learning rate, which rises and then falls to nothing (the published one falls with the power 0.9), the quarter turns and the
# number of steps: this network is small, starts from nothing and learns within a minute.

# %%
STEPS, BATCH, SIDE = 360, 12, config.window_px
ids, mask = (torch.from_numpy(values) for values in stack([tokenizer(wording.ask(word).sentence) for word in WORDS]))
random = np.random.default_rng(0)
optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2, fused=True)
rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.5e-3, total_steps=STEPS, pct_start=0.15)


def lesson() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Pictures, truth and prompts of one training step."""
    pictures, answers, asked = [], [], []
    for number in range(BATCH):
        y, x = random.integers(picture.shape[0] - SIDE), random.integers(picture.shape[1] - SIDE)
        prompt, turns = number % len(WORDS), random.integers(4)
        pictures.append(prepare(np.rot90(picture[y : y + SIDE, x : x + SIDE], turns), SIDE))
        answers.append(np.rot90(truth[prompt, y : y + SIDE, x : x + SIDE], turns).copy())
        asked.append(prompt)
    return torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(answers)).long(), asked


losses = []
network.train()
for _ in range(STEPS):
    pictures, answers, asked = lesson()
    logits = network(pictures, ids[asked], mask[asked])
    chance, wanted = logits.softmax(1), F.one_hot(answers, 2).permute(0, 3, 1, 2)
    dice = 1 - (2 * (chance * wanted).sum((2, 3)) + 1e-6) / ((chance + wanted).sum((2, 3)) + 1e-6)
    loss = 0.9 * F.cross_entropy(logits, answers, weight=torch.tensor([0.9, 1.1])) + 0.1 * dice.mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    rate.step()
    losses.append(loss.item())

plt.figure(figsize=(8, 2.5))
plt.plot(np.convolve(losses, np.ones(25) / 25, mode="valid"))
plt.xlabel("step")
plt.ylabel("loss, mean of 25")
plt.show()

# %% [markdown]
# ## 2. Weights that a run can load
#
# Checkpoints of a training are pickles. `eo-batch` reads them with `weights_only`, checks every key and number, and keeps
# safetensors, with the sizes of the network in the file. This is what `eo-batch models convert` does.

# %%
torch.save({"model": network.state_dict(), "epoch": 1}, folder / "small.pth")
files = convert_checkpoint(folder / "small.pth", architecture=find_architecture("remotesam"), config=config.as_dict())
print(files.weights.name, files.architecture, f"{files.weights.stat().st_size / 1e6:.1f} MB", files.vocabulary.name)

# %% [markdown]
# ## 3. One image, a few questions
#
# A photograph of another region, 384 x 384 pixels, in windows of 96. On the command line:
# `eo-batch segment image.png --prompt water --prompt forest --prompt crops --weights small.safetensors`.

# %%
demo = DemoRegion(size_px=1024, seed=7)
demo_files = write_demo(folder / "demo", demo)
clear = next(s for s in demo.scenes() if s.crs == demo.crs and s.acquisition.cloud_cover == 0 and s.acquisition.side > 0)
top, left = demo.rows.start + 540, clear.cols.intersect(demo.cols).start + 60
top, left = top + top % 2, left + left % 2
seen = render(demo, clear, Span(top, top + 384), Span(left, left + 384))
photo = stretch.rgb(np.stack([seen[band] for band in ("red", "green", "blue")]).astype(np.float32)[None] * 1e-4 - 0.1)[0]

model = ModelSpec(name="remotesam", window_px=96, overlap=0.5, options={"weights": str(files.weights)})
answer = segment_image(photo, WORDS, model=model, fit="windows")
overlay_of(answer, shows_boxes=True, caption=answer.caption())

# %% [markdown]
# The caption and the counts are read off the masks, by the rules of RemoteSAM:

# %%
print(answer.counts)
print(answer.labels.scores)
print(answer.caption())

# %% [markdown]
# ## 4. The whole region
#
# The same weights in a pipeline. The map is made of overlapping windows on one lattice, so it has no seams.


# %%
def pipeline(name: str, chunk_px: int) -> Path:
    """The demo pipeline with our model and prompts."""
    text = demo_files.pipeline.read_text()
    text = text[: text.index("[model]")].replace("chunk_px = 512", f"chunk_px = {chunk_px}")
    text = text.replace('["blue", "green", "red", "nir", "swir16", "swir22"]', '["red", "green", "blue"]')
    text += f'[model]\nname = "remotesam"\nwindow_px = 96\noverlap = 0.25\n[model.options]\nweights = "{files.weights}"\n'
    text += "".join(f'[[prompts]]\ntext = "{word}"\nmin_area_m2 = 5000\n' for word in WORDS)
    path = demo_files.pipeline.with_name(f"{name}.toml")
    path.write_text(text + "[output]\nscores = true\n")
    return path


summary = start_run(load_pipeline(pipeline("sentences", 512)), folder / "run")
run = eo_batch.open_run(folder / "run")
for label, value in summary.rows()[:-1]:
    print(f"{label:28} {value}")
run.preview()

# %% [markdown]
# ## The map against the truth, and against itself
#
# The network has never seen this region. Another chunk size must not change a pixel.

# %%
masks = run.masks["mask"].isel(time=0)
rows, cols = (Span(*run.manifest["grid"][axis]) for axis in ("rows", "cols"))
for word in WORDS:
    found, real = masks.sel(prompt=word).values, truth_masks(demo, word, rows=rows, cols=cols)
    known = found < 2
    both, either = ((found == 1) & real & known).sum(), (((found == 1) | real) & known).sum()
    print(f"{word:8} IoU {both / either:.2f}")

start_run(load_pipeline(pipeline("other-chunks", 300)), folder / "other")
other = eo_batch.open_run(folder / "other").masks["mask"].isel(time=0)
print("pixels that differ:", int((masks.values != other.values).sum()))

# %% [markdown]
# ## 5. From the map to figures
#
# Boxes of all objects, and figures for cells of one kilometre: how many, how much, and a sentence. On the command line:
# `eo-batch products run --cells 1000 --picture`. Zones can be the polygons of any file.

# %%
made = make_products(folder / "run", zones=Cells(1000))
print(made.boxes)
run = eo_batch.open_run(folder / "run")
zones = run.zones("forest")
busiest = zones.sort_values("count", ascending=False).head(5)
busiest[["zone", "count", "covered_share", "presence", "class", "caption"]]

# %%
fig, axes = plt.subplots(1, 2, figsize=(13, 6), constrained_layout=True)
zones.plot("covered_share", ax=axes[0], cmap="Greens", edgecolor="white", linewidth=0.3, legend=True)
axes[0].set_title("share of each square kilometre that is forest")
lakes = run.footprints(prompt="water")
lakes.plot(ax=axes[1], color="#2f7ed8")
run.boxes("water").boundary.plot(ax=axes[1], color="black", linewidth=0.8)
axes[1].set_title("water and its boxes")
for axis in axes:
    axis.set_axis_off()
plt.show()

# %% [markdown]
# What to take away: sentences in, one seamless map out; masks, boxes, counts and captions come from the same scores; and a phrase
# like "the lake on the left" would mean the left of each *window*, so `eo-batch plan` warns of it.
