"""The promises on real scenes: the same map for any chunk size, order or executor; joined orbits; agreement with labels.

The pipelines are those of pipelines/real; a test changes their chunk size, model or region, and nothing else.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.features import geometry_mask, rasterize
from rasterio.warp import Resampling, reproject, transform_geom
from rundigest import file_digests, footprint_rows, mask_array
from shapely import box, union_all
from shapely.geometry import mapping, shape

from eo_batch.run import sitting
from eo_batch.run.driver import start_run
from eo_batch.run.executors import SerialExecutor
from eo_batch.run.request import load_pipeline

pytestmark = pytest.mark.shared

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines" / "real"
WHOLE_PX = 4096
PARTS = {
    "boadella-water": None,  # four dates in degrees, mapped in UTM: every pixel resampled
    "naip-zones-17-18": None,  # two UTM zones, one map
    "ireland-29unu": "[-8.60, 52.55, -7.75, 52.95]",  # the slanted edge of a swath, clouds, the Shannon
}
MODELS = ("window-mean", "spectral")

Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folder of the run of a pipeline with some settings; each is made once."""
    folder = tmp_path_factory.mktemp("real")

    def make(name: str, model: str = "spectral", chunk_px: int = WHOLE_PX, executor: str = "serial") -> Path:
        path = folder / f"{name}-{model}-{chunk_px}-{executor}.toml"
        out = path.with_suffix("")
        if not out.exists():
            text = (PIPELINES / f"{name}.toml").read_text()
            path.write_text(with_settings(text, bbox=PARTS[name], model=model, chunk_px=chunk_px))
            request = load_pipeline(path, catalog=str(shared / "stac" / "catalog.json"))
            assert start_run(request, out, executor=executor, workers=2).exit_status == 0
        return out

    return make


def with_settings(text: str, *, bbox: str | None, model: str, chunk_px: int) -> str:
    """Pipeline text with another region, model and chunk size; windows are small, so that many meet."""
    text = re.sub(r"(?m)^chunk_px = .*\n", "", text).replace("[grid]\n", f"[grid]\nchunk_px = {chunk_px}\n")
    text = re.sub(r'\[model]\nname = ".*"', f'[model]\nname = "{model}"\nwindow_px = 128', text)
    return re.sub(r"(?m)^bbox = .*$", f"bbox = {bbox}", text) if bbox else text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PARTS)
def test_the_oracle_is_one_chunk_with_something_to_compare(runs: Runs, name: str, model: str) -> None:
    whole = runs(name, model)
    masks = mask_array(whole)
    assert len(list((whole / "receipts").rglob("*.json"))) == masks.shape[1]
    assert (masks == 0).any()
    assert (masks == 1).any()
    assert (masks == 254).any()
    assert not (masks == 255).any()
    assert len(footprint_rows(whole)) >= 10


@pytest.mark.parametrize(("model", "chunk_px"), [("window-mean", 128), ("window-mean", 200), ("spectral", 200)])
@pytest.mark.parametrize("name", PARTS)
def test_any_chunk_size_gives_the_map_of_the_whole(runs: Runs, name: str, model: str, chunk_px: int) -> None:
    whole, chunked = runs(name, model), runs(name, model, chunk_px)
    np.testing.assert_array_equal(mask_array(chunked), mask_array(whole))
    np.testing.assert_array_equal(mask_array(chunked, "score"), mask_array(whole, "score"))
    assert footprint_rows(chunked) == footprint_rows(whole)


def test_a_large_chunk_that_leaves_a_rest_gives_the_map_of_the_whole(runs: Runs) -> None:
    whole, chunked = runs("ireland-29unu", "window-mean"), runs("ireland-29unu", "window-mean", 512)
    np.testing.assert_array_equal(mask_array(chunked, "score"), mask_array(whole, "score"))
    assert footprint_rows(chunked) == footprint_rows(whole)


@pytest.mark.parametrize("name", PARTS)
def test_threads_give_the_bytes_of_a_serial_run(runs: Runs, name: str) -> None:
    assert file_digests(runs(name, "window-mean", 200, "local")) == file_digests(runs(name, "window-mean", 200))


class Shuffled(SerialExecutor):
    """Chunks in an order drawn from a seed."""

    def outcomes(self, work: Callable[..., Any], groups: Iterable[Sequence[tuple]], *, stop: threading.Event) -> Iterator[tuple]:
        drawn = [task for group in groups for task in group]
        random.Random(7).shuffle(drawn)
        yield from super().outcomes(work, [drawn], stop=stop)


@pytest.mark.parametrize("name", PARTS)
def test_shuffled_chunks_give_the_bytes_of_ordered_ones(runs: Runs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = runs(name, "window-mean", 200)
    monkeypatch.setattr(sitting, "make_executor", Shuffled)
    assert file_digests(runs(name, "window-mean", 200, "local")) == file_digests(ordered)


ORBITS = ("s2-l2a-32tls-20220618", "s2-l2a-32tls-20220620")
EAST_EDGE = "[7.45, 46.25, 7.72, 46.42]"


@pytest.fixture(scope="module")
def orbits(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of the two passes over 32TLS, their dates exchanged.

    The complete pass is the earlier one, so "first" would never need the other. With the dates exchanged the narrow pass comes
    first, and the complete one fills the rest.
    """
    folder = tmp_path_factory.mktemp("orbits")
    documents = []
    for name, other in (ORBITS, ORBITS[::-1]):
        document = json.loads((shared / "stac" / "sentinel-2-l2a" / name / f"{name}.json").read_text())
        shutil.copyfile(shared / "scenes" / name / "B01_60m.tif", folder / f"{name}.tif")
        document["assets"]["B01"]["href"] = f"{name}.tif"
        document["links"] = []
        document["properties"]["datetime"] = f"{other[-8:-4]}-{other[-4:-2]}-{other[-2:]}T12:00:00Z"
        documents.append(document)
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": documents}))
    return folder


def join(orbits: Path, composite: str, chunk_px: int) -> Path:
    text = (PIPELINES / "geneva-32tls.toml").read_text().replace('"median"', f'"{composite}"').replace('"local"', '"items.json"')
    path = orbits / f"{composite}-{chunk_px}.toml"
    path.write_text(with_settings(text, bbox=EAST_EDGE, model="window-mean", chunk_px=chunk_px))
    out = path.with_suffix("")
    if not out.exists():
        assert start_run(load_pipeline(path), out, executor="serial").exit_status == 0
    return out


@pytest.mark.parametrize("composite", ["first", "median"])
def test_footprints_across_two_orbits_name_the_scenes_their_pixels_came_from(orbits: Path, shared: Path, composite: str) -> None:
    import geopandas

    frame = geopandas.read_parquet(join(orbits, composite, 100) / "footprints.parquet")
    full, narrow = (read(shared / "scenes" / name / "B01_60m.tif") > 0 for name in ORBITS)
    with rasterio.open(shared / "scenes" / ORBITS[0] / "B01_60m.tif") as source:
        shapes = zip(frame.geometry, range(len(frame)), strict=True)
        number = rasterize(shapes, source.shape, transform=source.transform, fill=-1, dtype=np.int32)
    gave = dict(zip(ORBITS, (full & ~narrow if composite == "first" else full, narrow), strict=True))
    numbers = {name: set(np.unique(number[where])) for name, where in gave.items()}
    expected = [tuple(name for name in ORBITS if n in numbers[name]) for n in range(len(frame))]
    assert [tuple(sorted(ids)) for ids in frame["item_ids"]] == expected
    assert ORBITS in expected
    assert ORBITS[:1] in expected


@pytest.mark.parametrize("composite", ["first", "median"])
def test_two_orbits_are_joined_the_same_way_for_any_chunk_size(orbits: Path, composite: str) -> None:
    whole, chunked = join(orbits, composite, WHOLE_PX), join(orbits, composite, 100)
    assert len(footprint_rows(whole)) > 50
    np.testing.assert_array_equal(mask_array(chunked, "score"), mask_array(whole, "score"))
    assert footprint_rows(chunked) == footprint_rows(whole)


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as source:
        return source.read(1)


def on_grid_of(label: Path, run: Path, prompt: int, time: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Label, and the mask moved to its grid by GDAL (nearest), both uint8 (y, x)."""
    manifest = json.loads((run / "manifest.json").read_bytes())
    grid = manifest["grid"]
    r = grid["resolution"]
    transform = rasterio.Affine(r, 0, grid["cols"][0] * r, 0, -r, -grid["rows"][0] * r)
    with rasterio.open(label) as source:
        out = np.full(source.shape, 255, np.uint8)
        where = {"dst_transform": source.transform, "dst_crs": source.crs, "init_dest_nodata": False}
        mask = mask_array(run)[prompt, time]
        reproject(mask, out, src_transform=transform, src_crs=grid["crs"], resampling=Resampling.nearest, **where)
        return source.read(1), out


@pytest.mark.parametrize(("day", "time", "least"), [("20190607", 0, 0.85), ("20200202", 2, 0.86)])  # measured 0.886 and 0.900
def test_water_of_boadella_mapped_in_utm_agrees_with_the_hand_made_labels(
    runs: Runs, shared: Path, day: str, time: int, least: float
) -> None:
    label, mask = on_grid_of(shared / "labels" / f"s2-l2a-boadella-{day}" / "water.tif", runs("boadella-water"), 0, time)
    where = mask < 254
    assert where.mean() > 0.99
    found, truth = mask[where] == 1, label[where] == 1
    assert (found & truth).sum() / (found | truth).sum() > least


def test_clouded_date_of_boadella_is_all_cloud_and_has_no_water(runs: Runs) -> None:
    water, cloud = mask_array(runs("boadella-water"))[:, 1]
    assert not (water == 1).any()
    assert (cloud == 1).sum() / (cloud < 254).sum() > 0.98


def test_naip_pair_is_one_map_that_covers_both_photographs(runs: Runs, shared: Path) -> None:
    outlines = []
    for name in ("naip-va-3607824-utm17", "naip-va-3607717-utm18"):
        with rasterio.open(shared / "scenes" / name / "rgbn.tif") as source:
            outlines.append(shape(transform_geom(source.crs, "EPSG:26917", mapping(box(*source.bounds)))))
    both = union_all(outlines)
    observed = mask_array(runs("naip-zones-17-18"))[0, 0] < 254
    grid = json.loads((runs("naip-zones-17-18") / "manifest.json").read_bytes())["grid"]
    transform = rasterio.Affine(1, 0, grid["cols"][0], 0, -1, -grid["rows"][0])
    inner, outer = (geometry_mask([both.buffer(d)], observed.shape, transform, invert=True) for d in (-1, 1))
    assert both.geom_type == "Polygon"
    assert observed[inner].all()
    assert not observed[~outer].any()
