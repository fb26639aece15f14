"""Parts to `footprints.parquet`: every object of the whole mask once, with true area, scores, times and items.

The rows and their order depend on the masks alone: sorted by time step, prompt, Hilbert position of the middle of the
object in absolute pixels, then row and column. So the file has the same bytes for any chunk size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk, Grid, chunk_key
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ItemTable, TimeStep
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.geoparquet import ROW_GROUP, FootprintWriter
from eo_batch.outputs.order import ObjectSorter
from eo_batch.outputs.seams import SeamMerger
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import PART_SCHEMA, read_part

FOOTPRINTS = "footprints.parquet"
SPILL_BYTES = 512 << 20
"""Objects of one time step that are held in memory before they go to `merge/` on disk."""


@dataclass(frozen=True)
class MergeSummary:
    """What `merge_parts` wrote: rows per prompt text (in the order of the prompts), bytes and sha256 of the file."""

    rows: dict[str, int]
    bytes: int
    sha256: str


def part_path(chunk: Chunk) -> str:
    """Path in the run directory of the part of `chunk`: `parts/t0003/y0012_x0044.parquet`."""
    return f"parts/{chunk.key}.parquet"


def merge_parts(
    store: Store,
    *,
    chunks: Iterable[Chunk],
    grid: Grid,
    prompts: PromptSet,
    steps: Sequence[TimeStep],
    items: ItemTable,
    progress: Callable[[int], None] | None = None,
    spill_bytes: int = SPILL_BYTES,
) -> MergeSummary:
    """Write `footprints.parquet` from the parts of `chunks`.

    Parameters
    ----------
    chunks : the chunks that have a part, in any order.
    progress : called with the number of parts read so far.
    spill_bytes : memory for objects of one time step; never changes the result.

    Raises
    ------
    IntegrityError : `shard-missing` or `shard-mismatch` for a part; nothing is written then.
    """
    for leftover in list(store.list("merge")):
        store.delete(leftover)
    writer_of = FootprintWriter(grid, prompts=prompts, steps=steps, items=items)
    areas = PixelAreas(grid)
    least = np.array([prompt.min_area_m2 for prompt in prompts])
    done = 0
    with store.writer(FOOTPRINTS) as target, writer_of.open(target) as writer:
        for t, of_step in groupby(sorted((chunk.t, chunk.iy, chunk.ix) for chunk in chunks), key=lambda key: key[0]):
            sorter = ObjectSorter(store, limit_bytes=spill_bytes)
            for table, parts_read in _objects(store, list(of_step), grid, len(prompts)):
                large = table["area_units"].to_numpy() * areas.unit_m2 >= least[table["prompt"].to_numpy()]
                sorter.add(table.filter(pa.array(large)))
                if progress is not None:
                    progress(done + parts_read)
            done += parts_read
            for table in sorter.sorted_tables(ROW_GROUP):
                writer.write(t, table)
    return MergeSummary(dict(zip(prompts.texts, writer.rows, strict=True)), target.bytes, target.sha256)


def _objects(store: Store, keys: list[tuple[int, int, int]], grid: Grid, prompts: int) -> Iterator[tuple[pa.Table, int]]:
    """All complete objects of one time step, piece by piece, and the number of parts read so far."""
    mergers = [SeamMerger(grid) for _ in range(prompts)]
    of_row = {iy: list(row) for iy, row in groupby(keys, key=lambda key: key[1])}
    count = 0
    for iy in range(max(of_row) + 2):
        waiting = [PART_SCHEMA.empty_table()]
        for key in of_row.get(iy, ()):
            table = _read(store, key)
            count += 1
            seam = table["touches_seam"]
            waiting.append(table.filter(seam))
            yield table.filter(pc.invert(seam)), count
        touching = pa.concat_tables(waiting)
        for index, merger in enumerate(mergers):
            complete = merger.add_row(iy, touching.filter(pc.equal(touching["prompt"], index)))
            yield complete, count
    assert all(merger.is_empty for merger in mergers)


def _read(store: Store, key: tuple[int, int, int]) -> pa.Table:
    path = f"parts/{chunk_key(*key)}.parquet"
    try:
        return read_part(store.get(path), where=path)
    except FileNotFoundError:
        fix = "Run `eo-batch resume --repair`."
        raise IntegrityError("shard-missing", "the polygons of a finished chunk are gone", where=path, fix=fix) from None
