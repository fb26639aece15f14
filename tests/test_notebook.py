"""`eo_batch.open_run`: masks, scores, footprints and items of a run."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import xarray
from pyproj import Transformer
from shapely import box
from toy import make_toy

import eo_batch
from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError, ResumeError
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy region; tests must not change it."""
    base = tmp_path_factory.mktemp("notebook")
    start_run(load_pipeline(make_toy(base / "toy", size=300)), base / "run", executor="serial")
    return base / "run"


@pytest.fixture
def run(folder: Path) -> eo_batch.notebook.Run:
    return eo_batch.open_run(folder)


def test_a_finished_run_opens_without_a_warning(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert eo_batch.open_run(str(folder)).status.state == "complete"


def test_masks_are_lazy_and_equal_the_store(run: eo_batch.notebook.Run, folder: Path) -> None:
    masks = run.masks["mask"]
    assert masks.dims == ("prompt", "time", "y", "x")
    assert masks.chunks is not None
    assert set(masks.chunksizes["y"][:-1]) == {128}
    assert np.array_equal(masks.values, xarray.open_zarr(folder / "masks.zarr")["mask"].values)


def test_masks_know_their_crs(run: eo_batch.notebook.Run) -> None:
    import rioxarray  # noqa: F401 (adds the accessor)

    assert run.masks.rio.crs.to_epsg() == 32632
    assert run.masks["mask"].rio.crs.to_epsg() == 32632


def test_scores_are_shares_with_nan_where_nobody_looked(run: eo_batch.notebook.Run) -> None:
    stored, scores = run.masks["score"].values, run.scores()
    assert scores.dtype == np.float32
    assert scores.chunks is not None
    values = scores.values
    assert np.array_equal(np.isnan(values), stored > 250)
    assert np.isnan(values).any()
    assert np.array_equal(np.round(values[stored <= 250] * 250).astype(np.uint8), stored[stored <= 250])


def test_masks_are_scores_at_the_threshold(run: eo_batch.notebook.Run) -> None:
    scores, masks = run.scores().values, run.masks["mask"].values
    observed = masks < 254
    assert np.array_equal(masks[observed] == 1, scores[observed] >= np.float32(0.5))


def test_footprints_can_be_asked_for_by_prompt_id_and_step(run: eo_batch.notebook.Run, folder: Path) -> None:
    whole = geopandas.read_parquet(folder / "footprints.parquet")
    for prompt in ("bright", "dark"):
        wanted = whole[whole["prompt"] == prompt]
        assert sorted(run.footprints(prompt)["id"]) == sorted(wanted["id"])
        assert sorted(run.footprints(wanted["prompt_id"].iloc[0])["id"]) == sorted(wanted["id"])
    step = run.steps[1]
    assert sorted(run.footprints(time=step)["id"]) == sorted(whole[whole["step"] == step]["id"])
    assert len(run.footprints(["bright", "dark"], time=list(run.steps))) == len(whole)


def test_footprints_in_a_bbox_are_those_that_touch_it(run: eo_batch.notebook.Run, folder: Path) -> None:
    whole = geopandas.read_parquet(folder / "footprints.parquet")
    left, bottom, right, top = whole.total_bounds
    middle = (
        left + (right - left) * 0.4,
        bottom + (top - bottom) * 0.4,
        left + (right - left) * 0.6,
        bottom + (top - bottom) * 0.6,
    )
    wanted = sorted(whole[whole.intersects(box(*middle))]["id"])
    assert 0 < len(wanted) < len(whole)
    assert sorted(run.footprints(bbox=middle, bbox_crs=run.crs)["id"]) == wanted


def test_a_bbox_is_in_degrees_unless_said_otherwise(run: eo_batch.notebook.Run, folder: Path) -> None:
    whole = geopandas.read_parquet(folder / "footprints.parquet")
    in_degrees = whole.to_crs("EPSG:4326")
    west, south, east, north = in_degrees.total_bounds
    small = (west + (east - west) * 0.3, south + (north - south) * 0.3, west + (east - west) * 0.5, south + (north - south) * 0.5)
    found, wanted = set(run.footprints(bbox=small)["id"]), set(in_degrees[in_degrees.intersects(box(*small))]["id"])
    edge = shapely.buffer(box(*small).boundary, 2e-6)  # in degrees: the edges of the box are bent in the grid's CRS
    near = set(in_degrees["id"][shapely.intersects(in_degrees.geometry.values, edge)])
    assert found ^ wanted <= near
    assert wanted


def test_metres_given_as_degrees_are_refused(run: eo_batch.notebook.Run) -> None:
    with pytest.raises(ConfigError, match=r"not in degrees.*bbox_crs"):
        run.footprints(bbox=(700000, 5200000, 710000, 5210000))


@pytest.mark.parametrize("bbox", [(1, 2, 3), (1, 5, 2, 4), (1, 2, 3, float("nan"))])
def test_a_bbox_that_is_none_is_refused(run: eo_batch.notebook.Run, bbox: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="bbox"):
        run.footprints(bbox=bbox)


def test_a_bbox_over_the_antimeridian_asks_on_both_sides(run: eo_batch.notebook.Run) -> None:
    assert len(run.footprints(bbox=(11.0, 46.0, -170.0, 48.0))) == len(run.footprints())


def test_an_unknown_prompt_or_step_gets_a_suggestion(run: eo_batch.notebook.Run) -> None:
    with pytest.raises(ConfigError, match='Did you mean "bright"'):
        run.footprints("brigth")
    with pytest.raises(ConfigError, match="2024-06-01"):
        run.footprints(time="2024-07-01")


def test_items_are_the_frozen_search(run: eo_batch.notebook.Run) -> None:
    assert list(run.items["id"]) == ["a1", "b1", "a2", "b2"]
    assert run.items.crs.to_epsg() == 4326
    x, y = Transformer.from_crs(run.crs, "EPSG:4326", always_xy=True).transform(729_000, 5_208_500)
    assert run.items.contains(geopandas.points_from_xy([x], [y])[0]).any()


def test_preview_is_a_picture_and_a_file(run: eo_batch.notebook.Run, tmp_path: Path) -> None:
    picture = run.preview(tmp_path / "map.png")
    assert picture.width >= 300
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_shows_itself_in_a_few_escaped_lines(folder: Path) -> None:
    run = eo_batch.open_run(folder)
    run.manifest["name"] = "<script>\x1b[2J"
    assert "\x1b" not in repr(run)
    assert len(repr(run).splitlines()) < 10
    assert "<script>" not in run._repr_html_()


def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run"):
        eo_batch.open_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_opens_with_a_warning(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "COMPLETE.json").unlink()
    (copy / "footprints.parquet").unlink()
    with pytest.warns(UserWarning, match=r"partial.*eo-batch resume"):
        run = eo_batch.open_run(copy)
    assert run.masks["mask"].sizes["time"] == 2
    with pytest.raises(ConfigError, match=r"no footprints yet.*eo-batch resume"):
        run.footprints()


def test_a_run_of_a_newer_format_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    body = {**{key: value for key, value in manifest.items() if key != "digest"}, "format": manifest["format"] + 1}
    (copy / "manifest.json").write_bytes(canonical_json({**body, "digest": digest(body)}))
    with pytest.raises(ResumeError, match="format-newer"):
        eo_batch.open_run(copy)


def test_reading_a_run_needs_no_torch(folder: Path) -> None:
    import subprocess
    import sys

    lines = ("import sys, eo_batch", f"r = eo_batch.open_run({str(folder)!r})", "r.masks, r.footprints(), r.items")
    code = "\n".join((*lines, "assert 'torch' not in sys.modules"))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])


def test_an_image_can_be_asked_about_and_shows_itself(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    import eo_batch

    image = np.full((60, 80, 3), (15, 40, 20), np.uint8)
    image[20:40, 30:50] = (225, 225, 230)
    answer = eo_batch.segment_image(image, "cloud", model="spectral")
    assert repr(answer) == "array, 80 x 60 px, spectral (whole); objects: cloud: 1"
    assert answer._repr_png_().startswith(b"\x89PNG")
    files = answer.save(tmp_path / "out")
    assert all(file.is_file() for file in files)
    with Image.open(tmp_path / "out" / "overlay.png") as page:
        assert page.size == answer.overlay().size
