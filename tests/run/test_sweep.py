"""Sweeps: exact pixels, areas and shares of any threshold, against the maps that runs with these thresholds are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
from rundigest import mask_array
from toy import make_toy, toy_pipeline

from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError, IntegrityError
from eo_batch.run.driver import start_run
from eo_batch.run.later.rethreshold import rethreshold
from eo_batch.run.later.sweep import sweep
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    make_toy(folder, size=260)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=260))
    start_run(load_pipeline(folder / "pipeline.toml"), folder / "run", executor="serial")
    return folder / "run"


def test_pixels_and_areas_are_those_of_the_footprints_at_each_threshold(run: Path, tmp_path: Path) -> None:
    swept = {each.prompt.text: each for each in sweep(run)}
    for threshold in (0.5, 0.83):
        out = (
            run
            if threshold == 0.5
            else Path(rethreshold(run, {"dark": threshold}, tmp_path / f"{threshold}", executor="serial").path)
        )
        frame = geopandas.read_parquet(out / "footprints.parquet")
        for t in (None, 0, 1):
            chosen = (frame["prompt"] == "dark") & (True if t is None else frame["step"] == f"2024-06-0{t + 1}")
            (row,) = swept["dark"].rows([threshold], t=t)
            assert row.pixels == frame["pixels"][chosen].sum()
            assert row.area_km2 == pytest.approx(frame["area_m2"][chosen].sum() / 1e6, rel=1e-12)


def test_counts_are_those_of_the_score_cube_as_any_reader_sees_it(run: Path) -> None:
    scores = mask_array(run, "score")
    for index, found in enumerate(sweep(run)):
        rows = found.rows()
        assert [row.threshold for row in rows] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        for row in rows:
            layer = scores[index]
            assert row.pixels == np.count_nonzero((layer <= 250) & (layer >= round(250 * row.threshold)))
        observed = np.count_nonzero(scores[index] <= 250)
        assert found.rows([0.001])[0].pixels + np.count_nonzero(scores[index] == 0) == observed
        assert rows[4].share == pytest.approx(rows[4].pixels / observed, rel=1e-4)  # pixels here are nearly of one size


def test_the_threshold_of_the_run_has_a_row_of_its_own(run: Path, tmp_path: Path) -> None:
    out = Path(rethreshold(run, {"bright": 0.456}, tmp_path / "new", executor="serial").path)
    first, second = sweep(out)
    assert [row.threshold for row in first.rows()] == [0.1, 0.2, 0.3, 0.4, 0.456, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert len(second.rows()) == 9
    assert first.rows([0.5]) == sweep(run, ["bright"])[0].rows([0.5])


def test_only_the_prompts_that_are_asked_for_are_counted(run: Path) -> None:
    heard: list[tuple[int, int]] = []
    (dark,) = sweep(run, ["dark"], progress=lambda done, total: heard.append((done, total)))
    assert dark.prompt.text == "dark"
    assert dark.as_dict() == sweep(run)[1].as_dict()
    assert heard == [(n, 8) for n in range(1, 9)]
    with pytest.raises(ConfigError, match="no prompt"):
        sweep(run, ["water"])


def test_a_damaged_score_is_never_counted(run: Path) -> None:
    path = run / "masks.zarr/score/c/1/0/0/0"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\0")
    try:
        with pytest.raises(IntegrityError, match="masks.zarr/score/c/1/0/0/0"):
            sweep(run, ["dark"])
        sweep(run, ["bright"])
    finally:
        path.write_bytes(data)


def test_a_run_of_an_older_format_can_be_swept(run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(run, tmp_path / "old"))
    shutil.rmtree(old / "contributed")
    manifest = json.loads((old / "manifest.json").read_bytes())
    body = {key: value for key, value in manifest.items() if key not in ("digest", "segmenter_name")} | {"format": 1}
    (old / "manifest.json").write_bytes(canonical_json({**body, "digest": digest(body)}))
    marker = json.loads((old / "COMPLETE.json").read_bytes())
    (old / "COMPLETE.json").write_bytes(canonical_json({**marker, "run": digest(body)}))
    assert [each.as_dict() for each in sweep(old)] == [each.as_dict() for each in sweep(run)]
