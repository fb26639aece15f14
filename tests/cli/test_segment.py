"""`eo-batch segment`: a picture and a question, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import commandline
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin
from typer.testing import CliRunner

from eo_batch.cli import segment
from eo_batch.cli.main import app
from eo_batch.sources.picture import MAX_PIXELS


def invoke(*arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `eo-batch segment` in this process."""
    return commandline.invoke("segment", *arguments)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Two white discs on dark green."""
    image = np.full((90, 130, 3), (15, 40, 20), np.uint8)
    y, x = np.mgrid[:90, :130]
    for cx, cy, r in ((20, 20, 10), (90, 60, 15)):
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = (225, 225, 230)
    Image.fromarray(image).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """Reflectance x 10000 in four bands: water in the west, plants in the east, a corner without data."""
    nir = np.where(np.arange(80) < 30, 300, 3500) * np.ones((60, 1))
    bands = np.stack([np.full((60, 80), 500), np.full((60, 80), 600), np.full((60, 80), 400), nir]).astype(np.uint16)
    bands[:, :6, :10] = 0
    georeference = {"crs": "EPSG:32631", "transform": from_origin(480000, 4700000, 10, 10), "nodata": 0}
    shape = {"count": 4, "height": 60, "width": 80, "dtype": "uint16"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", **shape, **georeference) as raster:
        raster.write(bands)
    return tmp_path / "scene.tif"


def test_a_picture_is_answered_with_a_table_a_caption_and_files(photo: Path, tmp_path: Path) -> None:
    status, out, err = invoke(photo, "--model", "spectral", "-p", "cloud", "--out", tmp_path / "a")
    assert status == 0, err
    row = next(line for line in out.splitlines() if line.startswith("cloud"))
    assert row.split()[-1] == "2"
    assert "caption: This image features 2 clouds." in out
    assert "class: cloud" in out
    assert "answered as cloud" in err
    names = {str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert names == {"overlay.png", "masks/cloud-566810.png", "answer.json"}
    for name in names:
        assert name in err


def test_what_is_computed_is_said_where_there_is_no_terminal(photo: Path, tmp_path: Path) -> None:
    arguments = (photo, "--model", "spectral", "-p", "cloud", "--out", tmp_path / "a")
    assert "computing the whole image, 1 prompt" in invoke(*arguments)[2]
    assert "12 windows to compute" in invoke(*arguments, "--fit", "windows", "--window-px", 64)[2]


def test_without_out_files_go_beside_the_work(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = invoke(photo, "--model", "spectral", "-p", "cloud", "-q")
    assert status == 0
    assert err == ""
    assert (tmp_path / "photo-segmented" / "overlay.png").is_file()


def test_json_is_one_object_that_holds_the_answer_and_the_files(photo: Path, tmp_path: Path) -> None:
    status, out, err = invoke(photo, "--model", "spectral", "-p", "cloud", "--out", tmp_path / "a", "--json", "--oriented")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["prompts"][0]["count"] == 2
    assert len(told["prompts"][0]["boxes"][0]["corners"]) == 4
    assert all(Path(file).is_file() for file in told["files"])
    assert len(told["files"]) == 3


def test_bands_with_names_and_a_stretch_serve_models_of_reflectance(scene: Path, tmp_path: Path) -> None:
    stretch = ("--bands", "blue,green,red,nir", "--low", 0, "--high", 10000)
    prompts = ("-p", "water", "-p", "vegetation")
    status, out, err = invoke(scene, "--model", "spectral", *prompts, *stretch, "--out", tmp_path / "a", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert told["prompts"][0]["pixels"] == 60 * 30 - 60
    assert told["prompts"][1]["pixels"] == 60 * 50
    assert {Path(file).name for file in told["files"]} >= {"boxes.parquet", "boxes.geojson", "answer.json"}


@pytest.mark.parametrize(
    ("task", "column"),
    [("masks", "found"), ("detect", "best box"), ("ground", "place"), ("classify", "present"), ("count", "objects")],
)
def test_a_task_has_its_column_and_no_other(photo: Path, tmp_path: Path, task: str, column: str) -> None:
    status, out, _ = invoke(photo, "--model", "spectral", "-p", "cloud", "--task", task, "--out", tmp_path / "a", "-q")
    assert status == 0
    columns = ("found", "best box", "place", "present", "objects")
    assert [name for name in columns if name in out.splitlines()[0]] == [column]
    assert "caption:" not in out


def test_small_objects_can_be_left_out(photo: Path, tmp_path: Path) -> None:
    _, out, _ = invoke(photo, "--model", "spectral", "-p", "cloud", "--min-pixels", 500, "--out", tmp_path / "a", "--json")
    assert json.loads(out)["prompts"][0]["count"] == 1


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((), 2),
        (("--drop-inner",), 1),
        (("--rules", "upstream"), 1),
        (("--rules", "upstream", "--keep-inner"), 2),
    ],
)
def test_a_box_inside_another_stays_unless_it_is_said_otherwise(tmp_path: Path, arguments: tuple[str, ...], count: int) -> None:
    image = np.full((60, 80, 3), 20, np.uint8)
    image[5:50, 5:70] = 230
    image[15:40, 15:60] = 20
    image[20:25, 20:25] = 230
    Image.fromarray(image).save(tmp_path / "ring.png")
    asked = (tmp_path / "ring.png", "-p", "cloud", "--model", "spectral", "--out", tmp_path / "a", "--json")
    assert json.loads(invoke(*asked, *arguments)[1])["prompts"][0]["count"] == count


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["-p", "airplane", "--model", "spectral"], 2, "prompt-invalid"),
        (["-p", "", "--model", "spectral"], 2, "prompt-invalid"),
        (["-p", "cloud", "--model", "spektral"], 2, "config-invalid"),
        (["-p", "water", "--model", "spectral"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--fit", "full"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--task", "detekt"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--rules", "mine"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--regions", "5"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--threshold", "1"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--contour-threshold", "2"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--option", "threads"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--option", "threads=2"], 2, "config-unknown-key"),
        (["-p", "cloud", "--model", "spectral", "--weights", "w.safetensors"], 2, "config-unknown-key"),
        (["-p", "cloud", "--model", "spectral", "--low", "3"], 2, "config-invalid"),
        (["-p", "cloud", "--model", "spectral", "--max-pixels", "100"], 4, "asset-too-big"),
        (["-p", "cloud", "--model", "no name"], 2, "config-invalid"),
    ],
)
def test_wrong_questions_end_in_one_line_with_advice(
    photo: Path, tmp_path: Path, arguments: list[str], status: int, code: str
) -> None:
    found, out, err = invoke(photo, *arguments, "--out", tmp_path / "a")
    assert (found, out) == (status, "")
    assert err.startswith(f"{code}: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a").exists()


def test_images_that_cannot_be_read_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, code in (("text.png", "asset-corrupt"), ("none.png", "asset-not-found")):
        status, _, err = invoke(tmp_path / name, "-p", "cloud", "--model", "spectral")
        assert status == 4
        assert err.startswith(f"{code}: {name}: ")


@pytest.mark.parametrize("name", ["overlay.png", "masks/cloud-566810.png"])
def test_an_answer_is_not_written_over_its_image(photo: Path, tmp_path: Path, name: str) -> None:
    image = tmp_path / "a" / name
    image.parent.mkdir(parents=True)
    photo.rename(image)
    before = image.read_bytes()
    (tmp_path / "link.png").symlink_to(image)
    for given in (image, tmp_path / "link.png"):
        status, _, err = invoke(given, "--model", "spectral", "-p", "cloud", "--out", tmp_path / "a")
        assert (status, "over the image" in err) == (2, True)
    assert image.read_bytes() == before


def test_a_folder_with_an_endless_name_is_refused(photo: Path) -> None:
    status, _, err = invoke(photo, "--model", "spectral", "-p", "cloud", "--out", "a" * 5000)
    assert (status, "store-denied" in err) == (7, True)


def test_a_folder_is_no_image_and_a_file_no_folder_and_nothing_is_computed_before_that_is_said(
    photo: Path, tmp_path: Path
) -> None:
    status, _, err = invoke(tmp_path, "-p", "cloud", "--model", "spectral")
    assert (status, "is a folder" in err) == (4, True)
    status, _, err = invoke(photo, "-p", "cloud", "--model", "spectral", "--out", photo)
    assert (status, err.startswith("store-denied: ")) == (7, True)
    assert len(err.splitlines()) == 1


def test_missing_weights_are_told_with_the_command_that_brings_them(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "none"))
    status, _, err = invoke(photo, "-p", "airplane")
    assert status == 2
    assert "eo-batch models fetch remotesam" in err


def test_a_small_remotesam_answers_with_weights_from_a_file(photo: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tinysam import make_tiny

    weights = make_tiny(tmp_path / "tiny")
    arguments = (photo, "-p", "water", "-p", "the ship on the left", "--weights", weights, "--out", tmp_path / "a", "--json")
    whole, windows = (json.loads(invoke(*arguments, "--fit", fit)[1]) for fit in ("whole", "windows"))
    assert (whole["fit"], windows["fit"], windows["window_px"]) == ("whole", "windows", 64)
    assert whole["warnings"] == []
    assert any("on the left" in line for line in windows["warnings"])
    assert any('fit "whole"' in line for line in windows["warnings"])
    assert json.loads(invoke(photo, "-p", "water", *arguments[5:], "--fit", "windows")[1])["warnings"] == []
    assert any("water in the image" in line for line in whole["explanations"])


def test_a_prompt_cannot_write_to_the_terminal(photo: Path, tmp_path: Path) -> None:
    hostile = photo.rename(photo.with_name("a\x1b[31m.png"))
    status, out, err = invoke(hostile, "-p", "cloud", "--model", "spectral", "--out", tmp_path / "a\x1b[31m")
    assert status == 0
    assert "\x1b" not in out + err


def test_the_limit_in_the_help_is_the_limit_of_the_reader() -> None:
    assert f"default: {MAX_PIXELS}" in CliRunner().invoke(app, ["segment", "--help"]).output.replace("\n", " ")


def test_the_choices_are_the_tasks_of_an_answer() -> None:
    from eo_batch.run.images.answer import TASKS

    assert (*TASKS, segment.ALL) == segment._CHOICES
