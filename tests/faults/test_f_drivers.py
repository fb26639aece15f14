"""F: two drivers, clocks, and runs that are not what they were. One writer at a time, and nothing is gone on with by mistake."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from drivers import eo_batch, receipts, start_until, wait_until
from rundigest import file_digests
from wholerun import finishes, invoke, results, resume, run

from eo_batch.core.records import FORMAT
from eo_batch.run import lease


def test_f01_of_two_drivers_at_once_exactly_one_makes_the_run(
    slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path
) -> None:
    command = eo_batch("run", slow_toy / "pipeline.toml", "--out", tmp_path / "run", "--cluster", "serial", "--quiet")
    drivers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    told = {driver.communicate()[1]: driver.returncode for driver in drivers}
    assert sorted(driver.returncode for driver in drivers) == [0, 6], told
    line = next(text for text, status in told.items() if status == 6)
    assert line.startswith(b"run-locked: ")
    assert line.count(b"\n") == 1
    assert file_digests(tmp_path / "run") == slow_golden


def test_f01_a_driver_that_works_is_named_to_the_second(slow_toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out, "--cluster", "serial"), 1)
    try:
        status, _, err = invoke("resume", out, "--quiet")
        assert (status, err.count("\n")) == (6, 1)
        assert f"pid {process.pid}" in err
    finally:
        process.kill()
        process.communicate()


def test_f02_a_driver_that_slept_while_another_took_over_stops_without_a_marker(
    slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    first = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out, "--cluster", "serial"), 2)
    try:
        first.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(lease, "_pid_namespace", lambda: "pid:[1]")  # the second driver is in another container
        assert lease.acquire.__kwdefaults__ is not None
        monkeypatch.setitem(lease.acquire.__kwdefaults__, "patience_s", 0.5)
        status, _, err = invoke("resume", out, "--cluster", "serial")
        assert status == 0, err
        assert "another driver" in err
        marker = (out / "COMPLETE.json").stat()
    finally:
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=120)
    assert first.returncode == 6, errors
    assert b"lease-lost: " in errors
    assert b"another driver took over (epoch 2, this one is 1)" in errors
    assert (out / "COMPLETE.json").stat().st_mtime_ns == marker.st_mtime_ns
    assert file_digests(out) == slow_golden


def test_f03_a_clock_that_jumps_by_days_changes_nothing(
    toy: Path, golden: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = time.time, itertools.count()

    def jumping() -> float:
        return real() + (86_400.0 if next(asked) % 2 else -86_400.0)

    kept = (toy / "b1_nir.tif").read_bytes()
    (toy / "b1_nir.tif").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        assert run(toy)[0] == 3
        (toy / "b1_nir.tif").write_bytes(kept)
        finishes(toy, golden)


def test_f05_a_run_is_never_started_twice_nor_resumed_from_another_pipeline(toy: Path, golden: dict[str, str]) -> None:
    assert run(toy)[0] == 0
    status, out, err = run(toy)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{toy}/run: this folder already holds a run. Continue it with eo-batch resume {toy}/run" in err
    for old, new, parts in (
        ("threshold = 0.5", "threshold = 0.6", ["prompts-changed: ", '"bright" >= 0.5 became "bright" >= 0.6']),
        ("resolution = 10", "resolution = 20", ["spec-changed: grid.resolution: 10.0 became 20.0"]),
    ):
        changed = toy / "changed.toml"
        changed.write_text((toy / "pipeline.toml").read_text().replace(old, new))
        for arguments in (
            ("run", changed, "--out", toy / "run", "--quiet"),
            ("resume", toy / "run", "--pipeline", changed, "--quiet"),
        ):
            status, out, err = invoke(*arguments)
            assert (status, out, err.count("\n")) == (8, "", 1)
            assert all(part in err for part in [*parts, "Start a new run"]), err
    assert results(toy / "run") == golden
    assert json.loads(invoke("verify", toy / "run", "--json")[1])["ok"]


def test_a_folder_without_a_run_cannot_be_resumed_and_is_not_made(toy: Path) -> None:
    status, out, err = invoke("resume", toy / "nothing")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"config-invalid: {toy}/nothing: there is no run in this folder. Start one: ")
    assert not (toy / "nothing").exists()


def test_f06_weights_of_the_same_name_that_became_others_are_refused(toy: Path, golden: dict[str, str]) -> None:
    """The segmenter of the toy has no files: its digest is that of its algorithm and options."""
    kept = (toy / "b1_nir.tif").read_bytes()
    (toy / "b1_nir.tif").unlink()
    assert run(toy)[0] == 3
    (toy / "b1_nir.tif").write_bytes(kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eo_batch.models.probe.ALGORITHM", "window-mean/2")
        status, _, err = resume(toy)
    assert (status, err.count("\n")) == (8, 1)
    assert err.startswith("weights-changed: ")
    finishes(toy, golden)


@pytest.mark.parametrize(("step", "code"), [(-1, "format-newer: "), (1, "format-older: ")])
def test_f08_a_run_of_another_format_is_refused_by_its_number(
    toy: Path, monkeypatch: pytest.MonkeyPatch, step: int, code: str
) -> None:
    assert run(toy)[0] == 0
    before = file_digests(toy / "run")
    monkeypatch.setattr("eo_batch.run.manifest.FORMAT", FORMAT + step)
    status, _, err = resume(toy)
    assert (status, err.count("\n")) == (8, 1)
    assert code in err
    assert f"format {FORMAT}" in err
    assert file_digests(toy / "run") == before


def test_f09_a_receipt_that_was_edited_is_named_and_repaired(toy: Path, golden: dict[str, str]) -> None:
    assert run(toy)[0] == 0
    receipt = toy / "run" / "receipts" / "t0000" / "y0001_x0000.json"
    receipt.write_text(receipt.read_text().replace('"polygons":', '"polygons":1'))
    status, out, _ = invoke("verify", toy / "run", "--json")
    found = json.loads(out)
    assert status == 5
    assert ("receipt-mismatch", "t0000/y0001_x0000") in {(each["code"], each["key"]) for each in found["problems"]}
    assert resume(toy, "--repair")[0] == 0
    assert results(toy / "run") == golden
    assert invoke("verify", toy / "run")[0] == 0


@pytest.mark.slow
def test_f12_a_run_that_changes_its_cluster_in_between_has_the_same_bytes(
    slow_toy: Path, slow_golden: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out, "--cluster", "serial"), 3)
    process.kill()
    process.communicate()
    process = start_until(out, eo_batch("resume", out, "--cluster", "local:2"), 3)
    process.kill()
    process.communicate()
    assert receipts(out) >= 6
    assert wait_until(lambda: invoke("resume", out, "--cluster", "local", "--workers", 3, "--quiet")[0] == 0)
    assert file_digests(out) == slow_golden
