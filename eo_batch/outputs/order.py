"""Objects in Hilbert order, with bounded memory: what does not fit is put aside by place and read back place by place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import PART_SCHEMA, outlines_of, part_bytes, read_part

_CELL_BITS = 2 * 13
"""Objects are put aside by cells of 8192 x 8192 pixels: squares of the Hilbert curve, so each is a range of the order."""


class ObjectSorter:
    """Sorts objects of one time step by prompt, Hilbert position, row, column.

    Parameters
    ----------
    limit_bytes : memory for objects that wait; more goes to `merge/` in the store until it is read back.
    """

    def __init__(self, store: Store, *, limit_bytes: int) -> None:
        self._store, self._limit = store, limit_bytes
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._aside: dict[tuple[int, int], list[str]] = {}
        self._files = 0

    def add(self, table: pa.Table) -> None:
        """Take objects (`PART_SCHEMA`)."""
        if not table.num_rows:
            return
        self._waiting.append(table)
        self._bytes += table.nbytes
        if self._bytes > self._limit:
            self._put_aside()

    def sorted_tables(self, rows: int) -> Iterator[pa.Table]:
        """All objects in order, at most `rows` at once; the sorter is empty afterwards."""
        if self._aside:
            self._put_aside()
            for cell in sorted(self._aside):
                tables = [read_part(self._store.get(path), where=path) for path in self._aside[cell]]
                yield from _slices(_sorted(pa.concat_tables(tables))[0], rows)
                for path in self._aside[cell]:
                    self._store.delete(path)
            self._aside = {}
        elif self._waiting:
            yield from _slices(_sorted(pa.concat_tables(self._waiting))[0], rows)
            self._waiting, self._bytes = [], 0

    def _put_aside(self) -> None:
        if not self._waiting:
            return
        table, prompts, places = _sorted(pa.concat_tables(self._waiting))
        cells = places >> np.uint64(_CELL_BITS)
        cuts = np.flatnonzero((np.diff(prompts) != 0) | (np.diff(cells) != 0)) + 1
        for start, stop in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
            path = f"merge/{self._files:08d}.parquet"
            self._files += 1
            self._store.put(path, part_bytes(table.slice(start, stop - start)))
            self._aside.setdefault((int(prompts[start]), int(cells[start])), []).append(path)
        self._waiting, self._bytes = [], 0


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


def _sorted(table: pa.Table) -> tuple[pa.Table, NDArray[np.int32], NDArray[np.uint64]]:
    """`table` in order, with the prompt and Hilbert position of each row."""
    table = table.combine_chunks()
    outlines = outlines_of(table["rings"].chunk(0))
    bounds, first = outlines.bounds, outlines.first
    middle = ((bounds[:, :2] + bounds[:, 2:]) // 2 + (1 << 31)).astype(np.uint64)
    places = hilbert_positions(middle)
    prompts = table["prompt"].to_numpy()
    order = np.lexsort((first[:, 0], first[:, 1], places, prompts))
    return table.take(pa.array(order)).select(PART_SCHEMA.names), prompts[order], places[order]


@njit(cache=True, nogil=True)
def hilbert_positions(xy: NDArray[np.uint64]) -> NDArray[np.uint64]:  # pragma: no cover
    """Positions along the Hilbert curve that fills the square of 2^32 x 2^32 of the points (x, y), uint64 (n,).

    The curve by quadrants and rotations as in J. Skilling, Programming the Hilbert curve (2004), in two dimensions.
    """
    out = np.empty(len(xy), np.uint64)
    one, three = np.uint64(1), np.uint64(3)
    whole = np.uint64(0xFFFFFFFF)
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        place = np.uint64(0)
        for bit in range(31, -1, -1):
            shift = np.uint64(bit)
            right, upper = (x >> shift) & one, (y >> shift) & one
            place = (place << np.uint64(2)) | ((three * right) ^ upper)
            if upper == 0:
                if right == one:
                    x, y = whole - x, whole - y
                x, y = y, x
        out[i] = place
    return out
