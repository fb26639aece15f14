"""How fast a run goes, told from its events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eo_batch.run.told.pace import at_once, busy_share, duration_text, pace_of

START = datetime(2026, 5, 1, 12, tzinfo=UTC)


def line(second: float, event: str = "chunk", **facts: Any) -> dict[str, Any]:
    return {"time": (START + timedelta(seconds=second)).isoformat(), "event": event, **facts}


def chunk(second: float, km2: float, worker: str = "0", **facts: Any) -> dict[str, Any]:
    began = (START + timedelta(seconds=second - 10)).isoformat()
    return line(second, key=f"c{second}", km2=km2, worker=worker, host="n1", began=began, took_s=10, busy_s=5, **facts)


def test_speed_is_what_was_made_since_the_start() -> None:
    lines = [line(0, "start", km2=0.0), *(chunk(10 * n, 2.0 * n, windows={"computed": 30, "shared": 1}) for n in range(1, 7))]
    pace = pace_of(lines, until=START + timedelta(seconds=60))
    assert pace is not None
    assert (pace.chunks, pace.km2_per_hour, pace.windows_per_s) == (6, 720.0, 3.0)
    assert pace.busy_share == pytest.approx(0.5)
    assert pace.seconds_left(12) == 120.0


def test_only_the_last_minutes_count() -> None:
    lines = [line(0, "start", km2=0.0), chunk(10, 1000.0), chunk(1000, 1001.0), chunk(1100, 1002.0)]
    pace = pace_of(lines, until=START + timedelta(seconds=1200))
    assert pace is not None
    assert (pace.seconds, pace.chunks, pace.km2_per_hour) == (300.0, 2, 24.0)


def test_a_later_sitting_does_not_count_what_was_before() -> None:
    lines = [line(0, "start", km2=0.0), chunk(10, 50.0), line(100, "start", km2=0.0), chunk(110, 1.0)]
    pace = pace_of(lines, until=START + timedelta(seconds=110))
    assert pace is not None
    assert (pace.seconds, pace.km2_per_hour) == (10.0, 360.0)


def test_a_run_without_a_finished_chunk_has_no_pace() -> None:
    assert pace_of([line(0, "start")], until=START) is None
    assert pace_of([], until=START) is None


def test_threads_of_a_cpu_are_as_many_devices_and_those_of_a_gpu_are_one() -> None:
    side_by_side = [chunk(10, 0.0, device="cpu"), chunk(10, 0.0, device="cpu")]
    assert busy_share(side_by_side) == pytest.approx(0.5)
    assert busy_share([{**each, "device": "cuda"} for each in side_by_side]) == pytest.approx(1.0)


def test_older_runs_without_telemetry_have_no_share() -> None:
    assert busy_share([{"seconds": {"read": 1.0}}]) is None


def test_spans_that_touch_are_not_at_once() -> None:
    assert at_once([(0, 1), (1, 2), (2, 3)]) == 1
    assert at_once([(0, 2), (1, 3)]) == 2


def test_workers_are_named_with_their_last_chunk_and_loss() -> None:
    lines = [chunk(10, 1.0, "a"), chunk(11, 2.0, "b"), line(12, "worker", worker="a", state="lost")]
    pace = pace_of([line(0, "start"), *lines], until=START + timedelta(seconds=20))
    assert pace is not None
    assert [(w.name, w.last, w.chunks, w.is_lost) for w in pace.workers] == [("a", "c10", 1, True), ("b", "c11", 1, False)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12, "12 s"), (200, "3 min"), (7199, "1 h 59 min"), (90_000, "25 h 0 min"), (180_000, "2 d 2 h")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("damage", [{"km2": "much"}, {"km2": True}, {"worker": 3}, {"began": "soon"}, {"windows": [1]}])
def test_a_damaged_line_stops_nobody(damage: dict[str, Any]) -> None:
    assert pace_of([line(0, "start"), {**chunk(10, 1.0), **damage}], until=START + timedelta(seconds=20)) is not None
