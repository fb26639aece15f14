"""Scenes of chunks: candidates, composites, surveys, and their independence from the chunking."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasterio.warp import transform_bounds
from scenes import grid_over, item_of, pipeline, read_grid, smooth, source_of, step_of, table_of, write_raster

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Grid, Span
from eo_batch.core.records import BandAsset, CloudMask, Item, ItemTable
from eo_batch.sources import stack
from eo_batch.sources.stack import SceneSource, item_bounds_px


def holed(seed: int, *, share: float = 0.3) -> np.ndarray:
    values = smooth(300, 280, seed=seed)
    blotches = np.kron(np.random.default_rng(seed).random((30, 28)) < share, np.ones((10, 10), bool))
    values[blotches] = 0
    return values


def stack_of_items(folder: Path, count: int = 4) -> ItemTable:
    """Items in two zones, one with a cloud mask, shifted against each other."""
    items = []
    for n in range(count):
        crs, left = ("EPSG:32633", 600_000 + 300 * n) if n % 2 == 0 else ("EPSG:32634", 129_000)
        top = 5_000_000 if n % 2 == 0 else 5_009_700
        bands = {}
        for k, band in enumerate(("red", "nir")):
            path = write_raster(folder / f"{n}{band}.tif", holed(10 * n + k), crs=crs, left=left, top=top, nodata=0)
            bands[band] = BandAsset(band, str(path), scale=0.0001, offset=-0.1)
        mask = None
        if n == 0:
            classes = np.random.default_rng(9).integers(1, 10, (150, 140)).astype("uint8")
            path = write_raster(folder / "mask.tif", classes, crs=crs, left=left, top=top, resolution=20)
            mask = CloudMask(BandAsset("scl", str(path)), "classes", (3, 8, 9))
        items.append(item_of(n, bands, mask=mask))
    return table_of(*items)


@pytest.mark.parametrize("composite", ["first", "best", "median"])
@pytest.mark.parametrize("chunk", [71, 128])
def test_composites_do_not_depend_on_the_chunking(tmp_path: Path, composite: str, chunk: int) -> None:
    table = stack_of_items(tmp_path)
    grid = grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0)
    source = source_of(tmp_path, table, grid, pipeline(["red", "nir"], composite=composite))
    whole, in_parts = read_grid(source), read_grid(source, chunk=chunk)
    assert len(np.unique(whole[2])) > 3
    for left, right in zip(whole, in_parts, strict=True):
        assert left.tobytes() == right.tobytes()


def test_medians_do_not_depend_on_the_memory_they_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = stack_of_items(tmp_path, 3)
    grid = grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0)
    source = source_of(tmp_path, table, grid, pipeline(["red", "nir"], composite="median"))
    wide = read_grid(source)
    monkeypatch.setattr(stack, "MEDIAN_BYTES", 1)
    narrow = read_grid(source)
    assert wide[0].tobytes() == narrow[0].tobytes()
    assert np.array_equal(wide[2], narrow[2])


@pytest.mark.parametrize("composite", ["first", "median"])
@pytest.mark.parametrize(("box", "fill"), [(16, 1.1), (50, 0.6), (10**6, 0.0)])
def test_the_boxes_in_which_bands_are_read_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composite: str, box: int, fill: float
) -> None:
    table = stack_of_items(tmp_path)
    grid = grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0)
    source = source_of(tmp_path, table, grid, pipeline(["red", "nir"], composite=composite))
    usual = read_grid(source)
    monkeypatch.setattr(stack, "BOX_PX", box)
    monkeypatch.setattr(stack, "BOX_FILL", fill)
    for left, right in zip(usual, read_grid(source), strict=True):
        assert left.tobytes() == right.tobytes()


def test_bands_are_read_only_where_the_cloud_mask_leaves_missing_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "BOX_PX", 64)
    clear, cloudy, corner = np.ones((256, 256), "uint8"), np.full((256, 256), 9, "uint8"), np.ones((256, 256), "uint8")
    corner[:30, :40] = 9
    items = []
    for n, classes in enumerate((cloudy, corner, clear)):
        band = write_raster(tmp_path / f"{n}.tif", smooth(256, 256, seed=n))
        mask = BandAsset("scl", str(write_raster(tmp_path / f"{n}scl.tif", classes)))
        items.append(item_of(n, {"red": BandAsset("red", str(band))}, mask=CloudMask(mask, "classes", (9,))))
    table = table_of(*items)
    grid = Grid("EPSG:32633", 10.0, Span(-500_000, -499_744), Span(60_000, 60_256), 256, 1, 1)
    scene = source_of(tmp_path, table, grid, pipeline(["red"])).read_scene(grid.chunk(0, 0, 0), step_of(table))
    assert scene.valid.all()
    assert scene.items == (1, 2)
    assert scene.bytes_read <= 3 * 256 * 256 + 2 * 256 * 256 + 2 * 64 * 128  # all masks, one band, the corner of another


@pytest.mark.parametrize("origin", [(0, 0), (-37, 12), (1000, -999)])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 1.0])
def test_boxes_hold_all_wanted_pixels_once(monkeypatch: pytest.MonkeyPatch, origin: tuple[int, int], share: float) -> None:
    monkeypatch.setattr(stack, "BOX_PX", 16)
    wanted = np.random.default_rng(3).random((90, 70)) < share
    rows, cols = Span(origin[0], origin[0] + 90), Span(origin[1], origin[1] + 70)
    for merged in (False, True):
        times = np.zeros(wanted.shape, int)
        boxes = stack.boxes_of(wanted, rows, cols, merged=merged)
        for y, x in boxes:
            times[y.within(rows), x.within(cols)] += 1
        assert times.max(initial=0) <= 1
        assert times[wanted].all()
        assert times.sum() == sum(len(y) * len(x) for y, x in boxes)
        assert len(boxes) <= 1 or not merged


def test_all_bands_of_a_pixel_come_from_one_item(tmp_path: Path) -> None:
    table = stack_of_items(tmp_path)
    grid = grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0)
    spec = pipeline(["red", "nir"])
    pixels, valid, givers = read_grid(source_of(tmp_path, table, grid, spec))
    alone = [read_grid(source_of(tmp_path, table_of(item), grid, spec)) for item in table.items]
    taken = np.zeros(grid.shape, bool)
    for number, (own, own_valid, _) in enumerate(alone):
        mine = own_valid & ~taken
        assert np.array_equal(givers == 1 << number, mine)
        assert np.array_equal(pixels[:, mine], own[:, mine])
        taken |= own_valid
    assert np.array_equal(valid, taken)


def test_a_scene_names_only_items_that_gave_to_its_interior(tmp_path: Path) -> None:
    left = write_raster(tmp_path / "l.tif", smooth(200, 100))
    right = write_raster(tmp_path / "r.tif", smooth(200, 100), left=601_000)
    table = table_of(*(item_of(n, {"red": BandAsset("red", str(path))}) for n, path in enumerate((left, right))))
    grid = grid_over(left, "EPSG:32633", 10.0, chunk=100, margin=0)
    source = source_of(tmp_path, table, grid, pipeline(["red"]))
    chunk = grid.chunk(0, 0, 0)
    scene = source.read_scene(chunk, step_of(table))
    assert scene.valid[chunk.rows.within(chunk.padded_rows), chunk.padded_cols.stop - 1 - chunk.padded_cols.start].all()
    assert scene.items == (0,)
    assert scene.contributed.shape == (1, *chunk.shape)
    assert scene.bytes_read > 0


def test_a_grid_whose_crs_has_no_epsg_number_gives_the_same_pixels(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(200, 200), nodata=0)
    table = table_of(item_of(0, {"red": BandAsset("red", str(path))}))
    proj = "+proj=utm +zone=34 +datum=WGS84 +units=m +no_defs +type=crs"
    named = read_grid(source_of(tmp_path, table, grid_over(path, "EPSG:32634", 10.0), pipeline(["red"])))
    nameless = read_grid(source_of(tmp_path, table, grid_over(path, proj, 10.0), pipeline(["red"])))
    assert stack._epsg(proj) is None
    assert named[0].tobytes() == nameless[0].tobytes()


def test_chunks_of_a_geographic_grid_of_small_pixels_keep_their_shape(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(180, 170), crs="EPSG:4326", left=-117.123, top=33.7, resolution=0.000123)
    table = table_of(item_of(0, {"red": BandAsset("red", str(path))}))
    source = source_of(tmp_path, table, grid_over(path, "EPSG:4326", 0.000123), pipeline(["red"]))
    whole, in_parts = read_grid(source), read_grid(source, chunk=37)
    assert whole[0].tobytes() == in_parts[0].tobytes()


def test_a_pickled_source_reads_the_same(tmp_path: Path) -> None:
    table = stack_of_items(tmp_path, 2)
    source = source_of(tmp_path, table, grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0), pipeline(["red", "nir"]))
    there = pickle.loads(pickle.dumps(source))
    assert isinstance(there, SceneSource)
    assert read_grid(there)[0].tobytes() == read_grid(source)[0].tobytes()


def test_a_missing_file_fails_its_chunks_or_is_skipped_on_request(tmp_path: Path) -> None:
    table = stack_of_items(tmp_path, 3)
    grid = grid_over(tmp_path / "0red.tif", "EPSG:32633", 10.0)
    (tmp_path / "1nir.tif").unlink()
    with pytest.raises(AssetError, match='asset-not-found: band "nir" of item test/item1'):
        read_grid(source_of(tmp_path, table, grid, pipeline(["red", "nir"])))
    found = read_grid(source_of(tmp_path, table, grid, pipeline(["red", "nir"], missing="skip")))
    others = source_of(tmp_path, table, grid, pipeline(["red", "nir"]))
    step = replace(step_of(table), items=(0, 2))
    want = others.read_scene(grid.chunk(0, 0, 0), step)
    inner = (grid.rows.within(grid.padded_rows), grid.cols.within(grid.padded_cols))
    assert np.array_equal(found[1], want.valid[inner])


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32634", "EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_candidates_hold_every_item_with_pixels_in_the_chunk(tmp_path: Path, crs: str) -> None:
    paths = [
        write_raster(tmp_path / f"{n}.tif", smooth(50, 50, seed=n), left=600_000 + 400 * (n % 5), top=5_000_000 + 400 * (n // 5))
        for n in range(15)
    ]
    table = table_of(*(item_of(n, {"red": BandAsset("red", str(path))}) for n, path in enumerate(paths)))
    resolution = 0.0001 if crs == "EPSG:4326" else 10.0
    grid = grid_over(paths[7], crs, resolution, chunk=30, window=16)
    source = source_of(tmp_path, table, grid, pipeline(["red"], composite="median"))
    step = step_of(table)
    for chunk in grid.chunks(0):
        near = set(source.candidates(chunk, step))
        for number in range(15):
            scene = source.read_scene(chunk, replace(step, items=(number,)))
            assert not scene.valid.any() or number in near


def test_candidates_far_away_are_left_out_and_keep_the_order_of_the_step(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth(50, 50))
    items = [item_of(n, {"red": BandAsset("red", str(path))}) for n in range(4)]
    items[1] = replace(items[1], bbox=(80.0, 10.0, 81.0, 11.0))
    table = table_of(*items)
    grid = grid_over(path, "EPSG:32633", 10.0)
    source = source_of(tmp_path, table, grid, pipeline(["red"]))
    assert source.candidates(grid.chunk(0, 0, 0), replace(step_of(table), items=(3, 1, 0))) == (3, 0)


def test_boxes_of_items_across_the_antimeridian_and_at_the_pole_are_generous() -> None:
    near = Item("c", "i", *[_now()] * 3, (179.0, -17.0, -179.0, -16.0), {}, {})
    polar = replace(near, id="p", bbox=(-180.0, 70.0, 180.0, 90.0))
    far = replace(near, id="f", bbox=(20.0, -17.0, 21.0, -16.0))
    table = table_of(near, polar, far)
    for crs, at in (
        ("EPSG:32701", (200_000, 8_200_000)),
        ("EPSG:32760", (800_000, 8_200_000)),
        ("EPSG:3832", (3_340_000, -1_850_000)),
    ):
        left, bottom, right, top = at[0], at[1], at[0] + 1000, at[1] + 1000
        boxes = item_bounds_px(table, Grid(crs, 10.0, Span(-top // 10, -bottom // 10), Span(left // 10, right // 10), 64, 64, 48))
        assert boxes[0, 0] <= left / 10
        assert boxes[0, 2] >= right / 10
        assert boxes[0, 1] <= -top / 10
        assert boxes[0, 3] >= -bottom / 10
        assert np.isinf(boxes[1]).all()
    west, south, east, north = transform_bounds("EPSG:4326", "EPSG:32634", *far.bbox)
    box = item_bounds_px(table, Grid("EPSG:32634", 10.0, Span(0, 1), Span(0, 1), 64, 64, 48))[2] * 10
    assert west - 20_000 < box[0] <= west
    assert east <= box[2] < east + 20_000
    assert -north - 20_000 < box[1] <= -north
    assert -south <= box[3] < -south + 20_000


def test_a_survey_measures_the_share_of_valid_pixels(tmp_path: Path) -> None:
    full = write_raster(tmp_path / "full.tif", smooth(300, 300), nodata=0)
    values = smooth(300, 300)
    values[:, :150] = 0
    half = write_raster(tmp_path / "half.tif", values, nodata=0)
    classes = np.ones((300, 300), np.uint8)
    classes[:75] = 9
    clouds = write_raster(tmp_path / "clouds.tif", classes)
    bands = [{"red": BandAsset("red", str(path))} for path in (half, full, full)]
    mask = CloudMask(BandAsset("scl", str(clouds)), "classes", (9,))
    table = table_of(item_of(0, bands[0]), item_of(1, bands[1]), item_of(2, bands[2], mask=mask))
    grid = grid_over(full, "EPSG:32633", 10.0, margin=0)
    source = source_of(tmp_path, table, grid, pipeline(["red"], composite="best"))
    ranks = [item.rank for item in source.survey([step_of(table)]).items]
    assert ranks == pytest.approx([0.5, 1.0, 0.75], abs=0.03)


def test_a_survey_of_a_large_grid_is_coarse(tmp_path: Path) -> None:
    values = smooth(2000, 1500)
    values[1000:] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0, overviews=(2, 4, 8))
    table = table_of(item_of(0, {"red": BandAsset("red", str(path))}))
    source = source_of(tmp_path, table, grid_over(path, "EPSG:32633", 10.0, margin=0), pipeline(["red"], composite="best"))
    assert max(stack._coarse(source.grid).shape) <= stack.SURVEY_PX
    assert source.survey([step_of(table)]).items[0].rank == pytest.approx(0.5, abs=0.02)


def _now():
    from scenes import START

    return START
