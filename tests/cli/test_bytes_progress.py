"""What is said while bytes come or go."""

from __future__ import annotations

import pytest

from eo_batch.cli import bytes_progress
from eo_batch.cli.bytes_progress import BytesProgress

MB = 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that only a test moves."""
    now = [100.0]
    monkeypatch.setattr(bytes_progress.time, "monotonic", lambda: now[0])
    return now


def work(progress: BytesProgress, clock: list[float], *, seconds: int) -> None:
    for second in range(seconds + 1):
        progress.tell("downloading a.pth", second * MB, seconds * MB)
        clock[0] += 1


def test_work_of_two_seconds_is_silent(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with BytesProgress(quiet=False) as progress:
        work(progress, clock, seconds=1)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_line_comes_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with BytesProgress(quiet=False) as progress:
        work(progress, clock, seconds=30)
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"downloading a.pth: {n}.0 of 30.0 MB" for n in (2, 12, 22)]
    assert out == ""


def test_quiet_is_quiet(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with BytesProgress(quiet=True) as progress:
        work(progress, clock, seconds=30)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_for_each_thing_and_no_control_character_of_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(bytes_progress, "QUIET_S", 0.0)
    with BytesProgress(quiet=False) as progress:
        progress.tell("downloading \x1b]0;owned\x07", 3 * MB, 10 * MB)
        progress._bar.refresh()
        progress.tell("writing", 1 * MB, 4 * MB)
        progress._bar.refresh()
        assert [task.description for task in progress._bar.tasks] == ["writing"]
    shown = capsys.readouterr().err
    assert "3.0/10.0 MB" in shown
    assert "1.0/4.0 MB" in shown
    assert "\x1b]0" not in shown
