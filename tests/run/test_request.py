"""What is stored of a request is what was asked for, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rundigest import mask_array
from toy import make_toy, toy_bbox, toy_pipeline

from eo_batch.core.errors import ConfigError
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.request import load_pipeline, request_from_json

SIZE = 160


def square(west: float, south: float, side: float) -> dict:
    """A square feature in shares of the toy box."""
    w, s, e, n = toy_bbox(SIZE)
    corners = [(west, south), (west, south + side), (west + side, south + side), (west + side, south), (west, south)]
    ring = [[w + (e - w) * x, s + (n - s) * y] for x, y in corners]
    return {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}


@pytest.fixture
def many_parts(tmp_path: Path) -> Path:
    """A pipeline whose region has parts that overlap, touch at a corner and lie apart."""
    make_toy(tmp_path, dates=1, size=SIZE)
    squares = [square(0.0, 0.0, 0.4), square(0.2, 0.2, 0.3), square(0.5, 0.5, 0.3), square(0.9, 0.05, 0.08)]
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": squares}))
    text = toy_pipeline(size=SIZE, chunk_px=64)
    start = text.index("bbox")
    pipeline = tmp_path / "pipeline.toml"
    pipeline.write_text(text[:start] + 'file = "area.geojson"\n' + text[text.index("\n", start) + 1 :])
    return pipeline


def test_a_stored_request_is_read_back_to_the_last_bit(many_parts: Path) -> None:
    asked = load_pipeline(many_parts)
    stored = request_from_json(asked.to_json(), where="request.json")
    assert stored.to_json() == asked.to_json()
    assert stored.digest == asked.digest


def test_a_region_of_many_parts_runs_and_resumes(many_parts: Path, tmp_path: Path) -> None:
    request = load_pipeline(many_parts)
    assert start_run(request, tmp_path / "run", executor="serial").exit_status == 0
    assert resume_run(tmp_path / "run", request=request, executor="serial").exit_status == 0
    assert (mask_array(tmp_path / "run") == 1).any()


@pytest.mark.parametrize("parts", [[], [{"type": "Point", "coordinates": [1, 2]}], ["x"], None, [{"type": "Polygon"}]])
def test_a_stored_request_without_polygons_is_refused(many_parts: Path, parts: object) -> None:
    document = json.loads(load_pipeline(many_parts).to_json())
    document["region"]["parts"] = parts
    with pytest.raises(ConfigError):
        request_from_json(json.dumps(document).encode(), where="request.json")
