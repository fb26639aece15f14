"""From a finished run to layers: boxes of its objects, and counts, shares, classes and sentences for zones.

Reads the run and writes below `RUN/products/`; nothing of the run itself is touched. Rules as in RemoteSAM
(`eo_batch/products/`); where a whole region needs another rule than one image, `LayerRules` says so and can be switched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import sha256
from eo_batch.core.errors import ConfigError, IntegrityError
from eo_batch.outputs.footprints import FOOTPRINTS
from eo_batch.outputs.layers import (
    BOX_SCHEMA,
    BOXES,
    ZONE_SCHEMA,
    ZONES,
    ZONES_CSV,
    Sheet,
    box_table,
    open_csv,
    open_layer,
)
from eo_batch.outputs.objects import Objects, read_objects
from eo_batch.outputs.store import Store
from eo_batch.products.rectangles import smallest_rectangles
from eo_batch.products.rules import Box
from eo_batch.products.suppress import drop_contained, suppress
from eo_batch.run.generations import check_published, published
from eo_batch.run.layers.zone_rows import LayerRules, Tally, zone_rows
from eo_batch.run.layers.zones import Cells, ZoneFile, load_zones, presence_of, sum_zones
from eo_batch.run.manifest import RunInputs, read_inputs
from eo_batch.run.merge import read_marker

__all__ = ["Cells", "LayerRules", "ProductsSummary", "ZoneFile", "make_products"]

Tell = Callable[[float, str], None]
"""Called with the share done, 0..1, and what is being done."""
_ROWS_AT_ONCE = 50_000


@dataclass(frozen=True)
class ProductsSummary:
    """What `make_products` wrote.

    files : their paths. boxes : number per prompt text, all time steps together. zones : number of zones. notes : what a
    person should know, one line each. partial : the run lacks chunks that failed.
    """

    files: tuple[str, ...]
    boxes: dict[str, int]
    zones: int
    notes: tuple[str, ...]
    partial: bool


def make_products(
    run: Store | str | Path,
    *,
    zones: ZoneFile | Cells | None = None,
    rules: LayerRules | None = None,
    tell: Tell | None = None,
) -> ProductsSummary:
    """Write `products/boxes.parquet` and, with `zones`, `products/zones.parquet` and `products/zones.csv`.

    Raises
    ------
    ConfigError : `config-invalid`: there is no run, or it is not finished; `zones-invalid`.
    IntegrityError : the run is damaged.
    StoreError : the layers cannot be written; none is half-written.
    """
    store = run if isinstance(run, Store) else Store(run)
    shown = published(store.where)
    inputs, rules = read_inputs(shown), rules or LayerRules()
    marker = read_marker(store)
    check_published(shown)
    if marker is None:
        fix = f"Finish it first: `eo-batch resume {store.where}`."
        raise ConfigError("config-invalid", "the run is not finished: its objects are not joined yet", where=store.where, fix=fix)
    _check_footprints(store, marker["files"][FOOTPRINTS])
    say = tell or (lambda share, text: None)
    layer = None if zones is None else load_zones(zones, inputs)
    facts = {"run": sha256(store.get("COMPLETE.json")), "partial": marker["partial"], "rules": rules.facts}
    prompts = inputs.request.spec.prompt_set
    files, notes, tally = [store.named(BOXES)], _box_notes(inputs, marker), None
    if layer is not None:
        failed = frozenset(key for key, _ in marker["failed"])
        text = "summing zones over the map"
        sums = sum_zones(store, inputs, layer, failed=failed, progress=lambda n, total: say(0.6 * n / total, text))
        tally = Tally(layer, inputs, rules, sums)
    before = 0.0 if layer is None else 0.6
    boxes = _write_boxes(
        store, inputs, rules, facts, tally=tally, tell=lambda done, text: say(before + (0.9 - before) * done, text)
    )
    if tally is not None and zones is not None:
        say(0.9, "writing zones")
        _write_zones(store, inputs, tally, rules, {**facts, "zones": zones.facts})
        files += [store.named(ZONES), store.named(ZONES_CSV)]
        notes += _zone_notes(inputs, tally)
    say(1.0, "done")
    named = dict(zip(prompts.texts, boxes, strict=True))
    return ProductsSummary(tuple(files), named, len(layer) if layer is not None else 0, tuple(notes), marker["partial"])


def _check_footprints(store: Store, expected: str) -> None:
    """Parquet pages carry no checksum: changed bytes would be read as other objects."""
    fix = f"Run `eo-batch resume {store.where} --repair`."
    if not store.exists(FOOTPRINTS):
        raise IntegrityError("shard-missing", "the footprints of the run are gone", where=FOOTPRINTS, fix=fix)
    with store.open(FOOTPRINTS) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise IntegrityError("shard-mismatch", "the footprints are not what was written", where=FOOTPRINTS, fix=fix)


def _write_boxes(
    store: Store, inputs: RunInputs, rules: LayerRules, facts: dict[str, Any], *, tally: Tally | None, tell: Tell
) -> list[int]:
    """Write `boxes.parquet`; number of boxes of each prompt."""
    prompts = inputs.request.spec.prompt_set
    counts, told = [0] * len(prompts), set()
    least = {prompt.id: prompt.min_area_m2 for prompt in prompts}
    notes = {"layer": "boxes", **facts, "min_area_m2": least}
    dictionary = ("prompt", "prompt_id", "step", "oriented", "touches_region_edge")
    with open_layer(store, BOXES, BOX_SCHEMA, crs=inputs.grid.crs, notes=notes, dictionary=dictionary) as writer:
        sheets = groupby(_sheets(store, inputs, rules), key=lambda sheet: sheet[0])
        for t, of_step in sheets:
            for _, prompt, found in of_step:
                tell(t / len(inputs.steps), f"boxes of {prompts.texts[prompt]}, {inputs.steps[t].label}")
                objects, rectangles = _chosen(found, rules)
                counts[prompt] += len(objects)
                sheet = Sheet(inputs.grid, prompts.prompts[prompt], inputs.steps[t])
                for start in range(0, len(objects), _ROWS_AT_ONCE):
                    part = np.arange(start, min(start + _ROWS_AT_ONCE, len(objects)))
                    turned = None if rectangles is None else rectangles[part]
                    writer.write(box_table(objects.take(part), sheet, rectangles=turned))
                if tally is not None:
                    tally.add(objects, t=t, prompt=prompt)
            if tally is not None:
                tally.write_sentences(t)
                told.add(t)
        for t in range(len(inputs.steps)):
            if tally is not None and t not in told:
                tally.write_sentences(t)
    return counts


def _sheets(store: Store, inputs: RunInputs, rules: LayerRules) -> Iterator[tuple[int, int, Objects]]:
    """(time step, prompt, objects), rising."""
    step_of = {step.label: step.index for step in inputs.steps}
    prompt_of = {name: index for index, name in enumerate(inputs.request.spec.prompt_set.ids)}
    for label, name, objects in read_objects(store, inputs.grid, connectivity=rules.connectivity):
        yield step_of[label], prompt_of[name], objects


def _chosen(objects: Objects, rules: LayerRules) -> tuple[Objects, NDArray[np.float64] | None]:
    """The objects that stay, in the same order, and their rotated rectangles where they are asked for."""
    objects = objects.take(np.flatnonzero(objects.scores >= rules.min_score))
    rectangles = smallest_rectangles(objects.corners, objects.owner, len(objects)) if rules.oriented else None
    if not rules.drop_inner and rules.nms_iou is None:
        return objects, rectangles
    corners: list[Any] = (
        [None] * len(objects) if rectangles is None else [tuple(map(tuple, four)) for four in rectangles.tolist()]
    )
    bounds, scores = objects.bounds.astype(np.float64).tolist(), objects.scores.tolist()
    boxes = [Box(x0, y0, x1, y1, scores[i], 0, corners[i]) for i, (x0, y0, x1, y1) in enumerate(bounds)]
    position = {id(box): index for index, box in enumerate(boxes)}
    if rules.drop_inner:
        boxes = drop_contained(boxes)
    if rules.nms_iou is not None:
        boxes = suppress(boxes, rules.nms_iou)
    kept = np.sort(np.array([position[id(box)] for box in boxes], np.int64))
    return objects.take(kept), None if rectangles is None else rectangles[kept]


def _write_zones(store: Store, inputs: RunInputs, tally: Tally, rules: LayerRules, facts: dict[str, Any]) -> None:
    """Write `zones.parquet` and `zones.csv`: rows by zone, time step, prompt."""
    layer = tally.layer
    from_scores = inputs.request.spec.output.scores
    presence = presence_of(tally.sums, rules=rules.tasks, from_scores=from_scores)
    notes = {"layer": "zones", **facts, "presence_from": "scores" if from_scores else "mask"}
    dictionary = ("zone", "step", "prompt", "prompt_id", "presence_from", "class", "caption", "geometry")
    at_once = max(1, _ROWS_AT_ONCE // (len(inputs.steps) * len(inputs.request.spec.prompt_set)))
    with (
        open_layer(store, ZONES, ZONE_SCHEMA, crs=inputs.grid.crs, notes=notes, dictionary=dictionary) as writer,
        open_csv(store, ZONES_CSV) as flat,
    ):
        for start in range(0, len(layer), at_once):
            part = slice(start, min(start + at_once, len(layer)))
            table, kinds = zone_rows(inputs, tally, presence, rules, part)
            writer.write(table, kinds=kinds)
            flat.write_table(table.drop_columns(["geometry", "bbox"]))


def _box_notes(inputs: RunInputs, marker: dict[str, Any]) -> list[str]:
    notes = []
    left_out = [f'"{p.text}" {p.min_area_m2:g} m2' for p in inputs.request.spec.prompt_set if p.min_area_m2 > 0]
    if left_out:
        notes.append(
            f"footprints below min_area_m2 are not in the run, so neither are their boxes and counts: {', '.join(left_out)}"
        )
    if marker["partial"]:
        notes.append(f"{len(marker['failed']):,} chunks of the run failed: their pixels count as not observed")
    return notes


def _zone_notes(inputs: RunInputs, tally: Tally) -> list[str]:
    notes, layer = [], tally.layer
    if layer.repaired:
        named = ", ".join(f'"{name}"' for name in layer.repaired[:5])
        notes.append(f"{len(layer.repaired):,} zones have an outline that crosses itself; it was mended: {named}")
    unseen = int((tally.sums.observed.sum(axis=1) == 0).sum())
    if unseen:
        notes.append(f"{unseen:,} of {len(layer):,} zones hold no observed pixel: observed_share is 0")
    if not inputs.request.spec.output.scores:
        notes.append("the run kept no scores: presence is told from the mask (column presence_from)")
    return notes
