"""Footprints to objects: those that meet at a corner of a pixel are one object (8-connectivity), exactly as on the whole mask.

`footprints.parquet` holds objects connected through pixel edges. Two of them, of one prompt and time, that share a vertex of
their outlines meet there diagonally: no pixel of one is edge to edge with a pixel of the other, or they were one footprint. The
converse holds too, since an outline turns wherever it meets a diagonal neighbour. So the vertices alone, in absolute
integer pixels, say which footprints belong together, and no pixel has to be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from eo_batch.core.arrays import SCORE_STEPS
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Grid
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.footprints import FOOTPRINTS
from eo_batch.outputs.order import hilbert_positions
from eo_batch.outputs.store import Store

_Ints = NDArray[np.int64]
_COLUMNS = ["step", "prompt_id", "area_m2", "pixels", "score_mean", "score_max", "touches_region_edge", "geometry"]
_REPAIR = "Run `eo-batch resume --repair`."


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one prompt at one time, in absolute pixels (x = column, y = row), flat.

    Parameters
    ----------
    bounds : int64 (n, 4), x0, y0, x1, y1, the last two exclusive.
    first : int64 (n, 2), column and row of the topmost, then leftmost pixel.
    pixels, area_units, score_sum : int64 (n,), sums over the pixels: their number, area in units of `PixelAreas`, stored scores.
    score_max : uint8 (n,), greatest stored score.
    footprints : int64 (n,), how many footprints the object is made of.
    touches_region_edge : bool (n,).
    corners, owner : int64 (m, 2) and (m,): convex corners of the outlines, which hold those of the convex hull, and the object
        of each, rising.
    """

    bounds: _Ints
    first: _Ints
    pixels: _Ints
    area_units: _Ints
    score_sum: _Ints
    score_max: NDArray[np.uint8]
    footprints: _Ints
    touches_region_edge: NDArray[np.bool_]
    corners: _Ints
    owner: _Ints

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean stored score over the pixels of each object, 0..1."""
        return self.score_sum / (self.pixels * float(SCORE_STEPS))

    @property
    def centres2(self) -> _Ints:
        """int64 (n, 2): twice the middle (x, y) of each object's bounds, a whole number."""
        return self.bounds[:, :2] + self.bounds[:, 2:]

    def take(self, index: NDArray[np.integer]) -> Objects:
        """The objects at the positions `index`, in that order."""
        stops = np.searchsorted(self.owner, np.arange(len(self) + 1))
        lengths = np.diff(stops)[index]
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1] if len(ends) else 0) + np.repeat(stops[index] - (ends - lengths), lengths)
        sums = {name: getattr(self, name)[index] for name in _PER_OBJECT}
        return Objects(**sums, corners=self.corners[positions], owner=np.repeat(np.arange(len(index)), lengths))

    @staticmethod
    def concat(blocks: list[Objects]) -> Objects:
        """All objects, in order."""
        sums = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in _PER_OBJECT}
        before = np.cumsum([0, *(len(block) for block in blocks)])
        owner = np.concatenate([block.owner + start for block, start in zip(blocks, before, strict=False)])
        return Objects(**sums, corners=np.concatenate([block.corners for block in blocks]), owner=owner)


_PER_OBJECT = ("bounds", "first", "pixels", "area_units", "score_sum", "score_max", "footprints", "touches_region_edge")


def read_objects(store: Store, grid: Grid, *, connectivity: int = 8) -> Iterator[tuple[str, str, Objects]]:
    """Objects of a run: (label of the time step, id of the prompt, objects), in the order of `footprints.parquet`.

    Objects come in the order of the Hilbert positions of their middles, then of their first pixels. A time and prompt without
    footprints is left out. Memory is that of the objects of one prompt and time, without their outlines.

    Parameters
    ----------
    connectivity : 8, or 4 to have each footprint as it is.

    Raises
    ------
    IntegrityError : `shard-missing` or `shard-mismatch`: there are no footprints, or they are damaged.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"pixels are connected to 4 or 8 neighbours, not to {connectivity}")
    blocks: list[Objects] = []
    key: tuple[str, str] | None = None
    for now, block in _blocks(store, grid):
        if key is not None and now != key:
            yield *key, _whole(blocks, connectivity)
            blocks = []
        key = now
        blocks.append(block)
    if key is not None:
        yield *key, _whole(blocks, connectivity)


def join_at_corners(objects: Objects) -> Objects:
    """Objects of which some share a corner as objects of which none do; groups in the order of their first members."""
    count = len(objects)
    keys = (objects.corners[:, 1] << 32) + objects.corners[:, 0]
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    one, other = objects.owner[order[same]], objects.owner[order[same + 1]]
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    _, found = connected_components(graph, directed=False)
    _, firsts, found = np.unique(found, return_index=True, return_inverse=True)
    if len(firsts) == count:
        return objects
    group = np.argsort(np.argsort(firsts))[found]
    return _merged(objects, group, len(firsts))


def _merged(objects: Objects, group: _Ints, count: int) -> Objects:
    def total(values: NDArray) -> _Ints:
        out = np.zeros(count, np.int64)
        np.add.at(out, group, values)
        return out

    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.full((count, 2), np.iinfo(np.int64).min)
    np.minimum.at(low, group, objects.bounds[:, :2])
    np.maximum.at(high, group, objects.bounds[:, 2:])
    place = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(place, group, (objects.first[:, 1] << 32) + (objects.first[:, 0] + (1 << 31)))
    first = np.stack([(place & 0xFFFFFFFF) - (1 << 31), place >> 32], axis=1)
    score_max = np.zeros(count, np.uint8)
    np.maximum.at(score_max, group, objects.score_max)
    edge = np.zeros(count, np.bool_)
    np.logical_or.at(edge, group, objects.touches_region_edge)
    owner = group[objects.owner]
    order = np.argsort(owner, kind="stable")
    return Objects(
        np.concatenate([low, high], axis=1),
        first,
        total(objects.pixels),
        total(objects.area_units),
        total(objects.score_sum),
        score_max,
        total(objects.footprints),
        edge,
        objects.corners[order],
        owner[order],
    )


def _whole(blocks: list[Objects], connectivity: int) -> Objects:
    objects = Objects.concat(blocks)
    if connectivity == 8:
        objects = join_at_corners(objects)
    places = hilbert_positions((objects.centres2 // 2 + (1 << 31)).astype(np.uint64))
    return objects.take(np.lexsort((objects.first[:, 0], objects.first[:, 1], places)))


def _blocks(store: Store, grid: Grid) -> Iterator[tuple[tuple[str, str], Objects]]:
    """Runs of footprints of one time step and prompt, as far as they lie in one row group."""
    unit_m2 = PixelAreas(grid).unit_m2
    if not store.exists(FOOTPRINTS):
        raise IntegrityError("shard-missing", "the footprints of the run are gone", where=FOOTPRINTS, fix=_REPAIR)
    try:
        with store.open(FOOTPRINTS) as file, pq.ParquetFile(file) as parquet:
            for index in range(parquet.num_row_groups):
                table = parquet.read_row_group(index, columns=_COLUMNS)
                steps, prompts = (table[name].to_numpy() for name in ("step", "prompt_id"))
                changes = np.flatnonzero((steps[1:] != steps[:-1]) | (prompts[1:] != prompts[:-1])) + 1
                for start, stop in pairwise([0, *changes.tolist(), table.num_rows]):
                    if stop > start:
                        part = table.slice(start, stop - start)
                        yield (str(steps[start]), str(prompts[start])), _decoded(part, grid.resolution, unit_m2)
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError, KeyError) as error:
        why = str(error).splitlines()[0][:200]
        raise IntegrityError("shard-mismatch", "the footprints cannot be read", where=FOOTPRINTS, why=why, fix=_REPAIR) from None


def _decoded(table: pa.Table, resolution: float, unit_m2: float) -> Objects:
    """Footprints with their sums as the integers they were written from."""
    shapes = shapely.from_wkb(table["geometry"].to_numpy())
    rings, of_ring = shapely.get_rings(shapes, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    lattice = np.rint(xy * [1, -1] / resolution).astype(np.int64)
    owner = of_ring[ring]
    starts = np.searchsorted(owner, np.arange(len(shapes)))
    low, high = np.minimum.reduceat(lattice, starts), np.maximum.reduceat(lattice, starts)
    convex = _convex_corners(lattice, ring)
    pixels = table["pixels"].to_numpy().astype(np.int64)
    return Objects(
        np.concatenate([low, high], axis=1),
        lattice[starts],
        pixels,
        np.rint(table["area_m2"].to_numpy() / unit_m2).astype(np.int64),
        np.rint(table["score_mean"].to_numpy() * (pixels * float(SCORE_STEPS))).astype(np.int64),
        np.rint(table["score_max"].to_numpy() * SCORE_STEPS).astype(np.uint8),
        np.ones(len(pixels), np.int64),
        table["touches_region_edge"].to_numpy(),
        lattice[convex],
        owner[convex],
    )


def _convex_corners(xy: _Ints, ring: _Ints) -> NDArray[np.bool_]:
    """Vertices of closed rings at which the outline turns to the object's side; the object is on the left in map view.

    Only there can an object meet another one diagonally: of the four pixels around, it has one.
    """
    last = np.ones(len(ring), np.bool_)
    last[:-1] = ring[1:] != ring[:-1]
    first = np.roll(last, 1)
    ahead = np.roll(xy, -1, axis=0) - xy
    behind = np.roll(ahead, 1, axis=0)
    behind[first] = ahead[np.flatnonzero(last) - 1]
    turn: NDArray[np.int64] = behind[:, 0] * ahead[:, 1] - behind[:, 1] * ahead[:, 0]
    return (turn < 0) & ~last  # rows grow downwards: a left turn on the map is negative here
