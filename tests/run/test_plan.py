"""The plan's figures against brute force, and the halo that the search must cover."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from shapely import MultiPolygon, Point
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ResourceError
from eo_batch.core.region import make_grid, region_from_bbox
from eo_batch.models.registry import load_segmenter
from eo_batch.run.manifest import RunInputs
from eo_batch.run.plan import Plan, halo_region, make_inputs_of, make_plan
from eo_batch.run.request import Request, load_pipeline, request_from_json

PERIOD = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder)
    return folder


def planned(toy: Path, **settings: object) -> tuple[Plan, RunInputs]:
    path = toy / "plan.toml"
    path.write_text(toy_pipeline(**settings))  # type: ignore[arg-type]
    request = load_pipeline(path)
    inputs = make_inputs_of(request)
    return make_plan(inputs, load_segmenter(request.spec.model, request.spec.source.bands), workers=2), inputs


@pytest.mark.parametrize("chunk_px", [64, 100, 512])
def test_windows_are_those_of_a_count_one_by_one(toy: Path, chunk_px: int) -> None:
    plan, inputs = planned(toy, chunk_px=chunk_px)
    scored = distinct = 0
    for step in inputs.steps:
        windows = [
            (window.row, window.col)
            for chunk in inputs.grid.chunks(step.index)
            if inputs.region.inside(chunk.rows, chunk.cols).any()
            for window in inputs.grid.windows(chunk)
        ]
        scored += len(windows)
        distinct += len(set(windows))
    assert (plan.windows, plan.windows_distinct) == (scored, distinct)
    assert plan.chunks == inputs.chunk_count
    assert plan.area_km2 == pytest.approx(13.6, abs=0.2)


def test_chunks_beyond_all_scenes_cost_nothing(tmp_path: Path) -> None:
    make_toy(tmp_path, dates=1, size=1500)
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    for feature in catalog["features"]:
        west, south, east, north = feature["bbox"]
        east = west + (east - west) / 3
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        feature["bbox"], feature["geometry"]["coordinates"] = [west, south, east, north], [ring]
    near = catalog["features"][:1]
    (tmp_path / "catalog.json").write_text(json.dumps({**catalog, "features": near}))
    plan, inputs = planned(tmp_path, size=1500, chunk_px=64, window_px=32)
    assert 0 < plan.chunks_with_data <= plan.chunks * 0.7
    assert plan.windows < inputs.grid.window_counts[0]


def test_memory_advice_names_a_setting_that_fits(toy: Path) -> None:
    plan, _ = planned(toy, chunk_px=512, extra="[limits]\nmemory_gb = 0.08")
    with pytest.raises(ResourceError, match=r"plan-too-big.*(workers|chunk_px|memory_gb)"):
        plan.check()


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [
        ((11.0, 46.0, 11.5, 46.4), "auto"),
        ((179.6, -17.2, -179.7, -16.6), "auto"),
        ((2.8, 42.3, 2.9, 42.4), "EPSG:4326"),
        ((-30.0, 86.0, 40.0, 88.0), "auto"),
        ((-60.0, -81.0, -50.0, -80.5), "auto"),
    ],
)
def test_the_halo_covers_every_window_that_touches_the_region(bbox: tuple[float, ...], crs: str) -> None:
    region = region_from_bbox("r", bbox, *PERIOD)
    resolution = 0.001 if crs == "EPSG:4326" else 200.0
    grid, on_grid = make_grid(region, crs=crs, resolution=resolution, chunk_px=64, window_px=32, overlap=0.25)
    halo = halo_region(region, grid, on_grid)
    assert all(part.bounds[0] >= -180 and part.bounds[2] <= 180 for part in halo.parts)
    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    random = np.random.default_rng(3)
    whole = MultiPolygon(halo.parts).buffer(1e-9)
    checked = 0
    for row, col in zip(
        random.integers(grid.rows.start, grid.rows.stop, 400), random.integers(grid.cols.start, grid.cols.stop, 400), strict=True
    ):
        if not on_grid.polygons.contains(Point(col + 0.5, row + 0.5)):
            continue
        dy, dx = random.uniform(-grid.window_px, grid.window_px, 2)
        lon, lat = back.transform((col + 0.5 + dx) * resolution, -(row + 0.5 + dy) * resolution)
        assert whole.contains(Point(lon, lat)), (lon, lat)
        checked += 1
    assert checked > 100


def test_a_request_survives_its_own_file(toy: Path) -> None:
    request = load_pipeline(toy / "pipeline.toml")
    again = request_from_json(request.to_json(), where="test")
    assert again.to_json() == request.to_json()
    assert again.digest == request.digest
    assert isinstance(again, Request)
