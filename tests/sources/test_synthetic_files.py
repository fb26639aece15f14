"""The demo region on disk, read back by others: GDAL, rio-cogeo, pystac, and our own search."""

from __future__ import annotations

import hashlib
import json
import socket
import tomllib
from pathlib import Path

import numpy as np
import pystac
import pystac.validation
import pytest
import rasterio
import rasterio.warp
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import box, shape

from eo_batch.core.errors import StoreError
from eo_batch.core.region import region_from_bbox
from eo_batch.core.spec import parse_pipeline
from eo_batch.sources.synthetic import DemoFiles, DemoRegion, render, truth_masks, write_demo
from eo_batch.sources.synthetic.spectra import BANDS, CLASS_NAMES
from eo_batch.sources.synthetic.stac import file_name

DEMO = DemoRegion(size_px=384, dates=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo"), DEMO)


def _items(files: DemoFiles) -> list[pystac.Item]:
    return list(pystac.Catalog.from_file(str(files.catalog)).get_items(recursive=True))


def test_every_raster_is_a_valid_cog(files: DemoFiles) -> None:
    rasters = sorted(files.catalog.parent.rglob("*.tif"))
    assert len(rasters) == 7 * 4 + 1
    for raster in rasters:
        good, errors, _ = cog_validate(raster, quiet=True)
        assert good, (raster.name, errors)


def test_files_hold_what_was_rendered(files: DemoFiles) -> None:
    for scene in DEMO.scenes():
        for name, numbers in render(DEMO, scene, scene.rows, scene.cols).items():
            with rasterio.open(files.catalog.parent / "synthetic-sentinel-2" / scene.id / file_name(name)) as raster:
                np.testing.assert_array_equal(raster.read(1), numbers)
                assert raster.crs.to_string() == scene.crs
                assert raster.nodata == 0
                assert (raster.scales, raster.offsets) == (((1.0,), (0.0,)) if name == "scl" else ((0.0001,), (-0.1,)))


def test_every_file_says_that_it_is_synthetic(files: DemoFiles) -> None:
    for raster in files.catalog.parent.rglob("*.tif"):
        with rasterio.open(raster) as source:
            assert source.tags()["SYNTHETIC"] == "YES"
    for path in [*files.catalog.parent.rglob("*.json"), files.pipeline]:
        assert "synthetic" in path.read_text("utf-8").lower()


def test_documents_are_valid_stac_without_a_network(files: DemoFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    validator = pystac.validation.JsonSchemaSTACValidator()
    kinds = {"Catalog": pystac.STACObjectType.CATALOG, "Collection": pystac.STACObjectType.COLLECTION}
    count = 0
    for path in files.catalog.parent.rglob("*.json"):
        document = json.loads(path.read_text("utf-8"))
        if "stac_version" in document:
            validator.validate_core(document, kinds.get(document["type"], pystac.STACObjectType.ITEM), "1.1.0", str(path))
            count += 1
    assert count == 2 + 4


def test_items_tell_where_the_pixels_are(files: DemoFiles) -> None:
    for item in _items(files):
        for name, asset in item.assets.items():
            with rasterio.open(asset.get_absolute_href()) as raster:
                assert list(raster.shape) == asset.extra_fields["proj:shape"]
                assert list(raster.transform) == asset.extra_fields["proj:transform"]
                assert raster.crs.to_string() == item.properties["proj:code"]
                assert raster.res == ((20.0, 20.0) if name in ("swir16", "swir22", "scl") else (10.0, 10.0))


def test_items_tell_what_the_numbers_mean(files: DemoFiles) -> None:
    for item in _items(files):
        bands = {key: asset.extra_fields["bands"][0] for key, asset in item.assets.items() if key != "scl"}
        assert tuple(band["eo:common_name"] for band in bands.values()) == BANDS
        for band in bands.values():
            assert (band["raster:scale"], band["raster:offset"], band["nodata"], band["data_type"]) == (0.0001, -0.1, 0, "uint16")


def test_cloud_cover_is_what_the_classification_shows(files: DemoFiles) -> None:
    for item in _items(files):
        with rasterio.open(item.assets["scl"].get_absolute_href()) as raster:
            scl = raster.read(1)
        share = 100.0 * np.isin(scl, (8, 9, 10)).sum() / (scl > 0).sum()
        assert item.properties["eo:cloud_cover"] == pytest.approx(share, abs=0.01)


def test_scenes_come_in_both_zones_and_orbits(files: DemoFiles) -> None:
    found = {(item.properties["proj:code"], item.properties["sat:relative_orbit"]) for item in _items(files)}
    assert found == {("EPSG:32632", 22), ("EPSG:32632", 65), ("EPSG:32633", 22), ("EPSG:32633", 65)}


def test_truth_file_is_the_truth(files: DemoFiles) -> None:
    with rasterio.open(files.truth) as raster:
        codes = raster.read(1)
        assert raster.crs.to_string() == DEMO.crs
        assert (raster.transform.c, raster.transform.f) == (DEMO.cols.start * 10, -DEMO.rows.start * 10)
        assert raster.tags(1)["CLASS_1"] == "water"
    np.testing.assert_array_equal(codes, DEMO.classes(DEMO.rows, DEMO.cols))
    said = json.loads(files.truth.with_name("truth.json").read_text("utf-8"))
    assert said["classes"] == {str(code): name for code, name in CLASS_NAMES.items()}
    for text, wanted in said["prompts"].items():
        np.testing.assert_array_equal(np.isin(codes, wanted), truth_masks(DEMO, text))


def test_the_pipeline_is_ready_to_run(files: DemoFiles) -> None:
    spec = parse_pipeline(files.pipeline.read_bytes(), where="demo.toml")
    truth = json.loads(files.truth.with_name("truth.json").read_text("utf-8"))
    assert {prompt.text for prompt in spec.prompts} <= set(truth["prompts"])
    assert spec.grid.crs == DEMO.crs
    assert spec.output.scores
    region = box(*spec.region.bbox)
    assert any(shape(item.geometry).intersects(region) for item in _items(files))
    with rasterio.open(files.truth) as raster:
        corners = rasterio.warp.transform_bounds("EPSG:4326", raster.crs, *region.bounds)
        assert corners[0] >= raster.bounds.left - 300
        assert corners[2] <= raster.bounds.right + 300
    assert tomllib.loads(files.pipeline.read_text("utf-8"))["source"]["catalog"] == "catalog.json"


def test_our_own_search_finds_all_scenes_with_their_cloud_masks(files: DemoFiles) -> None:
    from eo_batch.sources.catalog import find_catalog
    from eo_batch.sources.items import resolve_items
    from eo_batch.sources.search import search_items

    spec = parse_pipeline(files.pipeline.read_bytes(), where="demo.toml")
    catalog, _ = find_catalog(spec.source.catalog, files.pipeline.parent)
    region = region_from_bbox(spec.name, spec.region.bbox, spec.start, spec.end)
    table = resolve_items(search_items(spec, catalog, region=region).documents, spec, catalog)
    assert {item.id for item in table.items} == {scene.id for scene in DEMO.scenes()}
    for item in table.items:
        assert item.cloud_mask is not None
        assert [(b.scale, b.offset, b.nodata) for b in item.bands.values()] == [(0.0001, -0.1, 0.0)] * len(BANDS)


def test_written_twice_it_is_the_same_bytes(files: DemoFiles, tmp_path: Path) -> None:
    again = write_demo(tmp_path / "again", DEMO)

    def digests(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}

    assert digests(again.catalog.parent) == digests(files.catalog.parent)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    write_demo(tmp_path, DemoRegion(size_px=64, dates=1), progress=lambda done, total, what: told.append((done, total, what)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _, _ in told] == sorted({done for done, _, _ in told})


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path) -> None:
    place = tmp_path / "taken"
    place.write_text("mine")
    with pytest.raises(StoreError, match="demo region cannot be written") as caught:
        write_demo(place, DEMO)
    assert caught.value.code == "store-denied"
    assert place.read_text() == "mine"


def test_nothing_but_the_demo_is_left_in_the_folder(files: DemoFiles) -> None:
    assert {p.name for p in files.catalog.parent.iterdir()} == {"catalog.json", "demo.toml", "synthetic-sentinel-2", "truth"}
