"""Files of an answer: every tool reads them, and they lie where the image lies."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine, from_origin

from eo_batch.products.rules import BoxRules, TaskRules
from eo_batch.run.images.answer import ImageAnswer
from eo_batch.run.images.files import write_image_files
from eo_batch.run.images.segment import segment_image
from eo_batch.sources.picture import RGB, Picture

UTM = rasterio.crs.CRS.from_epsg(32631).to_wkt()


def answer_of(crs: str | None = UTM, transform: Affine | None = None, **rules: bool) -> ImageAnswer:
    """Two white discs, the upper left corner not observed."""
    pixels = np.full((3, 90, 130), 0.1, np.float32)
    pixels[1] = 0.2
    y, x = np.mgrid[:90, :130]
    pixels[:, ((x - 60) ** 2 + (y - 20) ** 2 < 100) | ((x - 90) ** 2 + (y - 60) ** 2 < 225)] = 0.9
    valid = np.ones((90, 130), bool)
    valid[:10, :15] = False
    where = transform or from_origin(480000, 4700000, 10, 10)
    picture = Picture("scene.tif", pixels, valid, RGB, crs, where if crs else None)
    return segment_image(picture, ["cloud", "vegetation"][:1], model="spectral", rules=TaskRules(boxes=BoxRules(**rules)))


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_masks_of_a_picture_are_png_with_the_codes_of_a_run(tmp_path: Path) -> None:
    answer = answer_of(crs=None)
    files = write_image_files(answer, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["answer.json", "masks/cloud-566810.png"]
    assert sorted(files) == [tmp_path / "out" / name for name in names_in(tmp_path / "out")]
    with Image.open(tmp_path / "out/masks/cloud-566810.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), answer.codes[0])


def test_masks_of_a_georeferenced_image_lie_where_it_lies(tmp_path: Path) -> None:
    answer = answer_of()
    write_image_files(answer, tmp_path)
    with rasterio.open(tmp_path / "masks/cloud-566810.tif") as raster:
        assert raster.crs.to_epsg() == 32631
        assert raster.transform == from_origin(480000, 4700000, 10, 10)
        assert raster.nodata == 254
        assert raster.descriptions == ("cloud",)
        np.testing.assert_array_equal(raster.read(1), answer.codes[0])


def test_boxes_lie_where_the_objects_are_in_both_files(tmp_path: Path) -> None:
    answer = answer_of()
    write_image_files(answer, tmp_path)
    frame = geopandas.read_parquet(tmp_path / "boxes.parquet")
    assert frame.crs.to_epsg() == 32631
    objects = frame[frame["kind"] == "object"]
    assert len(objects) == 2
    for row, box in zip(objects.itertuples(), answer.boxes["cloud"], strict=True):
        west, south, east, north = row.geometry.bounds
        assert (west, east) == (480000 + 10 * box.x0, 480000 + 10 * box.x1)
        assert (north, south) == (4700000 - 10 * box.y0, 4700000 - 10 * box.y1)
        assert row.score == box.score
    (place,) = frame[frame["kind"] == "place"].geometry
    assert place.bounds == tuple(objects.total_bounds)
    document = json.loads((tmp_path / "boxes.geojson").read_text())
    to_lonlat = pyproj.Transformer.from_crs(32631, 4326, always_xy=True)
    for feature, polygon in zip(document["features"], frame.geometry, strict=True):
        expected = [to_lonlat.transform(x, y) for x, y in polygon.exterior.coords]
        np.testing.assert_allclose(feature["geometry"]["coordinates"][0], expected, atol=2e-9)
    assert document["features"][0]["properties"]["prompt"] == "cloud"


def test_rings_run_counterclockwise_whichever_way_the_image_is_turned(tmp_path: Path) -> None:
    for number, transform in enumerate((Affine(10, 0, 480000, 0, -10, 4700000), Affine(8, 6, 480000, 6, -8, 4700000))):
        for oriented in (False, True):
            folder = tmp_path / f"{number}{oriented}"
            write_image_files(answer_of(transform=transform, oriented=oriented), folder)
            for feature in json.loads((folder / "boxes.geojson").read_text())["features"]:
                ring = np.array(feature["geometry"]["coordinates"][0])
                assert (ring[0] == ring[-1]).all()
                (x0, y0), (x1, y1) = (ring[:-1] - ring[0]).T, (ring[1:] - ring[0]).T
                assert (x0 * y1 - x1 * y0).sum() > 0  # twice the area, positive where counterclockwise


def test_an_image_without_objects_has_files_without_rows(tmp_path: Path) -> None:
    picture = Picture("s", np.zeros((3, 20, 20), np.float32), np.ones((20, 20), bool), RGB, UTM, from_origin(5e5, 5e6, 10, 10))
    write_image_files(segment_image(picture, "cloud", model="spectral"), tmp_path)
    assert len(geopandas.read_parquet(tmp_path / "boxes.parquet")) == 0
    assert json.loads((tmp_path / "boxes.geojson").read_text())["features"] == []


def test_a_crs_without_a_way_to_degrees_has_no_geojson(tmp_path: Path) -> None:
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["East",EAST],AXIS["North",NORTH]]'
    write_image_files(answer_of(crs=local), tmp_path)
    assert "boxes.parquet" in names_in(tmp_path)
    assert "boxes.geojson" not in names_in(tmp_path)


@pytest.mark.parametrize(("tasks", "expected"), [(["count"], []), (["masks"], ["masks"]), (["ground"], ["boxes"])])
def test_only_files_of_the_tasks_are_written(tmp_path: Path, tasks: list[str], expected: list[str]) -> None:
    write_image_files(answer_of(), tmp_path, tasks=tasks)
    assert sorted({name.partition("/")[0].partition(".")[0] for name in names_in(tmp_path)}) == sorted(["answer", *expected])


def test_the_json_names_the_files_and_holds_the_answer(tmp_path: Path) -> None:
    answer = answer_of()
    write_image_files(answer, tmp_path)
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["files"] == ["masks/cloud-566810.tif", "boxes.parquet", "boxes.geojson"]
    assert told["prompts"] == answer.as_dict()["prompts"]
    assert told["caption"] == answer.caption()
