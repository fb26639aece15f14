"""A: processes that die. Nothing that was finished is lost, nothing half-written is seen, and resuming gives the same bytes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from deadly import environment, install, unmet
from drivers import eo_batch, receipts, start_until, wait_until
from rundigest import file_digests
from servers.files import FileServer
from servers.stac_api import make_app, serve_app
from wholerun import SLOW_CHUNKS, documents, finishes, invoke, name_catalog, results, run, told

from eo_batch.run.generations import Generation
from eo_batch.run.told.journal import read_journal
from eo_batch.run.verify import verify_run


def begin(toy: Path, *more: object) -> list[str]:
    """Command of a run with real processes."""
    return eo_batch("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet", *more)


def dies(toy: Path, *points: str, cluster: str = "serial") -> None:
    """Start a run that is killed at `points`."""
    done = subprocess.run(
        begin(toy, "--cluster", cluster), env=environment(toy / "points", *points), check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert unmet(toy / "points") == []


def test_a01_a_driver_killed_during_the_search_leaves_nothing_and_the_next_one_searches_again(
    toy: Path, golden: dict[str, str]
) -> None:
    at_second_page, go_on = threading.Event(), threading.Event()
    with FileServer(toy) as pixels:
        app, searches = make_app(documents(toy, pixels)), []

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["path"] == "/search":
                searches.append(1)
                if len(searches) == 2:
                    at_second_page.set()
                    while not go_on.is_set():
                        await asyncio.sleep(0.01)
            await app(scope, receive, send)

        with serve_app(slow) as url:
            name_catalog(toy, url, kind="api", page_limit=1)
            process = subprocess.Popen(begin(toy, "--cluster", "serial"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            try:
                assert at_second_page.wait(120)
            finally:
                process.kill()
                process.communicate()
                go_on.set()
            assert not (toy / "run" / "items.parquet").exists()
            assert not (toy / "run" / "request.json").exists()
            assert run(toy)[::2] == (0, "")
            assert len(searches) == 4
    assert results(toy / "run") == golden


def test_a02_a_driver_killed_after_the_search_is_resumed_with_the_items_it_had_found(toy: Path, golden: dict[str, str]) -> None:
    dies(toy, "before:manifest.json")
    frozen = (toy / "run" / "items.parquet").read_bytes()
    assert not (toy / "run" / "manifest.json").exists()
    (toy / "catalog.json").unlink()  # there is nothing to search in
    finishes(toy, golden)
    assert (toy / "run" / "items.parquet").read_bytes() == frozen


@pytest.mark.parametrize("point", ["before:/parts/t0000/y0000_x0001", "before:/receipts/t0000/y0000_x0001"])
def test_a03_a_chunk_without_its_receipt_counts_as_missing_and_is_made_again(
    toy: Path, golden: dict[str, str], point: str
) -> None:
    dies(toy, point)
    assert (toy / "run" / "masks.zarr/mask/c/0/0/0/1").exists()
    assert not (toy / "run" / "receipts/t0000/y0000_x0001.json").exists()
    assert told(toy)["finished"] == 1
    assert verify_run(toy / "run").problems == ()
    finishes(toy, golden)


def test_a04_half_a_shard_is_seen_by_nobody_and_swept(toy: Path, golden: dict[str, str]) -> None:
    dies(toy, "half:/masks.zarr/mask/c/0/0/0/1")
    assert len(list((toy / "run").rglob("*.partial"))) == 1
    assert not (toy / "run" / "masks.zarr/mask/c/0/0/0/1").exists()
    assert verify_run(toy / "run").problems == ()
    status, _, err = invoke("resume", toy / "run", "--repair", "--cluster", "serial")
    assert status == 0
    assert "removed 1 partial files of a killed driver" in err
    assert not list((toy / "run").rglob("*.partial"))
    assert results(toy / "run") == golden


@pytest.mark.parametrize(
    ("cluster", "stages"),
    [("local:1", ["stage:score"]), pytest.param("local:2", ["stage:read", "stage:score", "stage:trace"], marks=pytest.mark.slow)],
)
def test_a05_workers_killed_in_any_stage_are_replaced_and_only_telemetry_knows(
    toy: Path, golden: dict[str, str], tmp_path: Path, cluster: str, stages: list[str]
) -> None:
    mortal = environment(tmp_path / "points", *stages)
    command = eo_batch("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", cluster)
    done = subprocess.run(command, env=mortal, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unmet(tmp_path / "points") == []
    assert results(toy / "run") == golden
    telemetry = [json.loads(path.read_bytes())["telemetry"] for path in (toy / "run" / "receipts").rglob("*.json")]
    assert max(each["attempt"] for each in telemetry) >= 2
    assert sum(each["attempt"] - 1 for each in telemetry) <= len(stages) * 2, "a death blames the tasks of one worker"
    again = [line for line in read_journal(Generation(toy / "run"), 1) if line["event"] == "again"]
    assert set(stages) <= {f"stage:{line['stage']}" for line in again}
    for line in again:
        stage = f" (last known stage: {line['stage']})" if line["stage"] else ""
        assert f"chunk {line['key']}: worker lost{stage}, attempt {line['attempt']} of 4\n" in done.stderr


@pytest.mark.slow
def test_a05_workers_killed_between_files_of_a_chunk_are_replaced(toy: Path, golden: dict[str, str], tmp_path: Path) -> None:
    points = tmp_path / "points"
    mortal = environment(points, "half:/masks.zarr/score/c/0", "before:/parts/", "before:/receipts/")
    done = subprocess.run(begin(toy, "--cluster", "local:2"), env=mortal, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unmet(points) == []
    assert results(toy / "run") == golden
    assert invoke("verify", toy / "run")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a07_a_polite_stop_drains_and_says_how_to_go_on(
    slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out), 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"chunks done; resume with `eo-batch resume {out}`" in errors.decode()
    assert not list(out.rglob("*.partial"))
    status = told(tmp_path)
    assert status["state"] == "stopped"
    assert 2 <= status["finished"] < status["total"] == SLOW_CHUNKS
    assert invoke("resume", out, "--quiet")[0] == 0
    assert file_digests(out) == slow_golden


def test_a07_a_second_ctrl_c_ends_at_once(slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out), 2)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: process.poll() is not None, 0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), errors
    assert not (out / "COMPLETE.json").exists()
    assert invoke("resume", out, "--quiet")[0] == 0
    assert file_digests(out) == slow_golden


POINTS = {
    "before the merge": "before:footprints.parquet",
    "in the merge": "half:footprints.parquet",
    "after the merge": "after:footprints.parquet",
    "before publishing": "before:/stac/",
    "in publishing": "half:/stac/",
    "before the marker": "before:COMPLETE.json",
    "in the marker": "half:COMPLETE.json",
}


@pytest.mark.parametrize("point", POINTS)
def test_a08_a_driver_killed_while_it_publishes_leaves_no_marker_and_resume_publishes(
    golden_run: Path, golden: dict[str, str], tmp_path: Path, point: str
) -> None:
    toy = tmp_path
    merged(golden_run, toy / "run", POINTS[point])
    assert not (toy / "run" / "COMPLETE.json").exists()
    assert told(toy)["state"] == "stopped"
    assert verify_run(toy / "run").problems == ()
    finishes(toy, golden)
    assert file_digests(toy / "run") == file_digests(golden_run)


def test_a08_a_driver_killed_after_the_marker_leaves_a_complete_run(golden_run: Path, tmp_path: Path) -> None:
    merged(golden_run, tmp_path / "run", "after:COMPLETE.json")
    assert told(tmp_path)["state"] == "complete"
    assert file_digests(tmp_path / "run") == file_digests(golden_run)


def merged(golden_run: Path, out: Path, point: str) -> None:
    """A run with all chunks that is merged by a child which dies at `point`."""
    shutil.copytree(golden_run, out)
    (out / "COMPLETE.json").unlink()
    (out / "footprints.parquet").unlink()
    shutil.rmtree(out / "stac")
    environment(out.parent / "points", point)
    child = os.fork()
    if child == 0:
        install(out.parent / "points")
        try:
            invoke("resume", out, "--cluster", "serial", "--quiet")
        finally:
            os._exit(70)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the point was never met"
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a08_a_driver_killed_twice_loses_nothing(slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    kills = 0
    command = eo_batch("run", slow_toy / "pipeline.toml", "--out", out)
    for count in (1, 4):
        process = start_until(out, command, count)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not (out / "COMPLETE.json").exists()
        command = eo_batch("resume", out)
    assert kills == 2
    assert receipts(out) >= 5
    assert invoke("resume", out, "--quiet")[0] == 0
    assert file_digests(out) == slow_golden
