"""`eo-batch products`: boxes and zone figures of a finished run, its pictures, its JSON and its errors."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from commandline import invoke, told
from PIL import Image
from toy import make_toy
from typer.testing import CliRunner

import eo_batch
from eo_batch.cli.main import app
from eo_batch.core.errors import ConfigError
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("products")
    start_run(load_pipeline(make_toy(base / "toy", size=260)), base / "run", executor="serial")
    return base / "run"


@pytest.fixture
def run(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden, tmp_path / "run"))


def test_products_make_boxes_zones_and_pictures(run: Path) -> None:
    answer = told("products", run, "--cells", 500, "--picture")
    names = [Path(path).name for path in answer["files"]]
    assert names == ["boxes.parquet", "zones.parquet", "zones.csv", "2024-06-01.png", "2024-06-02.png"]
    boxes = geopandas.read_parquet(run / "products" / "boxes.parquet")
    assert answer["boxes"] == {name: int((boxes["prompt"] == name).sum()) for name in ("bright", "dark")}
    assert answer["zones"] == geopandas.read_parquet(run / "products" / "zones.parquet")["zone"].nunique()
    assert answer["partial"] is False
    for name in names[3:]:
        with Image.open(run / "products" / name) as picture:
            assert picture.width > 400


def test_pictures_show_boxes_in_the_colours_of_their_prompts(run: Path) -> None:
    told("products", run)
    told("products", run, "--picture", "--oriented")
    with Image.open(run / "products" / "2024-06-01.png") as picture:
        colours = {tuple(colour) for colour in np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()}
    assert {(47, 126, 216), (232, 89, 12)} <= colours  # the first two of the palette, at full strength


def test_products_for_people_say_what_was_made(run: Path) -> None:
    status, out, err = invoke("products", run, "--cells", 1000)
    assert status == 0, err
    assert "bright" in out
    assert "zones.csv" in out


def test_boxes_inside_others_stay_unless_it_is_said_otherwise(run: Path) -> None:
    rules = {"": (), "inner": ("--drop-inner",), "upstream": ("--rules", "upstream")}
    rules["overlap"] = (*rules["upstream"], "--keep-inner")
    boxes = {name: sum(told("products", run, *options)["boxes"].values()) for name, options in rules.items()}
    assert boxes["upstream"] <= boxes["inner"] < boxes[""]
    assert boxes["upstream"] < boxes["overlap"] <= boxes[""]


def test_zones_from_a_file_keep_their_names(run: Path, tmp_path: Path) -> None:
    left, bottom, right, top = geopandas.read_parquet(run / "footprints.parquet").total_bounds
    halves = [shapely.box(left, bottom, (left + right) / 2, top), shapely.box((left + right) / 2, bottom, right, top)]
    geopandas.GeoDataFrame({"side": ["west", "east"]}, geometry=halves, crs="EPSG:32632").to_file(tmp_path / "zones.gpkg")
    told("products", run, "--zones", tmp_path / "zones.gpkg", "--zone-id", "side")
    zones = eo_batch.open_run(run).zones("bright", time="2024-06-01")
    assert zones["zone"].tolist() == ["west", "east"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--zones", "a.gpkg", "--cells", 5), "exclude each other"),
        (("--zone-id", "a"), "belong to --zones"),
        (("--connectivity", 6), "Give 4 or 8"),
        (("--cells", -5), "cannot have -5"),
        (("--zones", "gone.gpkg"), "zones-invalid: gone.gpkg: there is no such file"),
    ],
)
def test_wrong_options_are_one_line_and_status_2(run: Path, arguments: tuple[object, ...], said: str) -> None:
    status, _, err = invoke("products", run, *arguments)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (run / "products").exists()


def test_a_hostile_zone_name_cannot_reach_the_terminal(run: Path, tmp_path: Path) -> None:
    names = ["a\x1b[2J", "a\x1b[2J"]
    rows = geopandas.GeoDataFrame({"name": names}, geometry=[shapely.box(0, 0, 1, 1)] * 2, crs="EPSG:32632")
    rows.to_parquet(tmp_path / "zones.parquet")
    status, out, err = invoke("products", run, "--zones", tmp_path / "zones.parquet", "--zone-id", "name")
    assert status == 2
    assert "\x1b" not in out + err


def test_an_unfinished_run_and_no_run_are_refused(run: Path, tmp_path: Path) -> None:
    (run / "COMPLETE.json").unlink()
    status, _, err = invoke("products", run)
    assert (status, "not finished" in err, "eo-batch resume" in err) == (2, True, True)
    (tmp_path / "empty").mkdir()
    status, _, err = invoke("products", tmp_path / "empty")
    assert (status, "no run" in err) == (2, True)
    assert list((tmp_path / "empty").iterdir()) == []


def test_damage_has_its_own_exit_status(run: Path) -> None:
    (run / "masks.zarr" / "mask" / "c" / "0" / "0" / "0" / "0").unlink()
    status, _, err = invoke("products", run, "--cells", 500)
    assert (status, err.startswith("shard-missing: masks.zarr/mask/c/0/0/0/0")) == (5, True)


def test_help_teaches() -> None:
    answer = CliRunner().invoke(app, ["products", "--help"])
    assert answer.exit_code == 0
    assert "eo-batch products runs/water-2024 --cells 1000" in answer.output


def test_python_opens_boxes_and_zones_and_says_when_they_are_not_there_or_outdated(run: Path) -> None:
    opened = eo_batch.open_run(run)
    with pytest.raises(ConfigError, match=r"no boxes yet.*eo-batch products"):
        opened.boxes()
    with pytest.raises(ConfigError, match=r"no zones yet.*--cells"):
        opened.zones()
    told("products", run, "--cells", 500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(opened.boxes("bright")["prompt"]) == {"bright"}
        assert set(opened.zones(time="2024-06-02")["step"]) == {"2024-06-02"}
    x, y = opened.boxes().geometry.iloc[0].centroid.coords[0]
    assert 0 < len(opened.boxes(bbox=(x - 1, y - 1, x + 1, y + 1), bbox_crs=opened.crs)) < len(opened.boxes())
    marker = json.loads((run / "COMPLETE.json").read_text())
    (run / "COMPLETE.json").write_text(json.dumps({**marker, "partial": True}))
    with pytest.warns(UserWarning, match=r"earlier state.*eo-batch products"):
        opened.boxes()
