"""Objects that touch a seam, joined exactly: union-find over shared lattice edges, then the shared edges cancel.

Two polygons of different chunks belong to one object if they share an edge of positive length on a seam (a shared corner
is not enough: 4-connectivity). Chunk rows are fed from north to south; an object is given out as soon as nothing of it
touches the row to come, so memory holds one row of chunks and what is still open.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit
from numpy.typing import NDArray

from eo_batch.core.grid import Grid
from eo_batch.outputs.rings import Outlines, take_ragged
from eo_batch.outputs.trace import PART_SCHEMA, outlines_of, rings_column

_Ints = NDArray[np.int64]
_VERTICAL = np.int64(1) << 62


@dataclass(frozen=True, eq=False)
class _Lines:
    """Where the seams of a grid are, and names (int64 keys) for the unit edges on them."""

    row: int
    col: int
    rows: int
    cols: int
    chunk_px: int

    def bottom_keys(self, iy: int) -> tuple[int, int]:
        """Half-open range of the keys of the unit edges on the lower seam of chunk row `iy`."""
        line = (iy + 1) * self.chunk_px
        return line << 31, (line + 1) << 31


class SeamMerger:
    """Joins the objects of one prompt at one time.

    Parameters
    ----------
    grid : the grid of the run.
    """

    def __init__(self, grid: Grid) -> None:
        self._lines = _Lines(grid.rows.start, grid.cols.start, *grid.shape, grid.chunk_px)
        self._last_row = grid.chunks_yx[0] - 1
        self._blocks: list[tuple[pa.Table, _Ints]] = []
        self._open = 0
        self._keys = np.empty(0, np.int64)
        self._owners = np.empty(0, np.int64)

    @property
    def is_empty(self) -> bool:
        """No object is open."""
        return not self._blocks

    def add_row(self, iy: int, table: pa.Table) -> pa.Table:
        """Objects that are complete now that all seam-touching polygons of chunk row `iy` are known.

        Rows must come in order; a row without polygons must be given too, with an empty table.

        Parameters
        ----------
        table : `PART_SCHEMA`, all polygons of the row that touch a seam.

        Returns
        -------
        `PART_SCHEMA`, `touches_seam` False.
        """
        count = self._open + table.num_rows
        if not count:
            return PART_SCHEMA.empty_table()
        keys, owners = self._edges_of(table)
        lower, upper = self._lines.bottom_keys(iy)
        below = (keys >= lower) & (keys < upper) & (iy < self._last_row)
        all_keys = np.concatenate([self._keys, keys[~below]])
        all_owners = np.concatenate([self._owners, owners[~below] + self._open])
        groups = _components(count, *_contacts(all_keys, all_owners))
        if table.num_rows:
            self._blocks.append((table, np.arange(self._open, count)))
        still_open = np.zeros(count, bool)
        still_open[groups[owners[below] + self._open]] = True
        finished = self._take_finished(groups, still_open)
        renumbered = np.cumsum(still_open) - 1
        self._blocks = [(part, renumbered[groups[member]]) for part, member in self._blocks]
        self._keys, self._owners = keys[below], renumbered[groups[owners[below] + self._open]]
        self._open = int(still_open.sum())
        return self._join(*finished)

    def _edges_of(self, table: pa.Table) -> tuple[_Ints, _Ints]:
        outlines = outlines_of(_one_array(table["rings"]))
        lines = self._lines
        keys, owners, *_ = _split(
            outlines.xy, outlines.rings, outlines.objects, lines.row, lines.col, lines.rows, lines.cols, lines.chunk_px
        )
        return keys, owners

    def _take_finished(self, groups: _Ints, still_open: NDArray[np.bool_]) -> tuple[list[pa.Table], _Ints]:
        """Remove the polygons of finished objects from the blocks; the tables and the group of each row."""
        tables, members, kept = [], [], []
        for table, member in self._blocks:
            group = groups[member]
            done = ~still_open[group]
            if done.all():
                tables.append(table)
                members.append(group)
            elif done.any():
                tables.append(table.take(pa.array(np.flatnonzero(done))))
                members.append(group[done])
                kept.append((table.take(pa.array(np.flatnonzero(~done))), member[~done]))
            else:
                kept.append((table, member))
        self._blocks = kept
        return tables, np.concatenate(members) if members else np.empty(0, np.int64)

    def _join(self, tables: list[pa.Table], groups: _Ints) -> pa.Table:
        if not tables:
            return PART_SCHEMA.empty_table()
        table = pa.concat_tables(tables)
        _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        alone = sizes[groups] == 1
        singles = table.filter(pa.array(alone))
        joined = self._merge(table.filter(pa.array(~alone)), groups[~alone])
        index = PART_SCHEMA.get_field_index("touches_seam")
        out = pa.concat_tables([singles, joined])
        return out.set_column(index, PART_SCHEMA.field(index), pa.array(np.zeros(out.num_rows, bool)))

    def _merge(self, table: pa.Table, groups: _Ints) -> pa.Table:
        """One row per group of several polygons."""
        if not table.num_rows:
            return PART_SCHEMA.empty_table()
        _, groups = np.unique(groups, return_inverse=True)
        count = int(groups.max()) + 1
        outlines = merge_outlines(outlines_of(_one_array(table["rings"])), groups, self._lines)

        def total(name: str) -> pa.Array:
            sums = np.zeros(count, np.int64)
            np.add.at(sums, groups, table[name].to_numpy())
            return pa.array(sums)

        peak = np.zeros(count, np.uint8)
        np.maximum.at(peak, groups, table["score_max"].to_numpy())
        edge = np.zeros(count, bool)
        np.logical_or.at(edge, groups, table["touches_region_edge"].to_numpy(zero_copy_only=False))
        columns = {
            "prompt": pa.array(np.full(count, table["prompt"][0].as_py(), np.int32)),
            "pixels": total("pixels"),
            "area_units": total("area_units"),
            "score_sum": total("score_sum"),
            "score_max": pa.array(peak),
            "touches_seam": pa.array(np.zeros(count, bool)),
            "touches_region_edge": pa.array(edge),
            "items": _union_items(_one_array(table["items"]), groups, count),
            "rings": rings_column(outlines),
        }
        return pa.Table.from_arrays([columns[name] for name in PART_SCHEMA.names], schema=PART_SCHEMA)


def merge_outlines(outlines: Outlines, groups: _Ints, lines: _Lines) -> Outlines:
    """Canonical outlines of the unions of the objects that share a group number 0..n-1.

    Objects of one group are disjoint sets of pixels whose common edges lie on seams.
    """
    keys, owners, units, rest, rest_owners = _split(
        outlines.xy, outlines.rings, outlines.objects, lines.row, lines.col, lines.rows, lines.cols, lines.chunk_px
    )
    order = np.argsort(keys, kind="stable")
    paired = np.zeros(len(keys), bool)
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    paired[order[same]] = paired[order[same + 1]] = True
    segments = np.concatenate([rest, units[~paired]])
    owner = groups[np.concatenate([rest_owners, owners[~paired]])]
    # int64 names of vertices, in row-major order: both offsets are below 2^31.
    start = (segments[:, 1] - lines.row << 32) | (segments[:, 0] - lines.col)
    end = (segments[:, 3] - lines.row << 32) | (segments[:, 2] - lines.col)
    order = np.argsort(start, kind="stable")
    segments, owner, start, end = segments[order], owner[order], start[order], end[order]
    following = np.searchsorted(start, end)
    xy, rings, ring_owner = _link(segments, owner, start, following)
    order = np.argsort(ring_owner, kind="stable")
    vertices, ring_offsets = take_ragged(rings, order)
    objects = np.searchsorted(ring_owner[order], np.arange(int(groups.max()) + 2)).astype(np.int64)
    return Outlines(xy[vertices], ring_offsets, objects)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _union_items(items: pa.ListArray, groups: _Ints, count: int) -> pa.ListArray:
    owner = groups[pc.list_parent_indices(items).to_numpy()]
    pairs = np.unique(np.stack([owner, items.flatten().to_numpy()], axis=1), axis=0)
    offsets = np.searchsorted(pairs[:, 0], np.arange(count + 1)).astype(np.int32)
    values = pa.array(pairs[:, 1].astype(np.int32))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=PART_SCHEMA.field("items").type)


def _contacts(keys: _Ints, owners: _Ints) -> tuple[_Ints, _Ints]:
    """Pairs of owners of the same unit edge, seen from its two sides."""
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return owners[order[same]], owners[order[same + 1]]


@njit(cache=True, nogil=True)
def _components(count: int, a: _Ints, b: _Ints) -> _Ints:  # pragma: no cover
    """Least member of the component of each of `count` nodes, joined by the edges (a[i], b[i])."""
    parent = np.arange(count)
    for i in range(len(a)):
        x, y = a[i], b[i]
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        while parent[y] != y:
            parent[y] = parent[parent[y]]
            y = parent[y]
        parent[max(x, y)] = min(x, y)
    for i in range(count):
        parent[i] = parent[parent[i]]
    return parent


@njit(cache=True, nogil=True)
def _split(
    xy: _Ints,
    rings: _Ints,
    objects: _Ints,
    row: int,
    col: int,
    rows: int,
    cols: int,
    chunk_px: int,
) -> tuple[_Ints, ...]:  # pragma: no cover
    """Outline segments, cut where they lie on a seam.

    Returns keys, owners and (x0, y0, x1, y1) of unit edges on seams; (x0, y0, x1, y1) and owners of all other segments.
    """
    units = whole = 0
    keys, owners, edges = np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4), np.int64)
    rest, rest_owners = np.empty((0, 4), np.int64), np.empty(0, np.int64)
    for fill in range(2):  # count, then fill
        if fill == 1:
            keys, owners, edges = np.empty(units, np.int64), np.empty(units, np.int64), np.empty((units, 4), np.int64)
            rest, rest_owners = np.empty((whole, 4), np.int64), np.empty(whole, np.int64)
            units = whole = 0
        for owner in range(len(objects) - 1):
            for ring in range(objects[owner], objects[owner + 1]):
                begin, stop = rings[ring], rings[ring + 1]
                for i in range(begin, stop):
                    k = i + 1 if i + 1 < stop else begin
                    x0, y0, x1, y1 = xy[i, 0], xy[i, 1], xy[k, 0], xy[k, 1]
                    line = x0 - col if x0 == x1 else y0 - row
                    length = cols if x0 == x1 else rows
                    if line % chunk_px != 0 or line <= 0 or line >= length:
                        if fill == 1:
                            rest[whole] = (x0, y0, x1, y1)
                            rest_owners[whole] = owner
                        whole += 1
                        continue
                    n = abs(x1 - x0) + abs(y1 - y0)
                    if fill == 1:
                        dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
                        for step in range(n):
                            ax, ay = x0 + step * dx, y0 + step * dy
                            bx, by = ax + dx, ay + dy
                            place = min(ay, by) - row if x0 == x1 else min(ax, bx) - col
                            keys[units] = (line << 31) | place | (_VERTICAL if x0 == x1 else 0)
                            owners[units] = owner
                            edges[units] = (ax, ay, bx, by)
                            units += 1
                    else:
                        units += n
    return keys, owners, edges, rest, rest_owners


@njit(cache=True, nogil=True)
def _way(segment: _Ints) -> int:  # pragma: no cover
    """0 south, 1 east, 2 north, 3 west."""
    if segment[0] == segment[2]:
        return 0 if segment[3] > segment[1] else 2
    return 1 if segment[2] > segment[0] else 3


@njit(cache=True, nogil=True)
def _link(segments: _Ints, owner: _Ints, start: _Ints, following: _Ints) -> tuple[_Ints, ...]:  # pragma: no cover
    """Rings of directed segments sorted by start vertex, row by row; `following` first segment at each end vertex.

    Returns vertices int64 (n, 2), ring offsets, owner of each ring; canonical as in `rings.py`.
    """
    count = len(segments)
    used = np.zeros(count, np.bool_)
    xy = np.empty((count, 2), np.int64)
    rings = np.zeros(count + 1, np.int64)
    owners = np.empty(count, np.int64)
    found = vertices = 0
    for first in range(count):
        if used[first]:
            continue
        at, before = first, -1
        while not used[at]:
            used[at] = True
            way = _way(segments[at])
            if way != before:
                xy[vertices, 0], xy[vertices, 1] = segments[at, 0], segments[at, 1]
                vertices += 1
            before = way
            ahead = following[at]
            other = ahead + 1
            if other < count and start[other] == start[ahead]:
                # Two outlines pass this vertex: stay with the own object, and turn right where both are its own.
                own = owner[other] == owner[at]
                if own and (owner[ahead] != owner[at] or _way(segments[other]) == (way + 3) % 4):
                    ahead = other
            at = ahead
        owners[found] = owner[first]
        found += 1
        rings[found] = vertices
    return xy[:vertices], rings[: found + 1], owners[:found]
