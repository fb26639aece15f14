"""Prompts added to a finished map of real scenes: the bytes of one run with all prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from rundigest import file_digests, newest_digests

from eo_batch.run.driver import start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.request import load_pipeline

pytestmark = pytest.mark.shared

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "real" / "boadella-water.toml"


def test_a_map_of_real_scenes_is_extended_to_the_bytes_of_one_run(shared: Path, tmp_path: Path) -> None:
    text = PIPELINE.read_text().replace("resolution = 10", "chunk_px = 160\nresolution = 10")
    more = '\n[[prompts]]\ntext = "vegetation"\nthreshold = 0.6\nmin_area_m2 = 5000\n'
    for name, pipeline in (("run", text), ("one", text + more)):
        path = tmp_path / f"{name}.toml"
        path.write_text(pipeline)
        request = load_pipeline(path, catalog=str(shared / "stac" / "catalog.json"))
        assert start_run(request, tmp_path / name, executor="local", workers=2).exit_status == 0
    summary = add_prompts(tmp_path / "run", "vegetation", threshold=0.6, min_area_m2=5000, executor="serial")
    assert summary.rows_per_prompt["vegetation"] > 0
    assert newest_digests(tmp_path / "run") == file_digests(tmp_path / "one")
