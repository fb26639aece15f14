"""Drivers as processes of their own: started, waited for, and several commands in one of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TALKATIVE = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
from eo_batch.sources import http
from eo_batch.sources.asset_errors import Retry
http.FIRST_WAIT_S = 0.0
Retry.wait_s = lambda self, *waits: 0.0
from eo_batch.cli.main import entry
statuses = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["eo-batch", *arguments]
    try:
        entry()
    except SystemExit as left:
        statuses.append(left.code)
print(json.dumps(statuses))
"""


def eo_batch(*arguments: object) -> list[str]:
    """A command line that starts a process."""
    return [sys.executable, "-m", "eo_batch.cli", *map(str, arguments)]


def receipts(out: Path) -> int:
    """Receipts of a run."""
    return sum(1 for _ in (out / "receipts").rglob("*.json")) if (out / "receipts").exists() else 0


def wait_until(true: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether `true` became so in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def start_until(out: Path, command: Sequence[str], count: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a run and return when it has `count` receipts more than before, or has ended."""
    goal = receipts(out) + count
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)
    wait_until(lambda: receipts(out) >= goal or process.poll() is not None)
    return process


def one_after_the_other(commands: Sequence[Sequence[object]], env: dict[str, str], cwd: Path) -> tuple[list[int], str]:
    """(exit statuses, everything printed) of commands in one process, every logger talking: starting Python takes longest."""
    asked = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", TALKATIVE, asked], env=env, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr
