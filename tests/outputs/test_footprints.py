"""Footprints of chunked masks against polygons of the whole mask."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from numpy.typing import NDArray
from outputs.small_run import make_grid, make_items, make_prompts, make_steps, normal_form, run_footprints, truth_polygons
from pyproj import CRS

from eo_batch.core.errors import IntegrityError, StoreError
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.footprints import FOOTPRINTS, merge_parts, part_path
from eo_batch.outputs.geoparquet import FOOTPRINT_SCHEMA
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import PART_SCHEMA, part_bytes, read_part, trace_chunk

PICTURES = {
    "one object in 2 chunks": """
        ........
        .######.
        ........""",
    "one object in 4 chunks": """
        ........
        ..####..
        ..####..
        ..####..
        ..####..
        ........""",
    "a ring around a whole chunk": """
        ............
        ..########..
        ..#......#..
        ..#......#..
        ..#......#..
        ..#......#..
        ..########..
        ............""",
    "a cross in 9 chunks": """
        .....##.....
        .....##.....
        .....##.....
        .....##.....
        ############
        ############
        .....##.....
        .....##.....""",
    "a corner touch on a crossing of seams is no contact": """
        ####....
        ####....
        ####....
        ####....
        ....####
        ....####
        ....####
        ....####""",
    "corner touches along a seam": """
        #.#.#.#.
        #.#.#.#.
        #.#.#.#.
        #.#.#.#.
        .#.#.#.#
        .#.#.#.#""",
    "a snake along a seam": """
        ##.###.###.#
        .#.#.#.#.#.#
        .#.#.#.#.#.#
        .###.###.###
        .#.#.#.#.#.#
        ##.###.###.#""",
    "a spiral": """
        ###########
        #.........#
        #.#######.#
        #.#.....#.#
        #.#.###.#.#
        #.#.#...#.#
        #.#.#####.#
        #.#.......#
        #.#########""",
    "two holes that touch at a crossing of seams": """
        ########
        ########
        ##..####
        ##..####
        ####..##
        ####..##
        ########""",
    "an object in the hole of another": """
        #########
        #.......#
        #.#####.#
        #.#...#.#
        #.#.#.#.#
        #.#...#.#
        #.#####.#
        #.......#
        #########""",
    "everything": "\n".join(["#" * 13] * 11),
    "nothing": "\n".join(["." * 13] * 11),
}


def picture(text: str) -> NDArray[np.uint8]:
    lines = [line.strip() for line in text.strip().splitlines()]
    return np.array([[character == "#" for character in line] for line in lines], np.uint8)


@pytest.mark.parametrize("chunk_px", [2, 3, 4, 5, 64])
@pytest.mark.parametrize("name", PICTURES)
def test_drawn_objects_come_back_whole(store: Store, name: str, chunk_px: int) -> None:
    mask = picture(PICTURES[name])
    grid = make_grid(mask.shape, chunk_px)
    found, _ = run_footprints(store, mask[None, None], grid=grid)
    assert normal_form(found.geometry.values) == truth_polygons(mask, grid)


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("chunk_px", [3, 7, 16, 64])
def test_noise_gives_the_polygons_of_the_whole_mask(store: Store, density: float, chunk_px: int) -> None:
    rng = np.random.default_rng(chunk_px)
    shape = (29, 41) if chunk_px < 16 else (131, 150)
    mask = (rng.random(shape) < density).astype(np.uint8)
    grid = make_grid(shape, chunk_px)
    found, _ = run_footprints(store, mask[None, None], grid=grid)
    assert shapely.is_valid(found.geometry.values).all()
    assert normal_form(found.geometry.values) == truth_polygons(mask, grid)


def noisy_case(shape: tuple[int, int]) -> dict[str, NDArray]:
    """Masks, scores, sources and a region for 2 prompts and 2 steps, all random."""
    rng = np.random.default_rng(11)
    inside = np.ones(shape, bool)
    inside[: shape[0] // 3, : shape[1] // 2] = False
    masks = (rng.random((2, 2, *shape)) < np.array([0.55, 0.35])[:, None, None, None]).astype(np.uint8)
    masks[:, :, ~inside] = 254
    scores = rng.integers(0, 251, masks.shape).astype(np.uint8)
    scores[masks == 254] = 254
    source = rng.integers(0, 5, (2, *shape)).astype(np.int32)
    return {"masks": masks, "scores": scores, "source": source, "inside": inside}


@pytest.mark.parametrize("chunk_px", [5, 9, 32, 33])
def test_the_file_has_the_same_bytes_for_any_chunk_size(tmp_path: Path, chunk_px: int) -> None:
    case = noisy_case((47, 61))
    prompts, items = make_prompts(0.0, 450.0), make_items(5)
    digests = {
        run_footprints(Store(tmp_path / str(px)), grid=make_grid((47, 61), px), prompts=prompts, items=items, **case)[1].sha256
        for px in (chunk_px, 100)
    }
    assert len(digests) == 1


def test_the_order_of_chunks_and_spilling_change_nothing(tmp_path: Path) -> None:
    case = noisy_case((47, 61))
    grid, items = make_grid((47, 61), 16), make_items(5)
    count = 2 * 3 * 4
    orders = [list(range(count)), list(reversed(range(count))), np.random.default_rng(1).permutation(count).tolist()]
    digests = set()
    for number, (order, spill_bytes) in enumerate(zip(orders, (1 << 29, 1, 5000), strict=True)):
        store = Store(tmp_path / str(number))
        _, summary = run_footprints(store, grid=grid, items=items, order=order, spill_bytes=spill_bytes, **case)
        digests.add(summary.sha256)
        assert list(store.list("merge")) == []
    assert len(digests) == 1


def test_attributes_are_those_of_the_pixels(store: Store) -> None:
    case = noisy_case((47, 61))
    grid, items, prompts = make_grid((47, 61), 7), make_items(5), make_prompts(0.0, 0.0)
    found, summary = run_footprints(store, grid=grid, prompts=prompts, items=items, **case)
    assert summary.rows == {text: int((found["prompt"] == text).sum()) for text in prompts.texts}
    assert found["id"].is_unique
    outside = ~np.pad(case["inside"], 1)
    beside = outside[:-2, 1:-1] | outside[2:, 1:-1] | outside[1:-1, :-2] | outside[1:-1, 2:]
    labels = {step.label: step for step in make_steps(2)}
    for row in found.itertuples():
        p, step = prompts.texts.index(row.prompt), labels[row.step]
        shape = rasterised(row.geometry, grid.transform, grid.shape)
        scores = case["scores"][p, step.index][shape]
        assert (case["masks"][p, step.index][shape] == 1).all()
        assert row.pixels == shape.sum()
        assert row.score_mean == pytest.approx(scores.mean() / 250)
        assert row.score_max == scores.max() / 250
        used = [items.items[i] for i in np.unique(case["source"][step.index][shape])]
        assert list(row.item_ids) == sorted(item.id for item in used)
        assert row.start_datetime == min(item.start for item in used)
        assert row.end_datetime == max(item.end for item in used)
        assert row.touches_region_edge == beside[shape].any()
        y, x = np.argwhere(shape)[0]
        assert row.id == f"{prompts.ids[p]}-{row.step}-r{grid.rows.start + y}c{grid.cols.start + x}"
        assert row.prompt_id == prompts.ids[p]
        assert row.time == step.start


def rasterised(geometry: shapely.Polygon, transform, shape: tuple[int, int]) -> NDArray[np.bool_]:
    from rasterio.features import rasterize

    return rasterize([geometry], out_shape=shape, transform=transform).astype(bool)


@pytest.mark.parametrize(
    ("crs", "resolution", "row", "col"),
    [
        ("EPSG:32631", 10.0, -470_003, 41_999),
        ("EPSG:4326", 0.001, -60_000, 5_000),
        ("EPSG:3857", 30.0, -280_000, 9_000),
        ("EPSG:3031", 100.0, -20, -30),
    ],
)
def test_areas_are_geodesic(store: Store, crs: str, resolution: float, row: int, col: int) -> None:
    mask = (np.random.default_rng(4).random((60, 60)) < 0.62).astype(np.uint8)
    grid = make_grid(mask.shape, 16, crs=crs, resolution=resolution, row=row, col=col)
    found, _ = run_footprints(store, mask[None, None], grid=grid)
    degrees = found.set_geometry(shapely.segmentize(found.geometry.values, resolution / 2), crs=crs).to_crs("EPSG:4326")
    geod = CRS.from_user_input(crs).get_geod()
    truth = [abs(geod.geometry_area_perimeter(geometry)[0]) for geometry in degrees.geometry]
    np.testing.assert_allclose(found["area_m2"], truth, rtol=5e-4)


def test_small_footprints_are_left_out_after_merging(store: Store) -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[2, 1:4] = 1  # 300 m2 in one chunk
    mask[2, 6:11] = 1  # 200 + 300 m2 in two chunks
    mask[6, 7:9] = 1  # 100 + 100 m2 in two chunks
    found, _ = run_footprints(store, mask[None, None], grid=make_grid(mask.shape, 4), prompts=make_prompts(400.0))
    assert found["pixels"].tolist() == [5]


def test_no_object_gives_a_valid_empty_file(store: Store) -> None:
    found, summary = run_footprints(store, np.zeros((1, 1, 9, 9), np.uint8), grid=make_grid((9, 9), 4))
    assert len(found) == 0
    assert found.crs.to_epsg() == 32631
    assert summary.rows == {"thing 0": 0}
    check_geo_metadata(store.named(FOOTPRINTS))


def test_missing_chunks_do_not_stop_the_others(store: Store) -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[1:11, 1:3] = 1
    grid = make_grid(mask.shape, 4)
    run_footprints(store, mask[None, None], grid=grid)
    kept = [chunk for chunk in grid.chunks(0) if (chunk.iy, chunk.ix) != (1, 0)]
    prompts, steps = make_prompts(0.0), make_steps()
    merge_parts(store, chunks=kept, grid=grid, prompts=prompts, steps=steps, items=make_items(3))
    assert sorted(geopandas.read_parquet(store.named(FOOTPRINTS))["pixels"]) == [6, 6]


def test_a_lost_or_damaged_part_stops_the_merge_and_keeps_the_old_file(store: Store) -> None:
    mask = (np.random.default_rng(4).random((12, 12)) < 0.5).astype(np.uint8)
    grid = make_grid(mask.shape, 4)
    run_footprints(store, mask[None, None], grid=grid)
    before = store.get(FOOTPRINTS)
    path = part_path(grid.chunk(0, 1, 2))
    data = store.get(path)
    arguments = {"grid": grid, "prompts": make_prompts(0.0), "steps": make_steps(), "items": make_items(3)}
    for damaged in (b"", data[:-9], data[: len(data) // 2] + bytes(len(data) - len(data) // 2), b"PAR1" * 20):
        store.put(path, damaged)
        with pytest.raises(IntegrityError) as caught:
            merge_parts(store, chunks=list(grid.chunks(0)), **arguments)
        assert caught.value.code == "shard-mismatch"
        assert path in str(caught.value)
    store.delete(path)
    with pytest.raises(IntegrityError) as caught:
        merge_parts(store, chunks=list(grid.chunks(0)), **arguments)
    assert caught.value.code == "shard-missing"
    assert store.get(FOOTPRINTS) == before


def test_a_disk_that_fills_up_leaves_the_old_file(store: Store) -> None:
    mask = (np.random.default_rng(4).random((12, 12)) < 0.5).astype(np.uint8)
    grid = make_grid(mask.shape, 4)
    run_footprints(store, mask[None, None], grid=grid)
    before = store.get(FOOTPRINTS)

    class Full(Disk):
        def _write(self, file, data) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError) as caught:
        merge_parts(
            Store(Full(place_of(store.where))),
            chunks=grid.chunks(0),
            grid=grid,
            prompts=make_prompts(0.0),
            steps=make_steps(),
            items=make_items(3),
        )
    assert caught.value.code == "disk-full"
    assert store.get(FOOTPRINTS) == before


def check_geo_metadata(path: Path) -> dict:
    """What the GeoParquet 1.1 specification requires of the key `geo`; its content."""
    geo = json.loads(pq.read_metadata(path).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column["encoding"] == "WKB"
    assert set(column["geometry_types"]) <= {"Polygon"}
    assert CRS.from_json_dict(column["crs"]).to_epsg() == 32631
    assert column["orientation"] == "counterclockwise"
    assert column["edges"] == "planar"
    schema = pq.read_schema(path)
    for side, (group, field) in column["covering"]["bbox"].items():
        assert side == field
        assert schema.field(group).type.field(field).type == "double"
    assert schema.field(geo["primary_column"]).type == "binary"
    return column


def test_the_file_is_geoparquet_1_1(store: Store) -> None:
    mask = (np.random.default_rng(4).random((40, 40)) < 0.5).astype(np.uint8)
    found, _ = run_footprints(store, mask[None, None], grid=make_grid(mask.shape, 16))
    column = check_geo_metadata(store.named(FOOTPRINTS))
    np.testing.assert_array_equal(column["bbox"], found.total_bounds)
    table = pq.read_table(store.named(FOOTPRINTS))
    assert table.schema.names == FOOTPRINT_SCHEMA.names
    bbox = np.array([list(row.values()) for row in table["bbox"].to_pylist()])
    np.testing.assert_array_equal(bbox, shapely.bounds(found.geometry.values))


def test_a_bbox_reads_only_what_it_touches(store: Store) -> None:
    mask = (np.random.default_rng(4).random((40, 40)) < 0.3).astype(np.uint8)
    grid = make_grid(mask.shape, 16)
    found, _ = run_footprints(store, mask[None, None], grid=grid)
    left, _, _, top = grid.bounds
    box = (left + 51, top - 149, left + 149, top - 51)
    read = geopandas.read_parquet(store.named(FOOTPRINTS), bbox=box)
    assert sorted(read["id"]) == sorted(found["id"][found.intersects(shapely.box(*box))])
    assert 0 < len(read) < len(found)


def test_neighbours_in_the_file_are_neighbours_on_the_map(store: Store) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[::2, ::2] = 1
    found, _ = run_footprints(store, mask[None, None], grid=make_grid(mask.shape, 64))
    points = shapely.get_coordinates(found.geometry.centroid.values)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert np.median(steps) == 20.0
    assert steps.mean() < 40


def test_row_groups_hold_at_most_50000_rows(store: Store) -> None:
    mask = np.zeros((500, 500), np.uint8)
    mask[::2, ::2] = 1
    run_footprints(store, mask[None, None], grid=make_grid(mask.shape, 250))
    metadata = pq.read_metadata(store.named(FOOTPRINTS))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [50_000, 12_500]


def test_parts_are_deterministic_and_survive_a_round_trip() -> None:
    mask = (np.random.default_rng(4).random((1, 20, 20)) < 0.6).astype(np.uint8)
    grid = make_grid((40, 40), 20)
    arguments = {
        "chunk": grid.chunk(0, 1, 0),
        "grid": grid,
        "prompts": make_prompts(0.0),
        "items": (4, 1),
        "contributed": np.ones((2, 20, 20), bool),
        "inside_ring": np.ones((22, 22), bool),
    }
    first, second = (trace_chunk(mask, mask * 9, **arguments) for _ in range(2))
    assert part_bytes(first) == part_bytes(second)
    assert read_part(part_bytes(first)).equals(first.combine_chunks())
    assert first.schema.equals(PART_SCHEMA)
    assert first["items"].to_pylist() == [[1, 4]] * first.num_rows


@pytest.mark.parametrize("name", ["masks", "scores", "contributed", "inside_ring"])
def test_trace_refuses_arrays_of_another_shape(name: str) -> None:
    grid = make_grid((8, 8), 4)
    arrays = {
        "masks": np.zeros((1, 4, 4), np.uint8),
        "scores": np.zeros((1, 4, 4), np.uint8),
        "contributed": np.zeros((1, 4, 4), bool),
        "inside_ring": np.ones((6, 6), bool),
    }
    arrays[name] = arrays[name][..., :-1]
    masks, scores = arrays.pop("masks"), arrays.pop("scores")
    with pytest.raises(ValueError, match=name):
        trace_chunk(masks, scores, chunk=grid.chunk(0, 0, 0), grid=grid, prompts=make_prompts(0.0), items=(0,), **arrays)


def test_times_are_utc(store: Store) -> None:
    found, _ = run_footprints(store, np.ones((1, 1, 4, 4), np.uint8), grid=make_grid((4, 4), 4))
    assert found["time"][0].to_pydatetime() == datetime(2020, 1, 1, tzinfo=UTC)
    assert str(found["start_datetime"].dt.tz) == "UTC"
