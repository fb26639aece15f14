"""Footprints joined at pixel corners are the 8-connected objects of the whole mask, for any chunk size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from outputs.small_run import make_grid, make_prompts, make_steps, run_footprints
from scipy import ndimage

from eo_batch.core.errors import IntegrityError
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.footprints import FOOTPRINTS
from eo_batch.outputs.objects import Objects, read_objects
from eo_batch.outputs.store import Store

SHAPE = (83, 71)


def noise(density: float, seed: int) -> NDArray[np.uint8]:
    """Random masks uint8 (prompt, time, y, x), some pixels unobserved."""
    random = np.random.default_rng(seed)
    masks = (random.random((2, 2, *SHAPE)) < density).astype(np.uint8)
    masks[:, random.random((2, *SHAPE)) < 0.05] = 254
    return masks


def scores_for(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = np.random.default_rng(7).integers(125, 251, masks.shape)
    return np.where(masks == 1, values, masks).astype(np.uint8)


def objects_of(folder: Path, masks: NDArray[np.uint8], chunk_px: int, **settings: int) -> dict[tuple[int, int], Objects]:
    """(prompt, time) -> objects of `masks`, made chunk by chunk."""
    grid, store = make_grid(masks.shape[2:], chunk_px), Store(folder / f"run-{chunk_px}")
    run_footprints(store, masks, grid=grid, scores=scores_for(masks))
    ids = make_prompts(*[0.0] * len(masks)).ids
    labels = [step.label for step in make_steps(masks.shape[1])]
    return {(ids.index(name), labels.index(step)): found for step, name, found in read_objects(store, grid, **settings)}


def rows(objects: Objects, chunk_px: int) -> list[tuple]:
    grid = make_grid(SHAPE, chunk_px)
    corner = np.array([grid.cols.start, grid.rows.start])
    bounds, first = objects.bounds - np.tile(corner, 2), objects.first - corner
    sums = np.stack([objects.pixels, objects.score_sum, objects.score_max.astype(np.int64)], axis=1)
    return sorted(map(tuple, np.concatenate([bounds, first, sums], axis=1).tolist()))


def truth(mask: NDArray[np.uint8], score: NDArray[np.uint8], structure: NDArray[np.int_]) -> list[tuple]:
    """Bounds, first pixel, size, sum and peak of each component by scipy on the whole mask."""
    labels, count = ndimage.label(mask == 1, structure=structure)
    out = []
    for number in range(1, count + 1):
        y, x = np.nonzero(labels == number)
        values = score[y, x].astype(int)
        out.append((x.min(), y.min(), x.max() + 1, y.max() + 1, x[0], y[0], len(x), values.sum(), values.max()))
    return sorted(tuple(map(int, row)) for row in out)


@pytest.mark.parametrize("chunk_px", [16, 37, 96])
@pytest.mark.parametrize("density", [0.2, 0.4, 0.6])
def test_objects_are_the_8_connected_components_of_the_whole_mask(tmp_path: Path, density: float, chunk_px: int) -> None:
    masks = noise(density, seed=int(100 * density))
    found = objects_of(tmp_path, masks, chunk_px)
    for (prompt, t), objects in found.items():
        expected = truth(masks[prompt, t], scores_for(masks)[prompt, t], np.ones((3, 3), int))
        assert rows(objects, chunk_px) == expected
    assert len(found) == 4


def test_with_connectivity_4_each_footprint_is_an_object(tmp_path: Path) -> None:
    masks = noise(0.4, seed=3)
    for (prompt, t), objects in objects_of(tmp_path, masks, 37, connectivity=4).items():
        cross = ndimage.generate_binary_structure(2, 1)
        assert rows(objects, 37) == truth(masks[prompt, t], scores_for(masks)[prompt, t], cross)
        assert set(objects.footprints) == {1}


@pytest.mark.parametrize(
    ("picture", "objects"),
    [
        (("#.", ".#"), 1),  # meet at a corner
        (("##.", "##.", "..#"), 1),
        (("#.#", ".#.", "#.#"), 1),  # five footprints
        (("###", "#.#", "###"), 1),  # a hole is nothing
        (("####", "#..#", "#.##", "####"), 1),  # a ring that meets itself at a corner
        (("#####", "#...#", "#.#.#", "#...#", "#####"), 2),  # an island in a hole touches nothing
        (("####", "#.#.", "##.#"), 1),  # an object that touches itself and another one
        (("#..#", "....", "#..#"), 4),
        (("##", "..", "##"), 2),  # aligned corners without a shared vertex
    ],
)
def test_what_meets_at_a_corner_is_one_object(tmp_path: Path, picture: tuple[str, ...], objects: int) -> None:
    mask = np.zeros((1, 1, *SHAPE), np.uint8)
    drawn = np.array([[character == "#" for character in line] for line in picture])
    mask[0, 0, 14 : 14 + drawn.shape[0], 14 : 14 + drawn.shape[1]] = drawn
    (found,) = objects_of(tmp_path, mask, 16).values()
    assert len(found) == objects
    assert found.pixels.sum() == drawn.sum()


def test_areas_of_joined_footprints_add_up_exactly(tmp_path: Path) -> None:
    masks = noise(0.4, seed=5)[:1, :1]
    (found,) = objects_of(tmp_path, masks, 37).values()
    grid = make_grid(SHAPE, 37)
    assert found.area_units.sum() == PixelAreas(grid).of(grid.rows, grid.cols)[masks[0, 0] == 1].sum()


def test_objects_come_in_one_order_and_keep_their_corners(tmp_path: Path) -> None:
    masks = noise(0.4, seed=6)[:1, :1]
    small, large = (next(iter(objects_of(tmp_path, masks, chunk_px).values())) for chunk_px in (16, 96))
    for name in ("bounds", "first", "pixels", "area_units", "score_sum", "footprints", "owner"):
        assert np.array_equal(getattr(small, name), getattr(large, name)), name
    for index in range(len(small)):
        corners = small.corners[small.owner == index]
        assert np.array_equal(corners.min(axis=0), small.bounds[index, :2])
        assert np.array_equal(corners.max(axis=0), small.bounds[index, 2:])


def test_damaged_or_missing_footprints_are_named(tmp_path: Path) -> None:
    store, grid = Store(tmp_path), make_grid(SHAPE, 96)
    with pytest.raises(IntegrityError, match=r"shard-missing.*footprints\.parquet"):
        list(read_objects(store, grid))
    run_footprints(store, noise(0.3, seed=1), grid=grid)
    store.put(FOOTPRINTS, store.get(FOOTPRINTS)[:-2000])
    with pytest.raises(IntegrityError, match=r"shard-mismatch.*footprints\.parquet"):
        list(read_objects(store, grid))
