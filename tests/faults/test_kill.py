"""The command line, killed without warning and resumed; stopped politely; and on a disk that is too small."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline

CHUNKS = 25


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1)
    (folder / "pipeline.toml").write_text(toy_pipeline(chunk_px=80).replace("[output]", "[model.options]\ncost = 600\n[output]"))
    return folder


@pytest.fixture(scope="module")
def golden(toy: Path) -> dict[str, str]:
    summary = start_run(load_pipeline(toy / "pipeline.toml"), toy / "golden")
    assert (summary.exit_status, summary.total) == (0, CHUNKS)
    return file_digests(toy / "golden")


def eo_batch(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "eo_batch.cli", *map(str, arguments)]


def receipts(out: Path) -> int:
    return sum(1 for _ in (out / "receipts").rglob("*.json")) if (out / "receipts").exists() else 0


def start_until(out: Path, command: list[str], count: int) -> subprocess.Popen:
    """Start a run and return when it has `count` receipts more than before."""
    goal = receipts(out) + count
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while receipts(out) < goal and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


def test_killed_three_times_and_resumed_the_bytes_are_those_of_an_undisturbed_run(
    toy: Path, golden: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    kills = 0
    command = eo_batch("run", toy / "pipeline.toml", "--out", out)
    for count in (1, 4, 3):
        process = start_until(out, command, count)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not (out / "COMPLETE.json").exists()
        command = eo_batch("resume", out)
    assert kills == 3
    assert subprocess.run(eo_batch("resume", out), check=False, capture_output=True).returncode == 0
    assert file_digests(out) == golden


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_drains_and_says_how_to_go_on(
    toy: Path, golden: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", toy / "pipeline.toml", "--out", out), 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"eo-batch resume" in errors
    assert not list(out.rglob("*.partial"))
    status = json.loads(subprocess.run(eo_batch("status", out, "--json"), check=True, capture_output=True).stdout)
    assert status["state"] == "stopped"
    assert 2 <= status["finished"] < status["total"] == CHUNKS
    assert subprocess.run(eo_batch("resume", out), check=False, capture_output=True).returncode == 0
    assert file_digests(out) == golden
