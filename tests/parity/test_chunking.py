"""The promise: the same pixels and footprints for any chunk size, the same bytes for any executor or order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rundigest import file_digests, footprint_rows, mask_array
from toy import make_toy, toy_pipeline

from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder)
    return folder


@pytest.fixture(scope="module")
def whole(toy: Path) -> Path:
    """The oracle: the whole region in one chunk."""
    return run(toy, "whole", chunk_px=512)


def run(toy: Path, name: str, executor: str = "serial", **settings: object) -> Path:
    pipeline = toy / f"{name}.toml"
    pipeline.write_text(toy_pipeline(**settings))  # type: ignore[arg-type]
    out = toy / f"run-{name}"
    summary = start_run(load_pipeline(pipeline), out, executor=executor, workers=2)
    assert summary.exit_status == 0
    return out


def test_the_oracle_has_something_to_compare(whole: Path) -> None:
    masks = mask_array(whole)
    for prompt in masks:
        assert 0.02 < (prompt == 1).mean() < 0.98
    assert (masks == 254).any()
    assert not (masks == 255).any()
    assert len(footprint_rows(whole)) > 20


@pytest.mark.parametrize("chunk_px", [64, 100, 128, 333])
def test_any_chunk_size_gives_the_pixels_of_the_whole(toy: Path, whole: Path, chunk_px: int) -> None:
    out = run(toy, f"chunk{chunk_px}", chunk_px=chunk_px)
    np.testing.assert_array_equal(mask_array(out), mask_array(whole))
    np.testing.assert_array_equal(mask_array(out, "score"), mask_array(whole, "score"))


@pytest.mark.parametrize("chunk_px", [96, 200])
def test_any_chunk_size_gives_the_footprints_of_the_whole(toy: Path, whole: Path, chunk_px: int) -> None:
    assert footprint_rows(run(toy, f"prints{chunk_px}", chunk_px=chunk_px)) == footprint_rows(whole)


@pytest.mark.parametrize("composite", ["median", "best"])
def test_composites_do_not_depend_on_the_chunk_size(toy: Path, composite: str) -> None:
    one = run(toy, f"{composite}-whole", step="all", composite=composite, chunk_px=512)
    many = run(toy, f"{composite}-many", step="all", composite=composite, chunk_px=100)
    np.testing.assert_array_equal(mask_array(many, "score"), mask_array(one, "score"))
    assert footprint_rows(many) == footprint_rows(one)


def test_threads_give_the_bytes_of_a_serial_run(toy: Path) -> None:
    assert file_digests(run(toy, "threads", "local")) == file_digests(run(toy, "serial", "serial"))


def test_a_region_cut_out_of_another_agrees_with_it(toy: Path, whole: Path) -> None:
    import json

    manifest = json.loads((whole / "manifest.json").read_bytes())
    text = toy_pipeline(chunk_px=100)
    west, south, east, north = (float(v) for v in text.split("bbox = [")[1].split("]")[0].split(","))
    inner = f"[{west + 0.012}, {south + 0.008}, {east - 0.009}, {north - 0.011}]"
    pipeline = toy / "inner.toml"
    pipeline.write_text(text.replace(f"[{west}, {south}, {east}, {north}]", inner))
    out = toy / "run-inner"
    assert start_run(load_pipeline(pipeline), out, executor="serial").exit_status == 0
    small = json.loads((out / "manifest.json").read_bytes())
    dy, dx = (small["grid"][axis][0] - manifest["grid"][axis][0] for axis in ("rows", "cols"))
    inside = mask_array(out)
    outer = mask_array(whole)[:, :, dy : dy + inside.shape[2], dx : dx + inside.shape[3]]
    seen = (inside != 254) & (outer != 254)
    assert seen.mean() > 0.5
    np.testing.assert_array_equal(inside[seen], outer[seen])
