"""A rethreshold that is killed or meets a full disk at any operation: the old run stays, resume gives the same bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commandline import invoke
from faults.test_operations import STEP, install
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import EoBatchError
from eo_batch.run.driver import start_run
from eo_batch.run.later.rethreshold import next_version, rethreshold
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run

CHANGES = {"bright": 0.42}
KINDS = ("kill", "full")
APART = STEP if STEP == 1 else 2 * STEP


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=260)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=260, prompts=("bright",)))
    assert start_run(load_pipeline(folder / "pipeline.toml"), folder / "old", executor="serial").exit_status == 0
    return folder / "old"


@pytest.fixture(scope="module")
def golden(old: Path) -> dict[str, str]:
    return file_digests(Path(rethreshold(old, CHANGES, old.parent / "golden", executor="serial").path))


@pytest.fixture(scope="module")
def operations(old: Path, golden: dict[str, str]) -> int:
    """Store operations of an undisturbed rethreshold."""
    count = suffer(old, old.parent / "counted", kind="none", at=0)
    assert file_digests(old.parent / "counted") == golden
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_operation_loses_nothing(old: Path, golden: dict[str, str], operations: int, kind: str) -> None:
    was = {path: path.stat() for path in old.rglob("*") if path.is_file()}
    before = file_digests(old)
    cycles = 0
    for at in range(12 + KINDS.index(kind), operations + 1, APART):
        new = old.parent / f"{kind}-{at}"
        suffer(old, new, kind=kind, at=at)
        if (new / "manifest.json").exists():
            found = verify_run(new)
            assert not found.problems, found.problems
            assert (run_status(new).state == "complete") == found.complete
        if (new / "request.json").exists():
            assert invoke("resume", new, "--cluster", "serial", "--quiet")[0] == 0
        else:
            rethreshold(old, CHANGES, new, executor="serial")
        assert file_digests(new) == golden, f"{kind} at operation {at}"
        assert not list(new.rglob("*.partial"))
        cycles += 1
    assert cycles >= 2
    assert file_digests(old) == before
    for path, status in was.items():
        now = path.stat()
        assert (now.st_ino, now.st_mtime_ns, now.st_size) == (status.st_ino, status.st_mtime_ns, status.st_size)
    print(f"{kind}: {cycles} cycles over {operations} operations")


def test_what_an_attempt_left_that_never_began_is_taken_up_by_the_next(old: Path, golden: dict[str, str]) -> None:
    seen = set()
    for at in range(1, 60):  # ends with the request
        new = old.parent / f"attempt-v{at + 1}"
        suffer(old, new, kind="kill", at=at)
        left = tuple(path for path in ("derived.json", "items.parquet", "request.json") if (new / path).exists())
        free = next_version(old.parent / f"attempt-v{at}")
        assert (free == str(new)) == (left in (("derived.json",), ("derived.json", "items.parquet")))
        if "request.json" not in left and left not in seen:
            assert file_digests(Path(rethreshold(old, CHANGES, new, executor="serial").path)) == golden
        seen.add(left)
        if "request.json" in left:
            break
    assert seen == {(), ("derived.json",), ("derived.json", "items.parquet"), ("derived.json", "items.parquet", "request.json")}


def suffer(old: Path, new: Path, *, kind: str, at: int) -> int:
    """Rethreshold in a forked child that meets one fault; the number of operations it got to."""
    counter, report = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(counter)
        code = 70
        try:
            count = install(kind, at)
            try:
                rethreshold(old, CHANGES, new, executor="serial")
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
    if kind == "kill":
        assert os.WIFSIGNALED(status)
    else:
        assert os.waitstatus_to_exitcode(status) == (7 if kind == "full" else 0)
    return int(text or 0)
