"""B: memory, disk and files that run out. Refused before it starts, or stopped with all that is finished safe."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from drivers import eo_batch, receipts, start_until
from rundigest import file_digests
from wholerun import BBOX, SLOW_CHUNKS, finishes, hostile, invoke, refused, results, run, spoil, told


@pytest.mark.parametrize(
    ("table", "setting"), [("[limits]\nmemory_gb = 0.01", "memory_gb"), ("[limits]\ndisk_gb = 0.00001", "disk")]
)
def test_b01_a_run_that_does_not_fit_is_refused_by_its_plan(toy: Path, table: str, setting: str) -> None:
    spoil(toy, "[output]", f"{table}\n[output]")
    line = refused(toy, 7, "plan-too-big: ", setting)
    assert any(advice in line for advice in ("limits.memory_gb", "Free space")), line
    assert invoke("plan", toy / "pipeline.toml", "--cluster", "serial")[0] == 7


MANY = 100_000
COUNT = """
import json, resource, sys
from eo_batch.run import merge, sitting
from eo_batch.run.told.events import silent
from eo_batch.run.generations import Generation
from eo_batch.run.told import status
from eo_batch.run.manifest import read_inputs
store = Generation(sys.argv[1])
inputs = read_inputs(store)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = status.run_status(store.where)
seat = sitting.Sitting(store, inputs, silent, 0)
marker = merge.marker_of(store, inputs, failed=0, rows={})
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([found.finished, seat.finished, marker["chunks"]["done"], before / 1e3, after / 1e3]))
"""


@pytest.mark.slow
def test_b03_a_driver_holds_the_receipts_of_100_000_chunks_in_500_megabytes(golden_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    subprocess.run(["cp", "-r", str(golden_run), str(out)], check=True)
    first = next((out / "receipts").rglob("*.json"))
    written = json.loads(first.read_bytes())
    program = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from eo_batch.core.digest import canonical_json
        from eo_batch.core.records import ChunkReceipt
        folder, document, many = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
        facts = document["facts"]
        for number in range(many):
            key = f"t0001/y{number // 400:04d}_x{number % 400:04d}"
            receipt = ChunkReceipt(
                key, facts["status"], facts["files"], tuple(facts["items"]), (), 1, 1, 1, telemetry=document["telemetry"]
            )
            path = folder / f"{key}.json"
            path.parent.mkdir(exist_ok=True)
            written = {"facts": receipt.facts, "digest": receipt.digest, "telemetry": document["telemetry"]}
            path.write_bytes(canonical_json(written))
        """
    )
    subprocess.run([sys.executable, "-c", program, str(out / "receipts"), json.dumps(written), str(MANY)], check=True)
    told = subprocess.run([sys.executable, "-c", COUNT, str(out)], check=True, capture_output=True, text=True).stdout
    finished, seated, done, before, after = json.loads(told.splitlines()[-1])
    assert finished == done == MANY + receipts(golden_run)
    assert seated == receipts(golden_run), "receipts of no planned chunk count for nothing"
    print(f"driver before {before:.0f} MB, with {MANY:,} receipts {after:.0f} MB")
    assert after < 500


@pytest.mark.parametrize("name", ["receipts/", "COMPLETE.json", "footprints.parquet"])
def test_b05_a_disk_that_is_full_for_a_receipt_or_the_marker_leaves_no_half_file(
    toy: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    met: list[str] = []

    def full(operation):
        def guarded(source, target, **more):
            if name in str(target):
                met.append(str(target))
                raise OSError(errno.ENOSPC, "No space left on device")
            return operation(source, target, **more)

        return guarded

    with monkeypatch.context() as patch:
        for operation in ("link", "rename", "replace"):
            patch.setattr(os, operation, full(getattr(os, operation)))
        status, _, err = run(toy)
    assert met, "the disk was never full"
    assert (status, err.count("\n")) == (7, 1), err
    assert err.startswith("disk-full: ")
    assert not (toy / "run" / "COMPLETE.json").exists()
    assert all(path.stat().st_size > 0 for path in (toy / "run").rglob("*.json"))
    assert told(toy)["state"] == "stopped"
    finishes(toy, golden)


@pytest.mark.usefixtures("hostile_segmenter")
def test_b06_memory_that_is_missing_at_the_start_is_told_before_the_run(toy: Path) -> None:
    hostile(toy, "memory", sound=0)
    refused(toy, 7, "model-oom: ", "batch")


@pytest.mark.usefixtures("hostile_segmenter")
def test_b06_memory_that_runs_out_later_fails_its_chunks_and_never_makes_a_smaller_batch(toy: Path) -> None:
    hostile(toy, "memory", sound=6)
    status, _, err = run(toy)
    assert status == 3
    assert all("model-oom: " in line and "batch" in line for line in err.splitlines()), err
    assert 0 < told(toy)["finished"] < told(toy)["total"]


def test_b08_64_open_files_are_enough(toy: Path, golden: dict[str, str]) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    command = eo_batch("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "serial", "--quiet")
    done = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=few_files)
    assert done.returncode == 0, done.stderr
    assert results(toy / "run") == golden


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_b04_a_disk_that_fills_up_is_one_clear_error_and_resume_goes_on(
    slow_toy: Path, slow_golden: dict[str, str], small_disk: Path
) -> None:
    out = small_disk / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out), 3)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 7, errors
    assert b"disk-full" in errors
    assert b"resume" in errors
    assert not (out / "COMPLETE.json").exists()
    for path in out.rglob("*.json"):
        assert path.stat().st_size > 0, path
    filler.unlink()
    assert 3 <= receipts(out) < SLOW_CHUNKS
    assert invoke("resume", out, "--quiet")[0] == 0
    assert file_digests(out) == slow_golden


def test_b01_a_disk_that_is_too_small_is_refused_by_the_plan(toy: Path, small_disk: Path) -> None:
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(shutil.disk_usage(small_disk).free - 40_000))
    status, _, err = invoke("run", toy / "pipeline.toml", "--out", small_disk / "run", "--cluster", "serial", "--quiet")
    assert (status, err.count("\n")) == (7, 1), err
    assert err.startswith("plan-too-big: ")
    assert not (small_disk / "run").exists()


@pytest.fixture
def few_names(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 40 files."""
    place = tmp_path / "few"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=40", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system with few names cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_b10_a_disk_without_room_for_names_is_a_full_disk(toy: Path, golden: dict[str, str], few_names: Path) -> None:
    out = few_names / "run"
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:  # a driver that ends, as it could not say so
        command = ("run", toy / "pipeline.toml", "--out", out, "--cluster", "serial", "--quiet")
        status, _, err = apart.submit(invoke, *command).result()
    assert status == 7
    assert err.splitlines()[-1].startswith("disk-full: "), err
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(few_names)], check=True)
    again = "resume" if (out / "request.json").exists() else "run"
    more = () if again == "resume" else ("--out", out)
    target = out if again == "resume" else toy / "pipeline.toml"
    assert invoke(again, target, *more, "--cluster", "serial", "--quiet")[0] == 0
    assert results(out) == golden


def test_b01_more_chunks_than_can_be_planned_are_refused_at_once(toy: Path) -> None:
    spoil(toy, BBOX, "bbox = [-180, -90, 180, 90]")
    refused(toy, 7, "plan-too-big: toy: ", "chunks (limit", "grid.resolution")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written, by root neither where a file system can be mounted."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.geteuid():
        yield folder
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("root may write everywhere, and no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_b09_a_folder_that_may_not_be_written_is_refused(toy: Path, read_only: Path) -> None:
    status, out, err = invoke("run", toy / "pipeline.toml", "--out", read_only / "run", "--cluster", "serial", "--quiet")
    assert (status, out, err.count("\n")) == (7, "", 1)
    assert err.startswith("store-denied: ")
    assert f"Give this user the right to read and write `{read_only}/run`" in err
    assert list(read_only.iterdir()) == []


def test_b09_a_file_in_the_place_of_the_run_is_refused_and_kept(toy: Path) -> None:
    (toy / "run").write_text("mine")
    for arguments in (
        ("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet"),
        ("resume", toy / "run"),
        ("status", toy / "run"),
    ):
        status, out, err = invoke(*arguments)
        assert (status, out, err.count("\n")) == (7, "", 1)
        assert err == f"store-denied: {toy}/run: a file is where a folder must be. Give the path of a folder.\n"
    assert (toy / "run").read_text() == "mine"


def test_b09_a_folder_with_other_files_is_refused_and_kept(toy: Path) -> None:
    (toy / "run").mkdir()
    (toy / "run" / "footprints.parquet").write_text("mine")
    status, out, err = run(toy)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert 'holds other files, such as "footprints.parquet". Give a new or empty folder as --out.' in err
    assert [path.name for path in (toy / "run").iterdir()] == ["footprints.parquet"]
    assert (toy / "run" / "footprints.parquet").read_text() == "mine"
