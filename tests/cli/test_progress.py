"""What a run tells while it works."""

from __future__ import annotations

import json

import pytest

from eo_batch.cli.progress import Progress
from eo_batch.run.told.events import Event


def test_json_events_are_one_object_per_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=True, quiet=True) as progress:
        progress.tell(Event("start", "2 chunks", 0, 2))
        progress.tell(Event("chunk", "chunk \x1b[2J", 1, 2, 3.5, {"key": "t0000/y0000_x0000"}))
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines] == ["start", "chunk"]
    assert lines[1]["data"] == {"key": "t0000/y0000_x0000"}
    assert (lines[1]["done"], lines[1]["total"], lines[1]["km2"]) == (1, 2, 3.5)
    assert "\x1b" not in out
    assert err == ""


def test_quiet_still_says_warnings_and_failures(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=False, quiet=True) as progress:
        progress.tell(Event("search", "asking"))
        progress.tell(Event("warning", "took over from pid 12"))
        progress.tell(Event("failure", "chunk t0000/y0000_x0000 failed: asset-corrupt"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["warning: took over from pid 12", "failure: chunk t0000/y0000_x0000 failed: asset-corrupt"]


def test_a_reason_why_many_chunks_fail_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=False, quiet=True) as progress:
        for x in range(3):
            text = f"chunk t0000/y0000_x000{x} failed: asset-corrupt: {'long ' * 20}"
            progress.tell(Event("failure", text, data={"code": "asset-corrupt"}))
    lines = capsys.readouterr().err.splitlines()
    assert [line.count("long") for line in lines] == [20, 0, 0]
    assert lines[2] == "failure: chunk t0000/y0000_x0002 failed, too: asset-corrupt"


def test_without_a_terminal_chunks_do_not_flood_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=False, quiet=False) as progress:
        progress.tell(Event("start", "1,000 of 1,000 chunks to do", 0, 1000))
        for done in range(1, 1001):
            progress.tell(Event("chunk", "chunk", done, 1000, done * 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("chunk 1,000 of 1,000")


def test_on_a_terminal_there_is_a_bar_with_chunks_and_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(as_json=False, quiet=False) as progress:
        progress.tell(Event("search", "12 \x1b]0;owned\x07 items"))
        progress.tell(Event("start", "4 chunks", 0, 4))
        progress.tell(Event("chunk", "chunk", 2, 4, 50.0))
        progress._bar.refresh()
    shown = capsys.readouterr().err
    assert "2/4" in shown
    assert "km2/h" in shown
    assert "\x1b]0;" not in shown


def test_the_dashboard_is_told_when_work_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=False, quiet=False) as progress:
        progress.tell(Event("start", "4 chunks", 0, 4, data={"dashboard": "http://127.0.0.1:8787/status"}))
    assert "dashboard: http://127.0.0.1:8787/status" in capsys.readouterr().err


def test_workers_that_come_and_go_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(as_json=False, quiet=False) as progress:
        progress.tell(Event("worker", "worker 3 joined", data={"worker": "3", "state": "joined"}))
        progress.tell(Event("worker", "worker 3 was lost", data={"worker": "3", "state": "lost"}))
        progress.tell(Event("again", "chunk a: worker lost, attempt 2 of 4"))
        progress.tell(Event("wait", "waiting for workers (0 of 8)"))
    lines = ["worker 3 joined", "worker 3 was lost", "chunk a: worker lost, attempt 2 of 4", "waiting for workers (0 of 8)"]
    assert capsys.readouterr().err.splitlines() == lines
