"""Layers of whole runs: boxes, counts, shares, classes and captions, against the cube itself, for any chunk size."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest
import shapely
from numpy.typing import NDArray
from rundigest import mask_array
from scipy import ndimage
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ConfigError, IntegrityError, StoreError
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store
from eo_batch.products.tasks import multi_class, multi_label
from eo_batch.run.driver import start_run
from eo_batch.run.layers.products import Cells, LayerRules, ProductsSummary, ZoneFile, make_products
from eo_batch.run.manifest import read_inputs
from eo_batch.run.request import load_pipeline
from eo_batch.run.verify import verify_run

SIZE = 260


def start(folder: Path, name: str, **settings: object) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(toy_pipeline(size=SIZE, **settings))  # type: ignore[arg-type]
    assert start_run(load_pipeline(path), folder / name, executor="serial").exit_status == 0
    return folder / name


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=2, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def run(toy: Path) -> Path:
    """A finished run of chunks of 96 pixels, two time steps and two prompts."""
    return start(toy, "run", chunk_px=96)


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """The same in one chunk."""
    return start(toy, "whole", chunk_px=512)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("products")))


def boxes_of(run: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(run / "products" / "boxes.parquet")


def zones_of(run: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(run / "products" / "zones.parquet")


def zone_file(run: Path, folder: Path) -> Path:
    """Overlapping polygons over and beside the region, one with a hole, one far away, in longitude and latitude."""
    left, bottom, right, top = read_inputs(Store(run)).grid.bounds
    middle = shapely.Point((left + right) / 2, (bottom + top) / 2)
    disc = middle.buffer(700)
    shapes = {
        "disc": disc,
        "ring": disc.difference(middle.buffer(300)),
        "west": shapely.box(left - 5000, bottom - 5000, (left + right) / 2, top + 5000),
        "two": shapely.MultiPolygon([middle.buffer(100), shapely.box(left, bottom, left + 333, bottom + 333)]),
        "crumb": shapely.box(left + 1000.1, top - 1000.3, left + 1000.4, top - 1000.2),
        "far": shapely.box(left + 50_000, bottom, left + 51_000, bottom + 1000),
    }
    rows = geopandas.GeoDataFrame({"name": list(shapes)}, geometry=list(shapes.values()), crs="EPSG:32632")
    rows.to_crs("EPSG:4326").to_file(folder / "zones.gpkg")
    return folder / "zones.gpkg"


def inside(run: Path, shape: shapely.Geometry) -> NDArray[np.bool_]:
    """Pixels of the grid whose centres lie in `shape`, by shapely."""
    grid = read_inputs(Store(run)).grid
    rows, cols = np.mgrid[grid.rows.start : grid.rows.stop, grid.cols.start : grid.cols.stop]
    x, y = (cols + 0.5) * grid.resolution, -(rows + 0.5) * grid.resolution
    found: NDArray[np.bool_] = shapely.contains_xy(shape, x.ravel(), y.ravel()).reshape(rows.shape)
    return found


def test_boxes_are_those_of_the_8_connected_objects_of_the_whole_mask(run: Path) -> None:
    summary = make_products(run)
    boxes, masks, scores = boxes_of(run), mask_array(run), mask_array(run, "score")
    grid, steps = read_inputs(Store(run)).grid, read_inputs(Store(run)).steps
    area = PixelAreas(grid)
    units = area.of(grid.rows, grid.cols)
    expected = []
    for (p, prompt), step in ((p, s) for p in enumerate(("bright", "dark")) for s in steps):
        labels, _ = ndimage.label(masks[p, step.index] == 1, structure=np.ones((3, 3)))
        for number, (y, x) in enumerate(ndimage.find_objects(labels), 1):
            pixels = labels == number
            bounds = grid.bounds_of(
                type(grid.rows)(grid.rows.start + y.start, grid.rows.start + y.stop),
                type(grid.cols)(grid.cols.start + x.start, grid.cols.start + x.stop),
            )
            mean = scores[p, step.index][pixels].astype(float).mean() / 250
            figures = (round(mean, 9), int(pixels.sum()), round(float(units[pixels].sum() * area.unit_m2), 6))
            expected.append((prompt, step.label, *bounds, *figures))
    got = zip(
        boxes["prompt"],
        boxes["step"],
        *boxes.geometry.bounds.T.values,
        boxes["score"],
        boxes["pixels"],
        boxes["area_m2"],
        strict=True,
    )
    assert sorted((*row[:6], round(row[6], 9), row[7], round(row[8], 6)) for row in got) == sorted(expected)
    assert sum(summary.boxes.values()) == len(expected) > 30
    assert (boxes.geometry.area == boxes.geometry.envelope.area).all()
    assert boxes["id"].is_unique


def test_boxes_say_their_crs_and_can_be_read_by_place(run: Path) -> None:
    make_products(run)
    boxes = boxes_of(run)
    assert boxes.crs.to_epsg() == 32632
    geo = json.loads(pq.read_metadata(run / "products" / "boxes.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["columns"]["geometry"]["geometry_types"] == ["Polygon"]
    assert np.allclose(geo["columns"]["geometry"]["bbox"], boxes.total_bounds)
    x, y = boxes.geometry.iloc[0].centroid.coords[0]
    near = geopandas.read_parquet(run / "products" / "boxes.parquet", bbox=(x - 5, y - 5, x + 5, y + 5))
    assert boxes["id"].iloc[0] in set(near["id"])
    assert len(near) < len(boxes)
    assert shapely.is_ccw(shapely.get_exterior_ring(boxes.geometry.values)).all()


def test_each_object_has_the_box_of_its_first_footprint(run: Path) -> None:
    make_products(run)
    boxes, footprints = boxes_of(run), geopandas.read_parquet(run / "footprints.parquet")
    assert set(boxes["id"]) <= set(footprints["id"])
    assert boxes["footprints"].sum() == len(footprints)
    assert boxes["pixels"].sum() == footprints["pixels"].sum()
    make_products(run, rules=LayerRules(connectivity=4))
    single = boxes_of(run)
    assert single["id"].tolist() == footprints["id"].tolist()
    assert np.array_equal(single.geometry.bounds.values, footprints.geometry.bounds.values)


def test_oriented_boxes_hold_their_objects_tightly(run: Path) -> None:
    make_products(run, rules=LayerRules(oriented=True, connectivity=4))
    boxes, footprints = boxes_of(run), geopandas.read_parquet(run / "footprints.parquet")
    least = footprints.geometry.minimum_rotated_rectangle()
    assert boxes["oriented"].all()
    assert np.allclose(boxes.geometry.area, least.area, rtol=1e-9)
    assert boxes.geometry.buffer(1e-3).covers(footprints.geometry).all()
    assert (boxes.geometry.area <= boxes.geometry.envelope.area + 1e-6).all()
    assert np.allclose(boxes["length"] * boxes["width"], boxes.geometry.area)
    along = np.stack([np.cos(np.radians(boxes["angle"])), np.sin(np.radians(boxes["angle"]))], axis=1)
    corners = shapely.get_coordinates(boxes.geometry.values).reshape(-1, 5, 2)
    sides = np.diff(corners, axis=1)
    lengths = np.hypot(sides[..., 0], sides[..., 1])
    longer = sides[np.arange(len(sides)), lengths.argmax(axis=1)] / lengths.max(axis=1)[:, None]
    square = np.isclose(boxes["length"], boxes["width"])
    assert np.allclose(np.abs((along * longer).sum(axis=1))[~square], 1)
    assert ((boxes["angle"] >= 0) & (boxes["angle"] < 180)).all()


def test_upstream_rules_leave_out_boxes_in_boxes(run: Path) -> None:
    kept_by_region = make_products(run).boxes
    everything = boxes_of(run)
    kept_by_upstream = make_products(run, rules=LayerRules.upstream()).boxes
    fewer = boxes_of(run)
    assert all(kept_by_upstream[name] < kept_by_region[name] for name in kept_by_region)
    for (prompt, step), rows in everything.groupby(["prompt", "step"]):
        held = rows.geometry.apply(lambda box, rows=rows: int(rows.geometry.covers(box).sum()) > 1)
        rest = rows[~held.values].sort_values("score", ascending=False, kind="stable")
        kept: list = []
        for _, row in rest.iterrows():
            others = [row.geometry.intersection(k.geometry).area / row.geometry.union(k.geometry).area for k in kept]
            if not any(share > 0.5 for share in others):
                kept.append(row)
        assert sorted(row["id"] for row in kept) == sorted(fewer[(fewer["prompt"] == prompt) & (fewer["step"] == step)]["id"])


@pytest.mark.parametrize("kind", ["cells", "file"])
def test_figures_of_zones_are_those_of_their_pixels(run: Path, tmp_path: Path, kind: str) -> None:
    make_products(run, zones=Cells(453.0) if kind == "cells" else ZoneFile(zone_file(run, tmp_path), "name"))
    zones, masks, scores = zones_of(run), mask_array(run), mask_array(run, "score")
    inputs = read_inputs(Store(run))
    areas = PixelAreas(inputs.grid)
    units = areas.of(inputs.grid.rows, inputs.grid.cols)
    labels = [step.label for step in inputs.steps]
    checked = 0
    for _, row in zones.iterrows():
        p, t = ("bright", "dark").index(row["prompt"]), labels.index(row["step"])
        here = inside(run, row.geometry)
        seen, found = here & (masks[p, t] < 254), here & (masks[p, t] == 1)
        assert row["observed_pixels"] == seen.sum()
        assert row["observed_m2"] == pytest.approx(units[seen].sum() * areas.unit_m2, rel=1e-12)
        assert (row["covered_pixels"], row["covered_m2"]) == (found.sum(), units[found].sum() * areas.unit_m2)
        assert row["observed_share"] == pytest.approx(seen.sum() / max(row["pixels"], 1))
        if not seen.any():
            assert pandas.isna(
                [row[name] for name in ("covered_share", "score_mean", "score_max", "presence", "present", "class")]
            ).all()
            assert row["caption"] is None
            continue
        checked += 1
        values = scores[p, t][seen] / 250
        assert row["covered_share"] == pytest.approx(units[found].sum() / units[seen].sum())
        assert row["score_mean"] == pytest.approx(values.mean())
        assert row["score_max"] == values.max()
        shares = {name: (scores[index, t] / 250).astype(np.float64) for index, name in enumerate(("bright", "dark"))}
        told = multi_label(shares | {}, valid=seen)
        assert row["presence"] == pytest.approx(told.scores[row["prompt"]])
        assert row["present"] == (row["prompt"] in told.names)
        best = multi_class(shares, valid=seen)
        peaks = {name: share[seen].max() for name, share in shares.items()}
        if len(set(peaks.values())) > 1 or not best.names:
            assert (row["class"],) == (best.names or (None,))
        else:
            assert row["class"] == max(shares, key=lambda name, shares=shares, seen=seen: shares[name][seen].mean())
    assert checked > 10


def test_pixels_of_a_zone_count_beyond_the_map_too(run: Path, tmp_path: Path) -> None:
    make_products(run, zones=ZoneFile(zone_file(run, tmp_path), "name"))
    rows = zones_of(run).drop_duplicates("zone").set_index("zone")
    assert rows.loc["disc", "pixels"] == inside(run, rows.geometry["disc"]).sum()
    assert rows.loc["west", "pixels"] == pytest.approx(rows.geometry["west"].area / 100, rel=1e-4)
    assert rows.loc["west", "observed_share"] < 0.2
    assert rows.loc["crumb", ["pixels", "observed_share"]].tolist() == [0, 0]
    assert rows.loc["far", "pixels"] == pytest.approx(10_000, abs=40)
    assert rows.loc["far", ["observed_share", "count"]].tolist() == [0, 0]


def test_every_object_is_counted_in_exactly_one_cell_and_in_every_zone_that_holds_its_middle(run: Path, tmp_path: Path) -> None:
    make_products(run, zones=Cells(250.0))
    boxes, cells = boxes_of(run), zones_of(run)
    for prompt in ("bright", "dark"):
        assert cells[cells["prompt"] == prompt]["count"].sum() == (boxes["prompt"] == prompt).sum()
    for _, row in cells[cells["count"] > 0].iterrows():
        x0, y0, x1, y1 = row.geometry.bounds
        bounds = boxes[(boxes["prompt"] == row["prompt"]) & (boxes["step"] == row["step"])].geometry.bounds
        x, y = (bounds["minx"] + bounds["maxx"]) / 2, (bounds["miny"] + bounds["maxy"]) / 2
        assert row["count"] == ((x >= x0) & (x < x1) & (y > y0) & (y <= y1)).sum()
    make_products(run, zones=ZoneFile(zone_file(run, tmp_path), "name"))
    zones = zones_of(run).set_index(["zone", "step", "prompt"])["count"]
    inner = zones["disc"] - zones["ring"]
    assert (inner >= 0).all()
    assert inner.sum() > 0


def test_layers_do_not_depend_on_the_chunk_size(run: Path, whole: Path, tmp_path: Path) -> None:
    file = zone_file(run, tmp_path)
    for zones in (Cells(453.0), ZoneFile(file, "name")):
        tables = []
        for folder in (run, whole):
            make_products(folder, zones=zones, rules=LayerRules(oriented=True))
            tables.append([pq.read_table(folder / "products" / f"{name}.parquet") for name in ("boxes", "zones")])
        for small, large in zip(*tables, strict=True):
            assert small.equals(large)
        first, second = ((folder / "products" / "zones.csv").read_bytes() for folder in (run, whole))
        assert first == second


def test_the_same_run_and_rules_give_the_same_bytes_and_the_run_stays_as_it_is(copy: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    digests = []
    for _ in range(2):
        made = make_products(copy, zones=ZoneFile(zone_file(copy, tmp_path), "name"))
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in map(Path, made.files)])
    assert digests[0] == digests[1]
    assert {path: path.read_bytes() for path in before} == before
    assert verify_run(copy).ok
    new = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} - {
        path.relative_to(copy).as_posix() for path in before
    }
    assert new == {"products/boxes.parquet", "products/zones.parquet", "products/zones.csv"}


def test_the_csv_holds_the_same_rows(run: Path) -> None:
    make_products(run, zones=Cells(453.0))
    zones = zones_of(run)
    with (run / "products" / "zones.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["zone"] for row in rows] == zones["zone"].tolist()
    assert [int(row["count"]) for row in rows] == zones["count"].tolist()
    assert [row["caption"] for row in rows] == zones["caption"].fillna("").tolist()
    shares = [float(row["covered_share"] or "nan") for row in rows]
    assert np.array_equal(shares, zones["covered_share"].values, equal_nan=True)


def test_captions_name_what_is_counted_and_what_reaches_in(run: Path) -> None:
    make_products(run, zones=Cells(453.0))
    zones = zones_of(run)
    for _, rows in zones.groupby(["zone", "step"]):
        caption = rows["caption"].iloc[0]
        if rows["observed_pixels"].iloc[0] == 0:
            assert caption is None
            continue
        first = caption.split(". ")[0]
        for _, row in rows.iterrows():
            assert (row["prompt"] in first) == (row["count"] > 0 or row["covered_pixels"] > 0)
            if 2 <= row["count"] <= 4:
                assert f"{row['count']} {row['prompt']}s" in first
        assert (" region" in caption) == (rows["count"].sum() > 0)


def test_upstream_captions_vary_but_are_drawn_the_same_again(run: Path) -> None:
    texts = []
    for _ in range(2):
        make_products(run, zones=Cells(453.0), rules=LayerRules.upstream())
        texts.append(zones_of(run)["caption"].tolist())
    assert texts[0] == texts[1]
    assert len({text.split("zone")[0] for text in texts[0] if text}) > 2


def test_a_run_without_scores_tells_presence_from_the_mask_and_says_so(toy: Path, tmp_path: Path) -> None:
    path = toy / "plain.toml"
    path.write_text(toy_pipeline(size=SIZE).replace("scores = true", "scores = false"))
    start_run(load_pipeline(path), tmp_path / "plain", executor="serial")
    made = make_products(tmp_path / "plain", zones=Cells(453.0))
    zones = zones_of(tmp_path / "plain")
    seen = zones[zones["observed_pixels"] > 0]
    assert set(zones["presence_from"]) == {"mask"}
    assert zones[["score_mean", "score_max"]].isna().all(axis=None)
    assert (seen["present"].astype(bool) == (seen["covered_pixels"] > 0)).all()
    share = seen["covered_pixels"] / seen["observed_pixels"]
    assert np.allclose(seen["presence"], np.where(share > 0, 0.5 + share / 2, 0))
    for _, rows in seen.groupby(["zone", "step"]):
        best = rows.sort_values("covered_pixels", ascending=False, kind="stable").iloc[0]
        assert best["class"] == (best["prompt"] if best["covered_pixels"] else None)
    assert any("no scores" in note for note in made.notes)


def test_objects_below_the_least_area_are_left_out_and_it_is_said(toy: Path, run: Path, tmp_path: Path) -> None:
    path = toy / "least.toml"
    path.write_text(toy_pipeline(size=SIZE).replace("threshold = 0.5", "threshold = 0.5\nmin_area_m2 = 5000"))
    start_run(load_pipeline(path), tmp_path / "least", executor="serial")
    made = make_products(tmp_path / "least")
    assert boxes_of(tmp_path / "least")["area_m2"].min() >= 5000
    assert any("min_area_m2" in note and '"bright" 5000 m2' in note for note in made.notes)
    assert make_products(run).notes == ()


def test_an_unfinished_run_is_refused_with_advice(copy: Path) -> None:
    (copy / "COMPLETE.json").unlink()
    with pytest.raises(ConfigError, match=r"not finished.*eo-batch resume"):
        make_products(copy)
    assert not (copy / "products").exists()
    with pytest.raises(ConfigError, match="no run"):
        make_products(copy / "nothing")


def test_pixels_of_failed_chunks_are_not_observed(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "toy", ignore=shutil.ignore_patterns("run", "whole")))
    (folder / "b2_nir.tif").write_bytes(b"broken")
    summary = start_run(load_pipeline(folder / "pipeline.toml"), tmp_path / "part", executor="serial", allow_failed=99)
    assert 0 < summary.failed < summary.total
    made = make_products(tmp_path / "part", zones=Cells(453.0))
    assert made.partial
    assert any(f"{summary.failed:,} chunks" in note for note in made.notes)
    zones, masks = zones_of(tmp_path / "part"), mask_array(tmp_path / "part")
    for index, (_, rows) in enumerate(zones.groupby("step", sort=True)):
        one = rows[rows["prompt"] == "bright"]
        assert one["observed_pixels"].sum() == (masks[0, index] < 254).sum()


def test_a_damaged_run_is_refused_and_nothing_is_half_written(copy: Path) -> None:
    shard = copy / "masks.zarr/mask/c/1/0/1/1"
    data = shard.read_bytes()
    for damage in (None, b"", data[:40] + bytes([data[40] ^ 1]) + data[41:]):
        shard.unlink(missing_ok=True)
        if damage is not None:
            shard.write_bytes(damage)
        with pytest.raises(IntegrityError, match=r"shard-(missing|mismatch).*masks\.zarr/mask/c/1/0/1/1.*--repair"):
            make_products(copy, zones=Cells(453.0))
    assert not (copy / "products").exists()
    shard.write_bytes(data)
    footprints = bytearray((copy / "footprints.parquet").read_bytes())
    footprints[5000] ^= 1
    (copy / "footprints.parquet").write_bytes(footprints)
    with pytest.raises(IntegrityError, match=r"shard-mismatch.*footprints\.parquet"):
        make_products(copy)
    assert not list((copy / "products").glob("*")) if (copy / "products").exists() else True


class FailingDisk(Disk):
    """A disk whose n-th write fails as on a full disk."""

    def __init__(self, root: Path, fails_at: int) -> None:
        super().__init__(place_of(root))
        self.left = fails_at

    def _write(self, file, data) -> None:  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left == 0:
            raise OSError(28, "No space left on device")
        super()._write(file, data)


def test_a_full_disk_leaves_no_half_written_layer_and_the_earlier_one(copy: Path) -> None:
    made = make_products(copy, zones=Cells(453.0))
    before = {path.name: path.read_bytes() for path in map(Path, made.files)}
    codes = []
    for fails_at in range(1, 500, 3):
        try:
            make_products(Store(FailingDisk(copy, fails_at)), zones=Cells(453.0))
            break
        except StoreError as error:
            codes.append(error.code)
        assert {path.name: path.read_bytes() for path in (copy / "products").iterdir()} == before
    assert set(codes) == {"disk-full"}
    assert len(codes) > 3


@pytest.mark.parametrize(
    ("zones", "said"),
    [
        (Cells(0.0), "config-invalid"),
        (Cells(float("nan")), "config-invalid"),
        (Cells(0.5), "zones-invalid.*larger cells"),
        (Cells(5e-324), "zones-invalid.*larger cells"),
        (Cells(1e300), "config-invalid.*at most"),
        (ZoneFile(Path("gone.gpkg")), "zones-invalid.*no such file"),
    ],
)
def test_zones_that_cannot_be_are_refused_before_anything_is_written(copy: Path, zones: Cells | ZoneFile, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_products(copy, zones=zones)
    assert not (copy / "products").exists()


def test_too_many_rows_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eo_batch.run.layers.zones.MAX_FIGURES", 50)
    with pytest.raises(ConfigError, match=r"zones-invalid.*rows \(limit 50\)"):
        make_products(copy, zones=Cells(453.0))


def test_cells_are_anchored_at_the_origin_and_touch_the_region(run: Path) -> None:
    summary: ProductsSummary = make_products(run, zones=Cells(300.0))
    cells = zones_of(run).drop_duplicates("zone")
    bounds = cells.geometry.bounds.values
    assert np.array_equal(np.round(bounds / 300) * 300, bounds)
    for name, (left, _, _, top) in zip(cells["zone"], bounds, strict=True):
        assert name == f"r{round(-top / 300)}c{round(left / 300)}"
    assert summary.zones == len(cells)
    assert cells["pixels"].max() == 900
    inputs = read_inputs(Store(run))
    observed = (mask_array(run)[0] < 254).sum(axis=(1, 2))
    assert (
        zones_of(run).query("prompt == 'bright'").groupby("step", sort=False)["observed_pixels"].sum().tolist()
        == observed.tolist()
    )
    assert len(inputs.steps) == 2
