"""The whole line through the command: search, plan, run, status, verify, export, resume, on a small real region."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import xarray
from commandline import invoke, told
from toy import make_toy, toy_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("region") / "toy", size=300)


@pytest.fixture(scope="module")
def run(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    status, _, err = invoke("run", pipeline, "--out", out, "--cluster", "serial", "--quiet")
    assert status == 0, err
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_search_lists_every_scene_and_freezes_it(pipeline: Path, tmp_path: Path) -> None:
    answer = told("search", pipeline, "--out", tmp_path / "items.parquet")
    assert [item["id"] for item in answer["items"]] == ["a1", "b1", "a2", "b2"]
    frozen = geopandas.read_parquet(tmp_path / "items.parquet")
    assert sorted(frozen["id"]) == ["a1", "a2", "b1", "b2"]


def test_a_frozen_search_can_be_searched_again(pipeline: Path, tmp_path: Path) -> None:
    first = told("search", pipeline, "--out", pipeline.parent / "items.parquet")
    again = told("search", pipeline, "--catalog", pipeline.parent / "items.parquet")
    assert [item["id"] for item in again["items"]] == [item["id"] for item in first["items"]]


def test_plan_for_machines_has_the_figures(pipeline: Path) -> None:
    answer = told("plan", pipeline)
    assert answer["scenes"] == 4
    assert answer["windows"] >= answer["windows_distinct"] > 0
    assert answer["memory_per_chunk"] > 0


def test_plan_refuses_what_cannot_fit_and_says_what_would(tmp_path: Path, pipeline: Path) -> None:
    text = toy_pipeline(size=300, extra="[limits]\nmemory_gb = 0.01\n")
    tight = pipeline.parent / "tight.toml"
    tight.write_text(text)
    for arguments in (("plan", tight), ("run", tight, "--out", tmp_path / "run")):
        status, _, err = invoke(*arguments)
        assert status == 7
        assert "plan-too-big" in err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_run_leaves_the_promised_files(run: Path) -> None:
    for name in (
        "manifest.json",
        "items.parquet",
        "masks.zarr",
        "footprints.parquet",
        "stac/collection.json",
        "receipts",
        "COMPLETE.json",
    ):
        assert (run / name).exists(), name


def test_run_in_json_mode_prints_one_object_per_event(pipeline: Path, tmp_path: Path) -> None:
    status, out, _ = invoke("run", pipeline, "--out", tmp_path / "run", "--json", "--quiet")
    lines = [json.loads(line) for line in out.splitlines()]
    chunks = [line for line in lines if line["event"] == "chunk"]
    assert status == 0
    assert [line["done"] for line in chunks] == list(range(1, chunks[0]["total"] + 1))
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["exit_status"] == 0


def test_workers_and_cluster_do_not_change_the_result(pipeline: Path, run: Path, tmp_path: Path) -> None:
    status, _, err = invoke("run", pipeline, "--out", tmp_path / "run", "--cluster", "local", "--workers", 2, "--quiet")
    assert status == 0, err
    first, second = (json.loads((folder / "COMPLETE.json").read_text()) for folder in (run, tmp_path / "run"))
    assert first == second


def test_a_second_run_in_the_same_folder_is_refused_and_nothing_changes(pipeline: Path, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.name == "COMPLETE.json"}
    status, _, err = invoke("run", pipeline, "--out", copied)
    assert status == 2
    assert "resume" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_status_of_a_finished_run(run: Path) -> None:
    answer = told("status", run)
    assert answer["state"] == "complete"
    assert answer["finished"] == answer["total"] > 1
    assert answer["failed"] == 0


def test_commands_on_a_folder_without_a_run_say_so(tmp_path: Path) -> None:
    for arguments in (
        ("status", tmp_path),
        ("verify", tmp_path),
        ("resume", tmp_path),
        ("export", tmp_path, "--out", tmp_path / "maps"),
    ):
        status, _, err = invoke(*arguments)
        assert status == 2, (arguments, err)
        assert "no run" in err
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_nothing_wrong_in_an_untouched_run(run: Path) -> None:
    answer = told("verify", run)
    assert answer["ok"] is True
    assert answer["problems"] == []


@pytest.mark.parametrize("damage", ["deleted", "emptied", "flipped"])
def test_verify_names_the_damaged_shard_and_repair_restores_it(copied: Path, damage: str) -> None:
    shard = copied / "masks.zarr" / "mask" / "c" / "1" / "0" / "1" / "0"
    data = shard.read_bytes()
    if damage == "deleted":
        shard.unlink()
    else:
        shard.write_bytes(b"" if damage == "emptied" else data[:40] + bytes([data[40] ^ 1]) + data[41:])
    status, out, _ = invoke("verify", copied, "--json")
    assert status == 5
    assert [problem["path"] for problem in json.loads(out)["problems"]] == ["masks.zarr/mask/c/1/0/1/0"]
    status, _, err = invoke("resume", copied, "--repair", "--quiet")
    assert status == 0, err
    assert shard.read_bytes() == data
    assert told("verify", copied)["ok"] is True


def test_resume_of_a_complete_run_changes_nothing(copied: Path) -> None:
    marker = (copied / "COMPLETE.json").read_bytes()
    status, _, err = invoke("resume", copied, "--quiet")
    assert status == 0, err
    assert (copied / "COMPLETE.json").read_bytes() == marker


def test_resume_refuses_a_changed_pipeline(copied: Path, pipeline: Path) -> None:
    changed = pipeline.parent / "changed.toml"
    changed.write_text(toy_pipeline(size=300, prompts=("bright", "grey")))
    status, _, err = invoke("resume", copied, "--pipeline", changed)
    assert status == 8
    assert err.startswith("prompts-changed")


def test_export_writes_maps_that_equal_the_cube(run: Path, tmp_path: Path) -> None:
    files = [Path(name) for name in told("export", run, "--out", tmp_path / "maps")["files"]]
    maps = sorted(path for path in files if path.suffix == ".tif")
    cube = xarray.open_zarr(run / "masks.zarr")["mask"].values
    assert len(maps) == cube.shape[0] * cube.shape[1]
    planes = {cube[index].tobytes() for index in np.ndindex(cube.shape[:2])}
    for path in maps:
        with rasterio.open(path) as raster:
            assert raster.read(1).tobytes() in planes
    (package,) = [path for path in files if path.suffix == ".gpkg"]
    assert len(geopandas.read_file(package)) == len(geopandas.read_parquet(run / "footprints.parquet"))


def test_ctrl_c_drains_ends_with_130_and_resumes_to_the_same_result(pipeline: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "eo_batch.cli", "run", str(pipeline), "--out", str(out), "--json", "--quiet"]
    process = subprocess.Popen([*command, "--cluster", "serial"], stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "chunk":
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert told("status", out)["state"] == "stopped"
    status, _, err = invoke("resume", out, "--quiet")
    assert status == 0, err
    assert (out / "COMPLETE.json").read_bytes() == (run / "COMPLETE.json").read_bytes()


def test_a_closed_pipe_is_no_error(run: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "eo_batch.cli", "status", str(run), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_a_hostile_prompt_cannot_reach_the_terminal(pipeline: Path, tmp_path: Path) -> None:
    hostile = pipeline.parent / "hostile.toml"
    hostile.write_text(toy_pipeline(size=300).replace('"bright"', '"bright\\u001b[2J"'))
    status, out, err = invoke("run", hostile, "--out", tmp_path / "run")
    assert status == 2
    assert "\x1b" not in out + err


def environment() -> dict[str, str]:
    """This environment, with the package importable from the repository."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
