"""`eo-batch demo`: a region, a map of it, and honest figures."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from PIL import Image
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.sources.synthetic.spectra import PROMPT_CLASSES


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and printed object of a small demo."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    answer = CliRunner().invoke(app, ["demo", "--out", str(out), "--size", "512", "--json"])
    assert answer.exit_code == 0, answer.stderr
    return out, json.loads(answer.stdout)


def test_every_path_that_is_printed_exists(demo: tuple[Path, dict[str, Any]]) -> None:
    _, told = demo
    assert set(told["paths"]) == {"picture", "masks", "footprints", "scenes"}
    assert all(Path(path).exists() for path in told["paths"].values())


def test_figures_equal_a_count_over_the_truth_file(demo: tuple[Path, dict[str, Any]]) -> None:
    out, told = demo
    masks = xarray.open_zarr(out / "run" / "masks.zarr")["mask"].isel(time=0)
    with rasterio.open(out / "region" / "truth" / "classes.tif") as truth:
        row, col = truth.index(float(masks.x[0]), float(masks.y[0]))
        classes = np.zeros(masks.shape[1:], np.uint8)
        window = rasterio.windows.Window(col, row, masks.shape[2], masks.shape[1])
        classes[:] = truth.read(1, window=window, boundless=True, fill_value=255)
    for figure in told["prompts"]:
        mask = masks.sel(prompt=figure["prompt"]).values
        observed = (mask <= 1) & (classes != 255)
        found, true = (mask == 1) & observed, np.isin(classes, PROMPT_CLASSES[figure["prompt"]]) & observed
        assert figure["mapped_km2"] == pytest.approx(found.sum() * 1e-4, rel=0.02)
        assert figure["truth_km2"] == pytest.approx(true.sum() * 1e-4, rel=0.02)
        if (found | true).sum():
            assert figure["iou"] == pytest.approx((found & true).sum() / (found | true).sum(), abs=0.01)


def test_water_and_vegetation_are_found(demo: tuple[Path, dict[str, Any]]) -> None:
    iou = {figure["prompt"]: figure["iou"] for figure in demo[1]["prompts"]}
    assert iou["vegetation"] > 0.9
    assert iou["water"] > 0.9


def test_footprint_counts_are_those_of_the_file(demo: tuple[Path, dict[str, Any]]) -> None:
    out, told = demo
    rows = geopandas.read_parquet(out / "run" / "footprints.parquet").groupby("prompt").size().to_dict()
    assert {f["prompt"]: f["footprints"] for f in told["prompts"] if f["footprints"]} == rows


def test_picture_shows_the_scenes_beneath(demo: tuple[Path, dict[str, Any]]) -> None:
    with Image.open(demo[1]["paths"]["picture"]) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 2000


def test_a_second_demo_replaces_the_first_with_the_same_figures(demo: tuple[Path, dict[str, Any]]) -> None:
    out, told = demo
    answer = CliRunner().invoke(app, ["demo", "--out", str(out), "--size", "512"])
    assert answer.exit_code == 0, answer.stderr
    assert "against its truth" in answer.stdout
    for figure in told["prompts"]:
        assert f"{figure['iou']:.3f}" in answer.stdout


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), "--size", "256"])
    assert answer.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "thesis.txt"]


def test_plan_says_how_a_narrower_word_is_answered(demo: tuple[Path, dict[str, Any]]) -> None:
    pipeline = demo[0] / "region" / "demo.toml"
    river = pipeline.with_name("river.toml")
    river.write_text(pipeline.read_text().replace('text = "water"', 'text = "river"'))
    answer = CliRunner().invoke(app, ["plan", str(river), "--json"])
    assert answer.exit_code == 0, answer.stderr
    assert '"river" is answered with all water' in json.loads(answer.stdout)["answers"][0]


def test_an_interrupted_demo_ends_with_130_and_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stopped() -> Iterator[threading.Event]:
        stop = threading.Event()
        stop.set()
        yield stop

    with monkeypatch.context() as patch:
        patch.setattr("eo_batch.run.sitting._stop_on_signals", stopped)
        answer = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--size", "256"])
    run = tmp_path / "demo" / "run"
    assert (answer.exit_code, answer.stdout) == (130, "")
    assert f"`eo-batch resume {run}`" in answer.stderr
    assert CliRunner().invoke(app, ["resume", str(run)]).exit_code == 0
