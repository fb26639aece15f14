"""Every operation of the store fails once: kill, full disk, torn write, I/O error. Then resume gives the same bytes.

Each cycle forks a child that suffers the fault at operation n, checks what a reader would see, resumes in this process
and compares every byte with an undisturbed run. `EO_BATCH_FAULT_STEP` sets how many operations lie between two tries;
`make faults` runs with step 1.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import EoBatchError
from eo_batch.outputs.disk import Disk
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run

STEP = int(os.environ.get("EO_BATCH_FAULT_STEP", "41"))
OPERATIONS = ("_write", "_fsync", "_rename", "_link", "_fsync_directory")
KINDS = ("kill", "full", "torn", "eio")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=260)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=260, prompts=("bright",)))
    return folder


@pytest.fixture(scope="module")
def golden(toy: Path) -> dict[str, str]:
    out = toy / "golden"
    assert start_run(load_pipeline(toy / "pipeline.toml"), out, executor="serial").exit_status == 0
    return file_digests(out)


@pytest.fixture(scope="module")
def operations(toy: Path, golden: dict[str, str]) -> int:
    """Store operations of an undisturbed run."""
    out = toy / "counted"
    count = suffer(lambda: begin(toy, out), kind="none", at=0)
    assert file_digests(out) == golden
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_operation_loses_nothing(toy: Path, golden: dict[str, str], operations: int, kind: str) -> None:
    cycles = 0
    for at in range(1 + KINDS.index(kind), operations + 1, STEP):
        out = toy / f"{kind}-{at}"
        suffer(lambda out=out: begin(toy, out), kind=kind, at=at)  # type: ignore[misc]
        check_visible(out)
        if (out / "request.json").exists():
            resume_run(out, executor="serial")
        else:
            start_run(load_pipeline(toy / "pipeline.toml"), out, executor="serial")
        assert file_digests(out) == golden, f"{kind} at operation {at}"
        cycles += 1
    assert cycles >= 3
    print(f"{kind}: {cycles} cycles over {operations} operations")


def check_visible(out: Path) -> None:
    """A reader is never shown a damaged or half-written result."""
    if not (out / "request.json").exists():
        return
    status = run_status(out)
    if (out / "manifest.json").exists():
        found = verify_run(out)
        assert not found.problems, found.problems
        assert (status.state == "complete") == found.complete


def begin(toy: Path, out: Path) -> None:
    start_run(load_pipeline(toy / "pipeline.toml"), out, executor="serial")


def suffer(work: Callable[[], None], *, kind: str, at: int) -> int:
    """Do `work` in a forked child that meets one fault; the number of operations it got to."""
    counter, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(counter)
        code = 70
        try:
            count = install(kind, at)
            try:
                work()
                code = 0
            except EoBatchError as error:
                code = error.exit_status
            os.write(report, str(count()).encode())
        finally:
            os._exit(code)
    os.close(report)
    with os.fdopen(counter) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if kind in ("kill", "torn"):
        assert os.WIFSIGNALED(status)
    elif kind == "full":
        assert os.waitstatus_to_exitcode(status) in (0, 7)  # after the marker there are only notes beside the run
    elif kind == "eio":
        assert os.waitstatus_to_exitcode(status) in (0, 7)  # an error while a lease beats or a failure is noted is survived
    else:
        assert os.waitstatus_to_exitcode(status) == 0
    return int(text or 0)


def install(kind: str, at: int) -> Callable[[], int]:
    """Make operation number `at` of this process fail; returns a counter of operations so far."""
    seen = 0

    def wrap(name: str) -> None:
        original = getattr(Disk, name)

        def operation(self: Disk, *args: Any) -> Any:
            nonlocal seen
            place = str(getattr(args[0], "name", args[0]))
            if "/lease" in place or "/events" in place:
                return original(self, *args)  # beat and journal have their own threads: counting them would make n ambiguous
            seen += 1
            if seen == at or (kind == "full" and seen > at > 0):
                fail(kind, name, original, self, args)
            return original(self, *args)

        setattr(Disk, name, operation)

    for name in OPERATIONS:
        wrap(name)
    return lambda: seen


def fail(kind: str, name: str, original: Callable[..., Any], disk: Disk, args: tuple[Any, ...]) -> None:
    if kind == "torn" and name == "_write":
        file, data = args
        file.write(data[: len(data) // 2])
        file.flush()
    if kind in ("kill", "torn"):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":
        raise OSError(errno.ENOSPC, "no space left")
    if kind == "eio":
        raise OSError(errno.EIO, "input/output error")
