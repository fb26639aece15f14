"""Chaos for a while: workers and drivers die at random, the server fails at random, and the map is the same, byte for byte.

What dies when, and which request fails how, comes from one seed; what it meets does not, so no two soaks are alike.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from drivers import eo_batch, receipts
from rundigest import file_digests
from servers.files import Fault, FileServer
from toy import make_toy, toy_pipeline
from wholerun import invoke, over_http

FAULTS = (Fault("status", 500), Fault("status", 503), Fault("reset"), Fault("short"), Fault("clean-short"))
SHARE = 0.1
"""Of the requests for pixels that the server answers with a fault."""


@pytest.mark.parametrize(
    ("size", "chunks", "workers", "life_s", "drivers"),
    [
        pytest.param(300, 25, 2, 6.0, 1, id="short", marks=pytest.mark.slow),
        pytest.param(950, 196, 4, 5.0, 3, id="long", marks=pytest.mark.slow),
    ],
)
def test_a05_c09_chaos_for_a_while_ends_in_the_same_bytes(
    tmp_path: Path, size: int, chunks: int, workers: int, life_s: float, drivers: int
) -> None:
    make_toy(tmp_path, dates=1, size=size)
    settings = "[model.options]\ncost = 60\n[limits]\nmax_failed_percent = 100\n[output]"
    text = toy_pipeline(size=size, chunk_px=64, prompts=("bright",)).replace("[output]", settings)
    (tmp_path / "pipeline.toml").write_text(text)
    draw = random.Random(20)
    served: list[Fault] = []

    def choose(path: str, stop: int) -> Fault | None:
        if not path.endswith(".tif") or draw.random() >= SHARE:
            return None
        served.append(draw.choice(FAULTS))
        return served[-1]

    with FileServer(tmp_path) as server:
        over_http(tmp_path, server)
        begin = ("run", tmp_path / "pipeline.toml", "--quiet")
        golden = tmp_path / "golden"
        assert invoke(*begin, "--out", golden, "--cluster", "serial")[0] == 0
        assert receipts(golden) >= chunks * 0.9
        server.choose = choose
        out, kills, sittings = tmp_path / "run", [0, 0], 0
        cluster = ("--cluster", f"local:{workers}", "--quiet")
        deaths = random.Random(21)
        while True:
            command = (
                eo_batch("resume", out, *cluster) if (out / "request.json").exists() else eo_batch(*begin, "--out", out, *cluster)
            )
            goal = (sittings + 1) * receipts(golden) // (drivers + 1) if sittings < drivers else None
            status = sitting(command, out, goal, deaths, life_s, kills)
            sittings += 1
            if status == 0:
                break
            assert status in (3, 4, -signal.SIGKILL), out.with_suffix(".log").read_text()
            assert sittings < 20
    assert file_digests(out) == file_digests(golden)
    assert kills[1] >= 1
    told = f"{kills[0]} workers and {kills[1]} drivers killed, {len(served)} requests failed, {sittings - 1} resumes"
    print(f"{receipts(out)} chunks, {workers} workers: {told}, same bytes")


def sitting(command: list[str], out: Path, goal: int | None, deaths: random.Random, life_s: float, kills: list[int]) -> int:
    """One driver, whose workers are killed every few seconds, and itself once there are `goal` receipts; its exit status."""
    log = out.with_suffix(".log")
    with log.open("wb") as told:
        driver = subprocess.Popen(command, stdout=told, stderr=told)
    due = time.monotonic() + deaths.expovariate(1 / life_s)
    try:
        while driver.poll() is None:
            if goal is not None and receipts(out) >= goal:
                driver.kill()
                kills[1] += 1
                break
            if time.monotonic() > due:
                due = time.monotonic() + deaths.expovariate(1 / life_s)
                kills[0] += kill_one(driver.pid, deaths)
            time.sleep(0.02)
    finally:
        if driver.poll() is None:
            driver.kill()
        driver.wait()
    return driver.returncode


def kill_one(driver: int, deaths: random.Random) -> int:
    """Kill one worker process of a driver; how many that were."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [each.pid for each in psutil.Process(driver).children() if "spawn_main" in " ".join(each.cmdline())]
        workers = [pid for pid in found if "resource_tracker" not in " ".join(psutil.Process(pid).cmdline())]
        if workers:
            os.kill(deaths.choice(workers), signal.SIGKILL)
            return 1
    return 0
