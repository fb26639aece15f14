"""What is told of zones: objects counted by zone, a caption for each zone and time, and the rows of the layer."""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.layers import ZONE_SCHEMA, zone_table
from eo_batch.outputs.objects import Objects
from eo_batch.outputs.times import microseconds
from eo_batch.products.caption import caption
from eo_batch.products.rules import Box, TaskRules
from eo_batch.products.zones import ZoneSums
from eo_batch.run.layers.zones import Presence, ZoneLayer
from eo_batch.run.manifest import RunInputs


@dataclass(frozen=True)
class LayerRules:
    """How the objects of a region become boxes, labels and sentences.

    Parameters
    ----------
    connectivity : 8: pixels that meet at a corner belong to one object (RemoteSAM); 4: each footprint is an object.
    oriented : boxes are smallest rotated rectangles instead of horizontal ones.
    drop_inner : leave out boxes inside another box of the same prompt. Right for one image; over a region the box of a river
        would swallow every pond beside it.
    nms_iou : leave out boxes that overlap a better one of the same prompt by more than this; None keeps all.
    min_score : leave out objects with a lower mean score.
    tasks : rules for labels and captions.
    names_parts : a caption names a prompt that covers pixels of the zone, too, when none of its objects is counted there.
    draws_wording : captions vary in wording, drawn from the name of the zone and the time step.
    """

    connectivity: int = 8
    oriented: bool = False
    drop_inner: bool = False
    nms_iou: float | None = None
    min_score: float = 0.0
    tasks: TaskRules = field(default_factory=TaskRules)
    names_parts: bool = True
    draws_wording: bool = False

    @classmethod
    def upstream(cls, *, oriented: bool = False) -> LayerRules:
        """RemoteSAM's rules for one image, applied to the region as if it were one."""
        tasks = TaskRules.upstream()
        return cls(8, oriented, True, tasks.nms_iou, tasks.boxes.min_score, tasks, names_parts=False, draws_wording=True)

    @property
    def facts(self) -> dict[str, Any]:
        """The rules as JSON values."""
        facts = asdict(self)
        facts["tasks"] = {name: value for name, value in facts["tasks"].items() if name not in ("boxes", "nms_iou", "overlap")}
        return facts


class Tally:
    """Objects per zone: counts, and a sentence per zone and time.

    Attributes
    ----------
    counts : int64 (zone, time, prompt).
    captions : object (zone, time), text, or None where no object was counted.
    """

    def __init__(self, layer: ZoneLayer, inputs: RunInputs, rules: LayerRules, sums: ZoneSums) -> None:
        self.layer, self.sums, self._rules = layer, sums, rules
        self._texts = inputs.request.spec.prompt_set.texts
        self._labels = [step.label for step in inputs.steps]
        self.counts = np.zeros(sums.covered.shape, np.int64)
        self.captions = np.full(self.counts.shape[:2], None, object)
        self._held: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, objects: Objects, *, t: int, prompt: int) -> None:
        """Count objects in the zones that hold the middle of their bounds."""
        zone, which = self.layer.zones.holding(objects.centres2)
        self.counts[:, t, prompt] = np.bincount(zone, minlength=len(self.layer))
        self._held.append((prompt, zone, objects.bounds[which]))

    def write_sentences(self, t: int) -> None:
        """Write the sentences of a time step of which all objects are counted."""
        prompt_of = np.concatenate([np.empty(0, np.int64), *(np.full(len(zone), prompt) for prompt, zone, _ in self._held)])
        zone_of = np.concatenate([np.empty(0, np.int64), *(zone for _, zone, _ in self._held)])
        bounds = np.concatenate([np.empty((0, 4), np.int64), *(bounds for *_, bounds in self._held)])
        self._held = []
        order = np.lexsort((prompt_of, zone_of))
        stops = np.searchsorted(zone_of[order], np.arange(len(self.layer) + 1))
        for zone in np.flatnonzero(self.sums.observed[:, t]).tolist():
            members = order[stops[zone] : stops[zone + 1]]
            found = zip(prompt_of[members].tolist(), bounds[members].tolist(), strict=True)
            self.captions[zone, t] = self._sentences(zone, t, list(found))

    def _sentences(self, zone: int, t: int, members: list[tuple[int, list[int]]]) -> str:
        x0, y0, x1, y1 = self.layer.zones.bounds[zone]
        left, top = int(np.floor(x0)), int(np.floor(y0))
        shape_yx = (int(np.ceil(y1)) - top, int(np.ceil(x1)) - left)
        counted: dict[str, list[Box]] = {}
        for prompt, (bx0, by0, bx1, by1) in members:
            counted.setdefault(self._texts[prompt], []).append(Box(bx0 - left, by0 - top, bx1 - left, by1 - top, 1.0))

        def say(boxes: dict[str, list[Box]], regions: int) -> str:
            wording = self._wording(zone, t) if self._rules.draws_wording else None
            return caption(boxes, shape_yx, regions=regions, random=wording, rules=self._rules.tasks.captions, subject="zone")

        text = say(counted, 4)
        parts = [self._texts[prompt] for prompt in np.flatnonzero(self.sums.covered[zone, t]).tolist()]
        if not self._rules.names_parts or counted.keys() >= set(parts):
            return text
        # The first sentence again, with prompts that only reach into the zone as one each; regions tell of objects alone.
        whole = Box(0, 0, shape_yx[1], shape_yx[0], 1.0)
        everything = {name: counted.get(name, [whole]) for name in self._texts if name in counted or name in parts}
        return say(everything, 0) + (text.removeprefix(say(counted, 0)) if counted else "")

    def _wording(self, zone: int, t: int) -> random.Random:
        seed = hashlib.sha256(f"{self.layer.ids[zone]}\n{self._labels[t]}".encode()).digest()
        return random.Random(int.from_bytes(seed[:8], "big"))


def zone_rows(inputs: RunInputs, tally: Tally, presence: Presence, rules: LayerRules, part: slice) -> tuple[pa.Table, list[str]]:
    """Rows of the zones `part`."""
    layer, sums = tally.layer, tally.sums
    prompts, spec = inputs.request.spec.prompt_set, inputs.request.spec
    times, many = len(inputs.steps), len(prompts)
    zones = len(range(*part.indices(len(layer))))
    unit_m2 = PixelAreas(inputs.grid).unit_m2

    def by_zone(values: NDArray) -> NDArray:
        return np.repeat(values, times * many)

    def by_time(values: NDArray) -> NDArray:
        return np.repeat(values.ravel(), many)

    observed, observed_area, covered_area = sums.observed[part], sums.observed_area[part], sums.covered_area[part]
    pixels = sums.pixels[part] + layer.pixels_beyond[part]
    share = np.divide(observed, pixels[:, None], out=np.zeros(observed.shape), where=pixels[:, None] > 0)
    area = np.broadcast_to(observed_area[:, :, None], covered_area.shape)
    covered = np.divide(covered_area, area, out=np.full(area.shape, np.nan), where=area > 0)
    told = presence.scores[part].ravel()
    unknown = np.full(told.shape, np.nan)
    present = pa.array(told > rules.tasks.label_threshold, mask=~np.isfinite(told))
    names = np.array([*prompts.texts, None], object)
    starts = np.array([microseconds(step.start) for step in inputs.steps])
    columns = {
        "zone": by_zone(np.array(layer.ids[part], object)),
        "step": np.tile(np.repeat(np.array([step.label for step in inputs.steps], object), many), zones),
        "time": pa.array(np.tile(np.repeat(starts, many), zones)).cast(ZONE_SCHEMA.field("time").type),
        "prompt": np.tile(names[:-1], zones * times),
        "prompt_id": np.tile(np.array(prompts.ids, object), zones * times),
        "count": tally.counts[part].ravel(),
        "pixels": by_zone(pixels),
        "observed_pixels": by_time(observed),
        "observed_share": by_time(share),
        "observed_m2": by_time(observed_area * unit_m2),
        "covered_pixels": sums.covered[part].ravel(),
        "covered_m2": covered_area.ravel() * unit_m2,
        "covered_share": covered.ravel(),
        "score_mean": sums.mean_scores[part].ravel() if spec.output.scores else unknown,
        "score_max": sums.greatest_scores[part].ravel() if spec.output.scores else unknown,
        "presence": told,
        "presence_from": pa.repeat("scores" if spec.output.scores else "mask", zones * times * many),
        "present": present,
        "class": by_time(names[presence.best[part]]),
        "caption": by_time(tally.captions[part]),
    }
    return zone_table(columns, by_zone(layer.shapes[part]))
