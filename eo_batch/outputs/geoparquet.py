"""Objects to rows of GeoParquet 1.1: WKB, bbox covering, PROJJSON, row groups of a size that suits bbox reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray
from pyproj import CRS

from eo_batch.core.arrays import SCORE_STEPS
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ItemTable, TimeStep
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.rings import Outlines
from eo_batch.outputs.times import microseconds
from eo_batch.outputs.trace import outlines_of

ROW_GROUP = 50_000
_TIME = pa.timestamp("us", tz="UTC")
_BBOX = pa.struct([pa.field(name, pa.float64(), nullable=False) for name in ("xmin", "ymin", "xmax", "ymax")])

FOOTPRINT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("step", pa.string(), nullable=False),
        pa.field("time", _TIME, nullable=False),
        pa.field("start_datetime", _TIME, nullable=False),
        pa.field("end_datetime", _TIME, nullable=False),
        pa.field("area_m2", pa.float64(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("score_mean", pa.float64(), nullable=False),
        pa.field("score_max", pa.float64(), nullable=False),
        pa.field("item_ids", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False),
        pa.field("touches_region_edge", pa.bool_(), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False),
        pa.field("bbox", _BBOX, nullable=False),
    ]
)
"""Columns of `footprints.parquet`; meanings in docs/concepts/footprints.md."""


class FootprintWriter:
    """Turns objects (`PART_SCHEMA`) of a run into rows and writes them, `ROW_GROUP` rows to a row group.

    Attributes
    ----------
    rows : rows written per prompt.
    """

    def __init__(self, grid: Grid, *, prompts: PromptSet, steps: Sequence[TimeStep], items: ItemTable) -> None:
        self._grid, self._prompts, self._steps = grid, prompts, steps
        self._unit_m2 = PixelAreas(grid).unit_m2
        # Items by id, so that sorted positions are sorted ids.
        order = sorted(range(len(items)), key=lambda i: (items.items[i].id, i))
        self._rank = np.empty(len(items), np.int64)
        self._rank[order] = np.arange(len(items))
        self._ids = pa.array([items.items[i].id for i in order], pa.string())
        self._starts = np.array([microseconds(items.items[i].start) for i in order], np.int64)
        self._ends = np.array([microseconds(items.items[i].end) for i in order], np.int64)
        self.rows = [0] * len(prompts)
        self._waiting: list[pa.Table] = []
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    @contextmanager
    def open(self, target: Any) -> Iterator[FootprintWriter]:
        """Write to the file object `target`; the file is complete when the block ends."""
        with pq.ParquetWriter(
            target,
            FOOTPRINT_SCHEMA,
            compression="zstd",
            store_schema=False,  # so that readers in Arrow see the key `geo`, which is complete only at the end
            use_dictionary=["prompt", "prompt_id", "step", "item_ids.list.element"],
            write_statistics=[name for name in _leaves() if not name.startswith(("geometry", "item_ids"))],
        ) as self._parquet:
            yield self
            self._flush(everything=True)
            self._parquet.add_key_value_metadata({"geo": json.dumps(self._geo_metadata())})

    def write(self, t: int, table: pa.Table) -> None:
        """Append objects of time step `t`, in order."""
        counts = np.bincount(table["prompt"].to_numpy(), minlength=len(self.rows))
        self.rows = [before + int(more) for before, more in zip(self.rows, counts, strict=True)]
        self._waiting.append(self._rows(self._steps[t], table))
        self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        waiting = sum(table.num_rows for table in self._waiting)
        if waiting < ROW_GROUP and not everything:
            return
        table = pa.concat_tables(self._waiting) if self._waiting else FOOTPRINT_SCHEMA.empty_table()
        stop = waiting if everything else waiting - waiting % ROW_GROUP
        for start in range(0, stop, ROW_GROUP):
            group = table.slice(start, min(ROW_GROUP, stop - start)).combine_chunks()
            self._parquet.write_table(group, row_group_size=ROW_GROUP)
        self._waiting = [table.slice(stop)] if stop < waiting else []

    def _rows(self, step: TimeStep, table: pa.Table) -> pa.Table:
        outlines = outlines_of(table["rings"].combine_chunks())
        bbox = self._bbox(outlines)
        prompts = table["prompt"].combine_chunks()
        ids = pc.take(pa.array(self._prompts.ids), prompts)
        row, col = (pa.array(outlines.first[:, axis]).cast(pa.string()) for axis in (1, 0))
        names = pc.binary_join_element_wise(ids, f"-{step.label}-r", row, "c", col, "")
        pixels = table["pixels"].to_numpy()
        item_ids, starts, ends = self._items(step, table["items"].combine_chunks())
        count = table.num_rows
        columns = [
            names,
            pc.take(pa.array(self._prompts.texts), prompts),
            ids,
            pa.array([step.label] * count, pa.string()),
            pa.array(np.full(count, microseconds(step.start))).cast(_TIME),
            starts,
            ends,
            pa.array(table["area_units"].to_numpy() * self._unit_m2),
            pa.array(pixels),
            pa.array(table["score_sum"].to_numpy() / (pixels * SCORE_STEPS)),
            pa.array(table["score_max"].to_numpy() / SCORE_STEPS),
            item_ids,
            table["touches_region_edge"].combine_chunks(),
            wkb_column(outlines, self._grid.resolution),
            bbox,
        ]
        return pa.Table.from_arrays(columns, schema=FOOTPRINT_SCHEMA)

    def _bbox(self, outlines: Outlines) -> pa.StructArray:
        bounds = outlines.bounds
        r = self._grid.resolution
        corners = np.stack([bounds[:, 0] * r, -bounds[:, 3] * r, bounds[:, 2] * r, -bounds[:, 1] * r])
        if len(bounds):
            self._bounds[:2] = np.minimum(self._bounds[:2], corners[:2].min(axis=1))
            self._bounds[2:] = np.maximum(self._bounds[2:], corners[2:].max(axis=1))
        return pa.StructArray.from_arrays([pa.array(corner) for corner in corners], fields=list(_BBOX))

    def _items(self, step: TimeStep, items: pa.ListArray) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Sorted item ids of each row, and the times from the first to the last of its items."""
        lengths = items.value_lengths().to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(items)), lengths)
        ranks = self._rank[items.flatten().to_numpy()]
        ranks = ranks[np.lexsort((ranks, owner))]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = pa.ListArray.from_arrays(
            pa.array(offsets), self._ids.take(pa.array(ranks)), type=FOOTPRINT_SCHEMA.field("item_ids").type
        )
        starts = np.full(len(items), np.iinfo(np.int64).max)
        ends = np.full(len(items), np.iinfo(np.int64).min)
        np.minimum.at(starts, owner, self._starts[ranks])
        np.maximum.at(ends, owner, self._ends[ranks])
        starts[lengths == 0], ends[lengths == 0] = microseconds(step.start), microseconds(step.end)
        return ids, pa.array(starts).cast(_TIME), pa.array(ends).cast(_TIME)

    def _geo_metadata(self) -> dict[str, Any]:
        """The `geo` key of the GeoParquet 1.1 specification."""
        crs = CRS.from_user_input(self._grid.crs)
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"] if sum(self.rows) else [],
            "crs": crs.to_json_dict(),
            "orientation": "counterclockwise",
            "edges": "planar",
            "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
        }
        if sum(self.rows):
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def wkb_column(outlines: Outlines, resolution: float) -> pa.BinaryArray:
    """Polygons as little-endian WKB in CRS units (`x = column * resolution`, `y = -row * resolution`)."""
    vertices = np.diff(outlines.rings[outlines.objects])
    rings = np.diff(outlines.objects)
    # 9 bytes of header; each ring has a count of 4 bytes and is closed by repeating its first vertex.
    offsets = np.concatenate([[0], np.cumsum(9 + 20 * rings + 16 * vertices)])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{len(outlines):,} polygons take {offsets[-1]:,} bytes: more than one column can hold")
    data = np.empty(offsets[-1], np.uint8)
    _write_wkb(outlines.xy, outlines.rings, outlines.objects, resolution, data)
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(outlines), buffers)


@njit(cache=True, nogil=True)
def _write_wkb(
    xy: NDArray[np.int64], rings: NDArray[np.int64], objects: NDArray[np.int64], resolution: float, data: NDArray[np.uint8]
) -> None:  # pragma: no cover
    number = np.empty(2, np.float64)
    number_bytes = number.view(np.uint8)
    count = np.empty(1, np.uint32)
    count_bytes = count.view(np.uint8)
    at = 0
    for i in range(len(objects) - 1):
        data[at] = 1
        at += 1
        for header in (3, objects[i + 1] - objects[i]):
            count[0] = header
            data[at : at + 4] = count_bytes
            at += 4
        for ring in range(objects[i], objects[i + 1]):
            begin, stop = rings[ring], rings[ring + 1]
            count[0] = stop - begin + 1
            data[at : at + 4] = count_bytes
            at += 4
            for k in range(begin, stop + 1):
                vertex = k if k < stop else begin
                number[0], number[1] = xy[vertex, 0] * resolution, -xy[vertex, 1] * resolution
                data[at : at + 16] = number_bytes
                at += 16


def _leaves() -> list[str]:
    """Names of the Parquet columns of `FOOTPRINT_SCHEMA`."""
    flat = [field.name for field in FOOTPRINT_SCHEMA if field.name not in ("bbox", "item_ids")]
    return [*flat, *(f"bbox.{field.name}" for field in _BBOX), "item_ids.list.element"]
