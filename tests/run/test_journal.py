"""The journal of a run: what is in it, and that it never stands in the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eo_batch.core.errors import StoreError
from eo_batch.outputs.store import Store
from eo_batch.run.told.events import Event
from eo_batch.run.told.journal import LINES, journal, newest_lines, read_journal


def kinds(store: Store, epoch: int = 1) -> list[str]:
    return [line["event"] for line in read_journal(store, epoch)]


def test_every_event_is_a_line_and_goes_on_to_the_listener(tmp_path: Path) -> None:
    store, heard = Store(tmp_path), list[Event]()
    with journal(store, 1, heard.append) as tell:
        tell(Event("start", "2 chunks", 0, 2))
        tell(Event("chunk", "chunk a: done", 1, 2, 3.5, {"key": "a", "status": "done", "worker": "0", "seconds": {"read": 1.0}}))
        tell(Event("failure", "chunk b failed", 1, 2, data={"key": "b", "code": "asset-corrupt"}))
    lines = list(read_journal(store, 1))
    assert kinds(store) == ["driver", "start", "chunk", "failure", "stop"]
    assert [event.kind for event in heard] == ["start", "chunk", "failure"]
    assert lines[2] | {"time": ""} == {
        "time": "", "event": "chunk", "epoch": 1, "done": 1, "total": 2, "km2": 3.5,
        "key": "a", "status": "done", "worker": "0", "seconds": {"read": 1.0},
    }  # fmt: skip
    assert lines[3]["code"] == "asset-corrupt"
    assert lines[-1]["how"] == "ended"


def test_segments_are_full_and_in_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with journal(store, 7, lambda event: None) as tell:
        for number in range(2 * LINES):
            tell(Event("chunk", "", number, 2 * LINES, data={"key": str(number)}))
    segments = sorted(path.name for path in (tmp_path / "events/000007").iterdir())
    assert segments == ["000001.jsonl", "000002.jsonl", "000003.jsonl"]
    assert [line["key"] for line in read_journal(store, 7) if line["event"] == "chunk"] == [str(n) for n in range(2 * LINES)]
    assert len(newest_lines(store, 7, segments=1)) == 2


def test_secrets_and_control_characters_do_not_reach_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with journal(store, 1, lambda event: None) as tell:
        tell(Event("failure", "could not read https://host/a.tif?sig=SECRET \x1b[2J", data={"key": "a"}))
    text = (tmp_path / "events/000001/000001.jsonl").read_text()
    assert "SECRET" not in text
    assert "\x1b" not in text


def test_how_it_ended_is_the_last_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError), journal(store, 1, lambda event: None):
        raise StoreError("disk-full", "could not write")
    with journal(store, 2, lambda event: None) as tell:
        tell(Event("publish", "", 1, 1))
    assert list(read_journal(store, 1))[-1]["how"] == "disk-full"
    assert list(read_journal(store, 2))[-1]["how"] == "published"


def test_a_journal_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("a file where the folder should be")
    heard: list[Event] = []
    with journal(Store(tmp_path), 1, heard.append) as tell:
        tell(Event("start", "", 0, 1))
        tell(Event("chunk", "", 1, 1))
    assert [event.kind for event in heard] == ["start", "warning", "chunk"]
    assert "journal" in heard[1].text


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"event": 3}', '{"event": "chunk", "time": "yesterday"}', "[" * 100_000])
def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, text: str) -> None:
    good = json.dumps({"event": "start", "time": "2026-05-01T12:00:00+00:00"})
    Store(tmp_path).put("events/000001/000001.jsonl", f"{text}\n{good}\n".encode())
    assert kinds(Store(tmp_path)) == ["start"]


def test_a_segment_larger_than_any_of_ours_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    with journal(store, 1, lambda event: None) as tell:
        tell(Event("warning", "a line"))
    assert list(read_journal(store, 1))
    monkeypatch.setattr("eo_batch.run.told.journal.MAX_SEGMENT_BYTES", 10)
    assert list(read_journal(store, 1)) == []
