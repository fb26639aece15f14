"""The cube: plain xarray opens it with the right place, names and values; shards are whole and deterministic."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray
import zarr
from outputs.small_run import make_grid, make_prompts, make_steps
from pyproj import CRS

from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.outputs.cube import create_cube, decode_shard, encode_shard, inner_px, open_cube, shard_path
from eo_batch.outputs.store import Store

PROMPTS = PromptSet((Prompt("water", 0.4), Prompt("straße é", 0.6)))


def filled(store: Store, grid: Grid, *, scores: bool = True, steps: int = 2) -> np.ndarray:
    """A cube with random masks in every chunk; the masks, uint8 (prompt, time, y, x)."""
    values = np.random.default_rng(5).choice(np.array([0, 1, 254], np.uint8), (len(PROMPTS), steps, *grid.shape))
    create_cube(store, grid=grid, prompts=PROMPTS, steps=make_steps(steps), scores=scores, attributes={"title": "demo"})
    for t in range(steps):
        for chunk in grid.chunks(t):
            for p in range(len(PROMPTS)):
                part = values[p, t, chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)]
                store.put(shard_path("mask", p, chunk), encode_shard(part, grid))
    return values


def test_plain_open_zarr_gives_the_masks_back_without_a_warning(store: Store) -> None:
    values = filled(store, make_grid((200, 150), 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cube = xarray.open_zarr(Path(store.where) / "masks.zarr")
        read = cube["mask"].to_numpy()
    assert cube["mask"].dims == ("prompt", "time", "y", "x")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


def test_plain_open_zarr_knows_crs_and_transform(store: Store) -> None:
    grid = make_grid((200, 150), 64)
    filled(store, grid)
    for cube in (
        xarray.open_zarr(Path(store.where) / "masks.zarr"),
        open_cube(store),
        open_cube(Path(store.where) / "masks.zarr"),
    ):
        assert cube.rio.crs.to_epsg() == 32631
        assert cube["mask"].rio.crs.to_epsg() == 32631
        assert cube.rio.transform().almost_equals(grid.transform)
        assert set(cube.data_vars) == {"mask", "score"}


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3031", CRS.from_epsg(3035).to_wkt(), "+proj=laea +lat_0=10 +lon_0=20"])
def test_any_crs_survives(store: Store, crs: str) -> None:
    grid = make_grid((70, 70), 64, row=-40, col=30, crs=crs, resolution=0.5)
    create_cube(store, grid=grid, prompts=PROMPTS, steps=make_steps(), scores=False, attributes={})
    assert CRS.from_user_input(open_cube(store).rio.crs) == CRS.from_user_input(crs)


def test_coordinates_are_pixel_centres(store: Store) -> None:
    grid = make_grid((200, 150), 64)
    filled(store, grid)
    cube = open_cube(store)
    left, bottom, right, top = grid.bounds
    np.testing.assert_allclose(cube.x, np.linspace(left + 5, right - 5, 150))
    np.testing.assert_allclose(cube.y, np.linspace(top - 5, bottom + 5, 200))


def test_prompts_and_times_are_selected_by_name(store: Store) -> None:
    values = filled(store, make_grid((70, 70), 64))
    cube = open_cube(store)
    selected = cube["mask"].sel(prompt="straße é", time="2020-02-01")
    np.testing.assert_array_equal(selected.to_numpy().squeeze(), values[1, 1])
    assert cube["step"].values.tolist() == ["2020-01", "2020-02"]
    assert cube["prompt_id"].values.tolist() == list(PROMPTS.ids)
    assert cube["threshold"].values.tolist() == [0.4, 0.6]
    np.testing.assert_array_equal(cube["time_bounds"][0], np.array(["2020-01-01", "2020-02-01"], "datetime64[ns]"))


def test_pixels_without_a_shard_are_not_computed(store: Store) -> None:
    grid = make_grid((100, 100), 64)
    create_cube(store, grid=grid, prompts=PROMPTS, steps=make_steps(), scores=True, attributes={})
    assert (open_cube(store)["mask"].to_numpy() == 255).all()
    assert (open_cube(store)["score"].to_numpy() == 255).all()


def test_geozarr_attributes_pass_the_validator(store: Store) -> None:
    zarr_cm = pytest.importorskip("zarr_cm")
    grid = make_grid((100, 90), 64)
    create_cube(store, grid=grid, prompts=PROMPTS, steps=make_steps(), scores=False, attributes={})
    attributes = dict(zarr.open_group(Path(store.where) / "masks.zarr", mode="r").attrs)
    zarr_cm.validate_all(attributes)
    assert set(zarr_cm.detect_revisions(attributes)) == {"proj", "spatial"}
    assert attributes["spatial:transform"] == list(grid.transform)[:6]
    assert attributes["proj:code"] == "EPSG:32631"


def test_flag_values_and_meanings_agree(store: Store) -> None:
    filled(store, make_grid((70, 70), 64))
    attributes = open_cube(store)["mask"].attrs
    assert len(attributes["flag_values"]) == len(attributes["flag_meanings"].split())


def test_a_shard_is_one_chunk_of_one_prompt_and_time(store: Store) -> None:
    grid = make_grid((200, 150), 64)
    create_cube(store, grid=grid, prompts=PROMPTS, steps=make_steps(2), scores=False, attributes={})
    chunk = grid.chunk(1, 2, 1)
    store.put(shard_path("mask", 1, chunk), encode_shard(np.full(chunk.shape, 1, np.uint8), grid))
    read = open_cube(store)["mask"].to_numpy()
    expected = np.full_like(read, 255)
    expected[1, 1, chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)] = 1
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_a_shard_of_one_value_is_still_written(value: int) -> None:
    grid = make_grid((64, 64), 64)
    data = encode_shard(np.full((64, 64), value, np.uint8), grid)
    assert len(data) > 0
    assert (decode_shard(data, grid) == value).all()


@pytest.mark.parametrize("shape", [(128, 128), (1, 128), (128, 1), (50, 77)])
def test_decode_gives_back_what_was_encoded_and_padding(shape: tuple[int, int]) -> None:
    grid = make_grid((300, 300), 128)
    values = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    read = decode_shard(encode_shard(values, grid), grid)
    np.testing.assert_array_equal(read[: shape[0], : shape[1]], values)
    assert (read[shape[0] :] == 255).all()
    assert (read[:, shape[1] :] == 255).all()


def test_the_same_values_give_the_same_bytes() -> None:
    grid = make_grid((2048, 2048), 1024)
    values = (np.random.default_rng(1).random((1024, 1024)) < 0.1).astype(np.uint8)
    strided = np.asfortranarray(values)
    assert encode_shard(values, grid) == encode_shard(values.copy(), grid) == encode_shard(strided, grid)


@pytest.mark.parametrize("values", [np.zeros((65, 64), np.uint8), np.zeros((64, 64), bool), np.zeros((0, 9), np.uint8)])
def test_encode_refuses_what_is_no_shard(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a shard takes"):
        encode_shard(values, make_grid((64, 64), 64))


def test_every_damaged_shard_is_refused() -> None:
    grid = make_grid((128, 128), 128)
    values = (np.random.default_rng(1).random((128, 128)) < 0.5).astype(np.uint8)
    data = encode_shard(values, grid)
    rng = np.random.default_rng(2)
    flipped = []
    for at in rng.integers(0, len(data), 40):
        copy = bytearray(data)
        copy[at] ^= 1 << int(rng.integers(8))
        flipped.append(bytes(copy))
    for damaged in (b"", bytes(len(data)), data[:-1], data[: len(data) // 2], data + b"x", *flipped):
        with pytest.raises(IntegrityError) as caught:
            decode_shard(damaged, grid)
        assert caught.value.code == "shard-mismatch"


@pytest.mark.parametrize(("chunk_px", "inner"), [(2048, 512), (64, 64), (1000, 500), (1009, 1009), (8192, 512), (514, 257)])
def test_inner_chunks_divide_the_shard(chunk_px: int, inner: int) -> None:
    assert inner_px(make_grid((10, 10), chunk_px)) == inner


def test_times_and_prompts_can_be_appended_without_touching_shards(store: Store, tmp_path: Path) -> None:
    grid = make_grid((100, 100), 64)
    values = filled(store, grid, scores=False)
    before = {path: store.get(path) for path in store.list("masks.zarr") if "/c/" in path and "/mask/" in path}
    more = PromptSet((*PROMPTS.prompts, Prompt("road")))
    create_cube(store, grid=grid, prompts=more, steps=make_steps(3), scores=False, attributes={})
    cube = open_cube(store)
    np.testing.assert_array_equal(cube["mask"][:2, :2].to_numpy(), values)
    assert (cube["mask"][2].to_numpy() == 255).all()
    assert cube.sel(prompt="road").sizes["time"] == 3
    assert {path: store.get(path) for path in before} == before


def test_the_root_document_is_written_last(store: Store) -> None:
    written: list[str] = []
    real = store.put
    store.put = lambda path, data: (written.append(path), real(path, data))[1]  # type: ignore[method-assign]
    create_cube(store, grid=make_grid((70, 70), 64), prompts=make_prompts(0), steps=make_steps(), scores=True, attributes={})
    assert written[-1] == "masks.zarr/zarr.json"
    assert json.loads(store.get("masks.zarr/zarr.json"))["node_type"] == "group"
