"""What the map looks like: masks of one time step, thinned, of the whole region or of its middle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eo_batch.core.arrays import NOT_COMPUTED
from eo_batch.core.errors import IntegrityError
from eo_batch.outputs.cube import decode_shard, shard_path
from eo_batch.outputs.store import Store
from eo_batch.run.told.report import DONE, RunFacts
from eo_batch.view.preview import colours_of, enlargement, found_share, has_gaps, paint_masks
from eo_batch.view.report.maps import png_address
from eo_batch.view.report.page import legend, paragraph, safe, section

SIDE_PX = 900
"""Longest side of the picture."""
SHARDS = 480
"""Files that are read for it; of a larger region, its middle is shown."""
PROMPTS = 8
COLOURS = 128


def result_section(store: Store, facts: RunFacts) -> str:
    """The picture with its legend; "" where nothing is finished."""
    done = facts.states == DONE
    if not done.any():
        return ""
    step = int(done.sum(axis=(1, 2)).argmax())
    texts = facts.request.spec.prompt_set.texts[:PROMPTS]
    rows, cols = _middle(done[step], SHARDS // len(texts))
    masks = {text: _mask(store, facts, (index, step), rows, cols) for index, text in enumerate(texts)}
    picture = Image.fromarray(paint_masks(masks, colours_of(texts), None))
    factor = max(1, min(enlargement(picture.height, picture.width), 3))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    address = png_address(picture.quantize(COLOURS, dither=Image.Dither.NONE))
    colours = {text: "#{:02x}{:02x}{:02x}".format(*colour) for text, colour in colours_of(texts).items()}
    keys = [(f"{text}: {found_share(mask)}", colours[text]) for text, mask in masks.items()]
    if has_gaps(masks):
        keys.append(("no observation, outside, or not computed", "#c4c4c4"))
    label = facts.manifest["steps"][step]
    ny, nx = facts.grid.chunks_yx
    notes = []
    if len(rows) * len(cols) < ny * nx:
        text = f"{len(cols):,} x {len(rows):,} of {nx:,} x {ny:,} chunks are shown: the middle of what is done."
        notes.append(paragraph(text, kind="note"))
    if len(facts.request.spec.prompts) > PROMPTS:
        notes.append(paragraph(f"The first {PROMPTS} prompts are shown.", kind="note"))
    alt = safe(f"Masks of time step {label}: " + ", ".join(name for name, _ in keys))
    figure = f'<figure><img src="{address}" alt="{alt}" width="{picture.width}"><figcaption>{safe(label)}</figcaption></figure>'
    return section("Result", legend(keys), figure, *notes)


def _middle(done: NDArray[np.bool_], most: int) -> tuple[range, range]:
    """Rows and columns of chunks that are shown: all of them, or so many around the middle of what is done."""
    ny, nx = done.shape
    if ny * nx <= most:
        return range(ny), range(nx)
    side = max(1, int(most**0.5))
    tall, wide = min(side, ny), min(side, nx)
    iy, ix = (int(np.median(axis)) for axis in np.nonzero(done))
    top, left = max(0, min(iy - tall // 2, ny - tall)), max(0, min(ix - wide // 2, nx - wide))
    return range(top, top + tall), range(left, left + wide)


def _mask(store: Store, facts: RunFacts, layer: tuple[int, int], rows: range, cols: range) -> NDArray[np.uint8]:
    """Every n-th pixel of the mask over these chunks, uint8 (y, x)."""
    prompt, step = layer
    grid = facts.grid
    first, last = grid.chunk(step, rows[0], cols[0]), grid.chunk(step, rows[-1], cols[-1])
    top, left = first.rows.start, first.cols.start
    tall, wide = last.rows.stop - top, last.cols.stop - left
    thin = max(1, -(-max(tall, wide) // SIDE_PX))
    out = np.full((-(-tall // thin), -(-wide // thin)), NOT_COMPUTED, np.uint8)
    for iy in rows:
        for ix in cols:
            if facts.states[step, iy, ix] != DONE:
                continue
            chunk = grid.chunk(step, iy, ix)
            try:
                shard = decode_shard(store.get(shard_path("mask", prompt, chunk)), grid)
            except (FileNotFoundError, IntegrityError):  # verify names it
                continue
            y0, x0 = -(chunk.rows.start - top) % thin, -(chunk.cols.start - left) % thin
            part = shard[: len(chunk.rows), : len(chunk.cols)][y0::thin, x0::thin]
            y, x = -(-(chunk.rows.start - top) // thin), -(-(chunk.cols.start - left) // thin)
            out[y : y + part.shape[0], x : x + part.shape[1]] = part
    return out
