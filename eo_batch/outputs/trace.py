"""Masks of one chunk to polygons with sums: the part of the chunk.

Everything a part says is either final (objects that touch no seam) or can be merged exactly (sums are integers, outlines
are integer lattice coordinates), so footprints do not depend on the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit
from numpy.typing import NDArray

from eo_batch.core.arrays import YES
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk, Grid, Span
from eo_batch.core.prompts import PromptSet
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.rings import Outlines, label_objects, trace_objects

PART_SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int32(), nullable=False),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("area_units", pa.int64(), nullable=False),
        pa.field("score_sum", pa.int64(), nullable=False),
        pa.field("score_max", pa.uint8(), nullable=False),
        pa.field("touches_seam", pa.bool_(), nullable=False),
        pa.field("touches_region_edge", pa.bool_(), nullable=False),
        pa.field("items", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field(
            "rings",
            pa.list_(pa.field("ring", pa.list_(pa.field("xy", pa.int32(), nullable=False)), nullable=False)),
            nullable=False,
        ),
    ]
)
"""Columns of a part: one row per object and prompt.

`prompt` position in the prompt set; `area_units` see `PixelAreas`; `score_sum`, `score_max` of stored scores; `items`
sorted positions in the run's item table; `rings` x0, y0, x1, y1, ... in absolute pixels, canonical as in `rings.py`.
"""

_SEAM, _EDGE = 1, 2


def trace_chunk(
    masks: NDArray[np.uint8],
    scores: NDArray[np.uint8],
    *,
    chunk: Chunk,
    grid: Grid,
    prompts: PromptSet,
    items: Sequence[int],
    contributed: NDArray[np.bool_],
    inside_ring: NDArray[np.bool_],
) -> pa.Table:
    """Polygons of the pixels that are 1, with `PART_SCHEMA`; prompt by prompt, by topmost, then leftmost pixel.

    Objects smaller than the prompt's `min_area_m2` are left out where no seam could make them larger.

    Parameters
    ----------
    masks, scores : uint8 (prompt, y, x) of the interior, as stored.
    items : positions in the item table of `contributed`.
    contributed : bool (item, y, x) over the interior: which item gave the pixel.
    inside_ring : bool (y + 2, x + 2): pixel centre inside the region, for the interior and one pixel around it.
    """
    height, width = chunk.shape
    expected: dict[str, tuple[int, ...]] = {"masks": (len(prompts), height, width), "scores": (len(prompts), height, width)}
    expected |= {"contributed": (len(items), height, width), "inside_ring": (height + 2, width + 2)}
    given = {"masks": masks, "scores": scores, "contributed": contributed, "inside_ring": inside_ring}
    for name, shape in expected.items():
        if given[name].shape != shape:
            raise ValueError(f"{name} of chunk {chunk.key} has shape {given[name].shape}, not {shape}")
    areas = PixelAreas(grid)
    nodes, node_row, node_col = areas.lattice(chunk.rows, chunk.cols)
    corner = np.array([chunk.rows.start - node_row, chunk.cols.start - node_col])
    edges = _chunk_edges(chunk, grid)
    order = np.argsort(np.asarray(items, np.int64), kind="stable")
    contributed = np.ascontiguousarray(contributed)
    tables = []
    for index, prompt in enumerate(prompts):
        labels, count = label_objects(masks[index], value=YES)
        if not count:
            continue
        sums, peak, flags = _sums(labels, count, scores[index], nodes, corner, areas.step_px, inside_ring, edges)
        used = _item_flags(labels, count, contributed)[:, order]
        keep = (flags & _SEAM > 0) | (sums[:, 1] * areas.unit_m2 >= prompt.min_area_m2)
        outlines = trace_objects(labels, count, row=chunk.rows.start, col=chunk.cols.start)
        if not keep.all():
            outlines = outlines.take(np.flatnonzero(keep))
        tables.append(
            _table(index, sums[keep], peak[keep], flags[keep], used[keep], np.asarray(items, np.int32)[order], outlines)
        )
    return pa.concat_tables(tables) if tables else PART_SCHEMA.empty_table()


def join_parts(earlier: pa.Table, later: pa.Table, *, prompts_before: int) -> pa.Table:
    """One part of two: the rows that tracing all prompts at once would give.

    Parameters
    ----------
    earlier, later : parts of the same chunk, with `PART_SCHEMA`.
    prompts_before : position of the first prompt of `later` among the prompts of both.
    """
    positions = pc.add(later["prompt"], pa.scalar(prompts_before, pa.int32()))
    moved = later.set_column(0, PART_SCHEMA.field("prompt"), positions)
    # What was read carries numbers of Parquet's fields in its schema: they would be written again, as other bytes.
    return pa.concat_tables([earlier.cast(PART_SCHEMA), moved])


def part_bytes(table: pa.Table) -> bytes:
    """`table` as Parquet (zstd): the same bytes for the same rows."""
    target = BytesIO()
    pq.write_table(table.combine_chunks(), target, compression="zstd", row_group_size=1 << 20, use_dictionary=["prompt", "items"])
    return target.getvalue()


def read_part(data: bytes, *, where: str = "part") -> pa.Table:
    """Table of `part_bytes`.

    Raises
    ------
    IntegrityError : `shard-mismatch`: not a part of this format, or damaged.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
        if not table.schema.equals(PART_SCHEMA):
            raise IntegrityError("shard-mismatch", "columns are not those of a part", where=where, fix="Run `eo-batch verify`.")
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0][:200]
        fix = "Run `eo-batch resume --repair`."
        raise IntegrityError("shard-mismatch", "polygons cannot be read", where=where, why=why, fix=fix) from None
    return table


def outlines_of(rings: pa.ListArray) -> Outlines:
    """Outlines of a column `rings` (one array, not chunked), as int64."""
    inner = rings.flatten()
    objects = np.concatenate([[0], np.cumsum(rings.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    lengths = np.concatenate([[0], np.cumsum(inner.value_lengths().to_numpy(zero_copy_only=False))]).astype(np.int64)
    return Outlines(inner.flatten().to_numpy().astype(np.int64).reshape(-1, 2), lengths // 2, objects)


def rings_column(outlines: Outlines) -> pa.ListArray:
    """Column `rings` of `outlines`; absolute indices must fit 32 bits."""
    kind = PART_SCHEMA.field("rings").type
    if len(outlines.xy) and max(2 * len(outlines.xy), np.abs(outlines.xy).max()) > np.iinfo(np.int32).max:
        raise ValueError(f"pixel indices, or {2 * len(outlines.xy):,} coordinates in one table, do not fit 32 bits")
    values = pa.array(outlines.xy.astype(np.int32).ravel())
    inner = pa.ListArray.from_arrays(pa.array((outlines.rings * 2).astype(np.int32)), values, type=kind.value_type)
    return pa.ListArray.from_arrays(pa.array(outlines.objects.astype(np.int32)), inner, type=kind)


def items_column(used: NDArray[np.bool_], items: NDArray[np.int32]) -> pa.ListArray:
    """Column `items`: row i lists `items[used[i]]`."""
    offsets = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    values = np.broadcast_to(items, used.shape)[used]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.int32()), type=PART_SCHEMA.field("items").type)


def _table(
    prompt: int,
    sums: NDArray[np.int64],
    peak: NDArray[np.uint8],
    flags: NDArray[np.uint8],
    used: NDArray[np.bool_],
    items: NDArray[np.int32],
    outlines: Outlines,
) -> pa.Table:
    columns = [
        pa.array(np.full(len(sums), prompt, np.int32)),
        pa.array(sums[:, 0]),
        pa.array(sums[:, 1]),
        pa.array(sums[:, 2]),
        pa.array(peak),
        pa.array(flags & _SEAM > 0),
        pa.array(flags & _EDGE > 0),
        items_column(used, items),
        rings_column(outlines),
    ]
    return pa.Table.from_arrays(columns, schema=PART_SCHEMA)


def _chunk_edges(chunk: Chunk, grid: Grid) -> NDArray[np.uint8]:
    """What lies beyond the (top, bottom, left, right) edge of the chunk: a seam or the end of the grid."""

    def beyond(at_end: bool) -> int:
        return _EDGE if at_end else _SEAM

    rows: Span = chunk.rows
    cols: Span = chunk.cols
    return np.array(
        [
            beyond(rows.start == grid.rows.start),
            beyond(rows.stop == grid.rows.stop),
            beyond(cols.start == grid.cols.start),
            beyond(cols.stop == grid.cols.stop),
        ],
        np.uint8,
    )


def _item_flags(labels: NDArray[np.int32], count: int, contributed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool (object, item): the item gave at least one pixel of the object."""
    used = np.zeros((len(contributed), count + 1), np.bool_)
    for index, pixels in enumerate(contributed):
        _mark(labels, pixels, used[index])
    return used[:, 1:].T


@njit(cache=True, nogil=True)
def _mark(labels: NDArray[np.int32], pixels: NDArray[np.bool_], used: NDArray[np.bool_]) -> None:  # pragma: no cover
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            if pixels[y, x]:
                used[labels[y + 1, x + 1]] = True


@njit(cache=True, nogil=True)
def _sums(
    labels: NDArray[np.int32],
    count: int,
    scores: NDArray[np.uint8],
    nodes: NDArray[np.float64],
    corner: NDArray[np.int64],
    step: int,
    inside_ring: NDArray[np.bool_],
    edges: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]:  # pragma: no cover
    """Per object: int64 (pixels, area units, score sum), greatest score, flags of what it touches."""
    height, width = scores.shape
    sums = np.zeros((count + 1, 3), np.int64)
    peak = np.zeros(count + 1, np.uint8)
    flags = np.zeros(count + 1, np.uint8)
    for y in range(height):
        i, fy = (y + corner[0]) // step, ((y + corner[0]) % step) / step
        for x in range(width):
            label = labels[y + 1, x + 1]
            if label == 0:
                continue
            j, fx = (x + corner[1]) // step, ((x + corner[1]) % step) / step
            upper = nodes[i, j] * (1 - fx) + nodes[i, j + 1] * fx
            lower = nodes[i + 1, j] * (1 - fx) + nodes[i + 1, j + 1] * fx
            sums[label, 0] += 1
            sums[label, 1] += np.int64(np.floor(upper * (1 - fy) + lower * fy + 0.5))
            sums[label, 2] += scores[y, x]
            peak[label] = max(peak[label], scores[y, x])
            around = inside_ring[y, x + 1] and inside_ring[y + 2, x + 1]
            if not (around and inside_ring[y + 1, x] and inside_ring[y + 1, x + 2]):
                flags[label] |= 2
            if y == 0:
                flags[label] |= edges[0]
            if y == height - 1:
                flags[label] |= edges[1]
            if x == 0:
                flags[label] |= edges[2]
            if x == width - 1:
                flags[label] |= edges[3]
    return sums[1:], peak[1:], flags[1:]
