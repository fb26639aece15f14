"""Zones of a run: polygons of a file or a grid of cells, and their figures, summed chunk by chunk from the mask cube."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError, IntegrityError
from eo_batch.core.grid import Chunk, Grid
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.cube import MASK, SCORE, decode_shard, shard_path
from eo_batch.outputs.store import Store
from eo_batch.products.rules import TaskRules
from eo_batch.products.zones import Runs, Zones, ZoneSums, zones_on_grid
from eo_batch.run.manifest import RunInputs
from eo_batch.sources.polygons import read_polygons

MAX_CELLS = 1_000_000
MAX_CELL_PX = 1 << 30
MAX_FIGURES = 20_000_000
"""Zones x time steps x prompts whose sums are held in memory (about 60 bytes each)."""
_MANY_PIXELS = 2.0**62
"""More pixels beyond the grid are not told apart: a continent in millimetres."""


@dataclass(frozen=True)
class ZoneFile:
    """Zones from a file of polygons; parameters as in `sources.polygons.read_polygons`."""

    path: Path
    id_field: str | None = None
    layer: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the metadata of the layer says about where its zones are from."""
        return {"file": self.path.name, "id_field": self.id_field, "layer": self.layer}


@dataclass(frozen=True)
class Cells:
    """Zones that are square cells of `size` CRS units, anchored at the CRS origin.

    Cell (row, col) covers x in [col * size, (col + 1) * size) and y in (-(row + 1) * size, -row * size], as pixels do.
    """

    size: float

    @property
    def facts(self) -> dict[str, Any]:
        """What the metadata of the layer says about where its zones are from."""
        return {"cells": self.size}


@dataclass(frozen=True, eq=False)
class ZoneLayer:
    """Zones on the grid of a run.

    Parameters
    ----------
    ids : their names. shapes : shapely geometry in the CRS of the grid, or None where that has no coordinates for a zone.
    repaired : names of zones whose outline was mended.
    """

    ids: tuple[str, ...]
    shapes: NDArray[np.object_]
    grid: Grid
    repaired: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def zones(self) -> Zones:
        """Their outlines in absolute pixels."""
        return zones_on_grid(self.shapes, self.grid.resolution)

    @cached_property
    def pixels_beyond(self) -> NDArray[np.int64]:
        """int64 (zone,): pixels of each zone that lie outside the grid, from its area there."""
        left, bottom, right, top = self.grid.bounds
        box = shapely.bounds(self.shapes)
        over = (box[:, 0] < left) | (box[:, 1] < bottom) | (box[:, 2] > right) | (box[:, 3] > top)
        out = np.zeros(len(self), np.int64)
        shapes = self.shapes[over]
        beyond = shapely.area(shapes) - shapely.area(shapely.intersection(shapes, shapely.box(left, bottom, right, top)))
        out[over] = np.minimum(np.rint(beyond / self.grid.resolution**2), _MANY_PIXELS).astype(np.int64)
        return out


def load_zones(source: ZoneFile | Cells, inputs: RunInputs) -> ZoneLayer:
    """The zones that `source` names.

    Raises
    ------
    ConfigError : `zones-invalid`, `config-invalid` for cells of no size, and where there would be too many figures.
    """
    grid = inputs.grid
    if isinstance(source, Cells):
        layer = _cells(source.size, inputs)
    else:
        found = read_polygons(source.path, crs=grid.crs, bounds=grid.bounds, id_field=source.id_field, layer=source.layer)
        layer = ZoneLayer(found.ids, found.shapes, grid, found.repaired)
    figures = len(layer) * len(inputs.steps) * len(inputs.request.spec.prompt_set)
    if figures > MAX_FIGURES:
        what = f"{len(layer):,} zones, {len(inputs.steps):,} time steps and their prompts make {figures:,} rows"
        fix = "Take larger cells or fewer zones."
        raise ConfigError("zones-invalid", f"{what} (limit {MAX_FIGURES:,})", where="zones", fix=fix)
    return layer


def _cells(size: float, inputs: RunInputs) -> ZoneLayer:
    """Cells that touch the region, row by row."""
    grid = inputs.grid
    if not 0 < size <= MAX_CELL_PX * grid.resolution:
        fix = f"Give a size above 0 and of at most {MAX_CELL_PX * grid.resolution:g}."
        raise ConfigError("config-invalid", f"a cell cannot have {size} CRS units", where="cells", fix=fix)
    left, bottom, right, top = (value / size for value in grid.bounds)
    ends = np.array([[np.floor(-top), np.floor(left)], [np.ceil(-bottom), np.ceil(right)]])
    if not (np.isfinite(ends).all() and np.prod(ends[1] - ends[0]) <= MAX_CELLS):
        fix = "Take larger cells (the size is in units of the CRS of the grid)."
        raise ConfigError("zones-invalid", f"cells of {size:g} would be more than {MAX_CELLS:,}", where="cells", fix=fix)
    rows, cols = ends.T.astype(np.int64).tolist()
    row, col = (index.ravel() for index in np.mgrid[rows[0] : rows[1], cols[0] : cols[1]])
    boxes = shapely.box(col * size, -(row + 1) * size, (col + 1) * size, -row * size)
    scale = np.array([grid.resolution, -grid.resolution])
    region = shapely.transform(inputs.region.polygons, lambda xy: xy * scale)
    shapely.prepare(region)
    touching = shapely.intersects(boxes, region)
    names = [f"r{r}c{c}" for r, c in zip(row[touching].tolist(), col[touching].tolist(), strict=True)]
    return ZoneLayer(tuple(names), boxes[touching], grid)


def sum_zones(
    store: Store, inputs: RunInputs, layer: ZoneLayer, *, failed: frozenset[str], progress: Callable[[int, int], None]
) -> ZoneSums:
    """Sums over all pixels of the cube for each zone, time and prompt, chunk by chunk.

    Memory is that of one chunk and of the sums. The order of chunks and their size change nothing: all sums are integers.

    Parameters
    ----------
    failed : keys of the chunks that were never made: their pixels count as not observed.
    progress : called with (chunk positions done, in all).

    Raises
    ------
    IntegrityError : `shard-missing` or `shard-mismatch`.
    """
    grid = inputs.grid
    sums = ZoneSums.zeros(len(layer), len(inputs.steps), len(inputs.request.spec.prompt_set))
    areas = PixelAreas(grid)
    total = grid.chunks_yx[0] * grid.chunks_yx[1]
    for done, place in enumerate(grid.chunks(0)):
        progress(done, total)
        area: NDArray[np.int64] | None = None
        for runs in layer.zones.pixel_runs(place.rows, place.cols):
            area = areas.of(place.rows, place.cols) if area is None else area
            sums.add_pixels(runs)
            for t in range(len(inputs.steps)):
                chunk = grid.chunk(t, place.iy, place.ix)
                if chunk.key not in failed:
                    _add_chunk(sums, store, inputs, runs, chunk, area)
    return sums


def _add_chunk(sums: ZoneSums, store: Store, inputs: RunInputs, runs: Runs, chunk: Chunk, area: NDArray[np.int64]) -> None:
    """Add the pixels of one chunk, of all prompts."""
    grid, spec = inputs.grid, inputs.request.spec
    for prompt in range(len(spec.prompt_set)):
        mask = _shard(store, MASK, prompt, chunk, grid)
        if prompt == 0:  # a pixel is observed for all prompts of a time or for none
            sums.add_observed(runs, mask, area, t=chunk.t)
        sums.add_mask(runs, mask, area, t=chunk.t, prompt=prompt)
        if spec.output.scores:
            sums.add_scores(runs, _shard(store, SCORE, prompt, chunk, grid), t=chunk.t, prompt=prompt)


def _shard(store: Store, array: str, prompt: int, chunk: Chunk, grid: Grid) -> NDArray[np.uint8]:
    """uint8 (y, x) of the interior of a chunk."""
    path = shard_path(array, prompt, chunk)
    fix = "Run `eo-batch resume --repair`."
    try:
        values = decode_shard(store.get(path), grid)
    except FileNotFoundError:
        raise IntegrityError("shard-missing", "a shard of the run is gone", where=path, fix=fix) from None
    except IntegrityError as error:
        raise IntegrityError("shard-mismatch", error.what, where=path, why=error.why, fix=fix) from None
    height, width = chunk.shape
    return values[:height, :width]


@dataclass(frozen=True, eq=False)
class Presence:
    """Which prompts zones show.

    Parameters
    ----------
    scores : float64 (zone, time, prompt), NaN where nothing was observed.
    best : int64 (zone, time), the one prompt that fits best, -1 where none does.
    """

    scores: NDArray[np.float64]
    best: NDArray[np.int64]


def presence_of(sums: ZoneSums, *, rules: TaskRules, from_scores: bool) -> Presence:
    """Multi-label scores and the best class by RemoteSAM's rules (`products.tasks`), over the observed pixels of each zone.

    Without stored scores each pixel of the mask has the score 1 and all others 0: a prompt is present where one pixel is.
    Stored scores have steps, and many are 1: of equal best classes the one with the greater mean is taken, then the first.
    """
    greatest = sums.greatest_scores if from_scores else np.where(np.isnan(share := sums.covered_pixel_shares), np.nan, share > 0)
    mean = sums.mean_scores if from_scores else sums.covered_pixel_shares
    weight = rules.label_balance if rules.balance_weighs == "max" else 1 - rules.label_balance
    labels = weight * greatest + (1 - weight) * mean
    classes = rules.class_balance * greatest + (1 - rules.class_balance) * mean
    ranked = np.where(np.isnan(classes), -1.0, classes)
    top = ranked.max(axis=2, keepdims=True)
    best = np.argmax(np.where(ranked == top, np.nan_to_num(mean, nan=-1.0), -2.0), axis=2)
    return Presence(labels, np.where(top[:, :, 0] >= rules.class_threshold, best, -1))
