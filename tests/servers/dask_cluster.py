"""A Dask scheduler and its workers, each a process of its own on loopback, as a user would start them with `dask`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 90.0


class DaskCluster:
    """Processes of one cluster; all of them are ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start("scheduler", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--host", "127.0.0.1")
        self.address = self._wait_for(self._address)

    def add_worker(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a worker of one thread; returns when the scheduler has it."""
        name = f"w{len(self.workers)}"
        fixed = ("--nthreads", "1", "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--name", name)
        process = self._start("worker", self.address, *fixed, "--local-directory", str(self.folder), *arguments, name=name)
        self.workers.append(process)
        log = self.folder / f"{name}.log"
        self._wait_for(lambda: "Starting established connection" in log.read_text() or None)
        return process

    def stop(self) -> None:
        """End every process that is left, politely first."""
        left = [process for process in (*self.workers, self.scheduler) if process.poll() is None]
        for process in left:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in left:
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, kind: str, *arguments: str, name: str = "scheduler") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _address(self) -> str | None:
        text = (self.folder / "scheduler.log").read_text()
        return next((line.split()[-1] for line in text.splitlines() if "Scheduler at:" in line), None)

    def _wait_for(self, ask):  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if (answer := ask()) is not None:
                return answer
            time.sleep(0.05)
        raise TimeoutError("".join(path.read_text() for path in self.folder.glob("*.log")))


@contextmanager
def dask_cluster(folder: Path, *, workers: int = 0) -> Iterator[DaskCluster]:
    """A running cluster with so many workers."""
    folder.mkdir(parents=True, exist_ok=True)
    cluster = DaskCluster(folder)
    try:
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        cluster.stop()
