"""Objects and outlines of one mask, against rasterio and shapely."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from numpy.typing import NDArray
from outputs.small_run import normal_form

from eo_batch.outputs.geoparquet import wkb_column
from eo_batch.outputs.order import hilbert_positions
from eo_batch.outputs.rings import Outlines, label_objects, trace_objects


def outlines_of(mask: NDArray[np.uint8], *, row: int = 0, col: int = 0) -> Outlines:
    labels, count = label_objects(mask)
    return trace_objects(labels, count, row=row, col=col)


def polygons(outlines: Outlines) -> NDArray[np.object_]:
    """In a plane with y up, as the map is seen."""
    return shapely.from_wkb(np.array(wkb_column(outlines, 1.0).to_pylist(), object))


def noise(shape: tuple[int, int], density: float, seed: int) -> NDArray[np.uint8]:
    return (np.random.default_rng(seed).random(shape) < density).astype(np.uint8)


@pytest.mark.parametrize("density", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(40, 60), (1, 50), (50, 1), (2, 2)])
def test_polygons_are_those_of_rasterio(density: float, shape: tuple[int, int]) -> None:
    for seed in range(5):
        mask = noise(shape, density, seed)
        flip = rasterio.Affine(1, 0, 0, 0, -1, 0)
        truth = rasterio.features.shapes(mask, mask=mask == 1, connectivity=4, transform=flip)
        found = polygons(outlines_of(mask))
        assert shapely.is_valid(found).all()
        assert normal_form(found) == normal_form([shapely.geometry.shape(geometry) for geometry, _ in truth])


@pytest.mark.parametrize("density", [0.3, 0.6, 0.8])
def test_outlines_are_canonical(density: float) -> None:
    outlines = outlines_of(noise((50, 50), density, 7), row=-1000, col=30)
    firsts = []
    for j, polygon in enumerate(polygons(outlines)):
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        rings = [outlines.xy[outlines.rings[i] : outlines.rings[i + 1]] for i in range(*outlines.objects[j : j + 2])]
        for ring in rings:
            assert tuple(ring[0][::-1]) == min((y, x) for x, y in ring)
            steps = np.diff(ring, axis=0, append=ring[:1])
            assert ((steps != 0).sum(axis=1) == 1).all()  # along one axis
            assert (steps[:, 0] * np.roll(steps[:, 0], -1) == 0).all()  # and then along the other
        holes = [tuple(ring[0][::-1]) for ring in rings[1:]]
        assert holes == sorted(holes)
        firsts.append(tuple(rings[0][0][::-1]))
    assert firsts == sorted(firsts)


def test_labels_are_those_of_a_flood_fill() -> None:
    mask = noise((40, 40), 0.6, 3)
    labels, count = label_objects(mask)
    seen = 0
    todo = np.pad(mask, 1)
    for y, x in np.argwhere(todo):
        if todo[y, x]:
            seen += 1
            stack = [(y, x)]
            while stack:
                y, x = stack.pop()
                if todo[y, x]:
                    todo[y, x] = 0
                    assert labels[y, x] == seen
                    stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    assert count == seen


def test_only_the_asked_value_is_an_object() -> None:
    mask = np.array([[0, 1, 254], [255, 1, 2]], np.uint8)
    assert polygons(outlines_of(mask))[0].equals(shapely.box(1, -2, 2, 0))
    assert len(outlines_of(mask)) == 1


def test_take_and_concat_keep_objects() -> None:
    outlines = outlines_of(noise((40, 40), 0.5, 1))
    index = np.random.default_rng(0).permutation(len(outlines))
    parts = [outlines.take(index[:5]), outlines.take(index[5:5]), outlines.take(index[5:])]
    assert (polygons(Outlines.concat(parts)) == polygons(outlines)[index]).all()


def test_bounds_are_those_of_shapely() -> None:
    outlines = outlines_of(noise((40, 40), 0.5, 1))
    x0, y0, x1, y1 = shapely.bounds(polygons(outlines)).T
    np.testing.assert_array_equal(outlines.bounds, np.stack([x0, -y1, x1, -y0], axis=1))


def test_hilbert_neighbours_in_order_are_neighbours_on_the_grid() -> None:
    side = 64
    y, x = np.mgrid[0:side, 0:side].astype(np.uint64) + np.uint64(1 << 31)
    places = hilbert_positions(np.stack([x.ravel(), y.ravel()], axis=1))
    order = np.argsort(places)
    assert (np.diff(places[order]) == 1).all()
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int64)[order]
    assert (np.abs(np.diff(points, axis=0)).sum(axis=1) == 1).all()
