from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from eo_batch.core.records import Item, ItemTable
from eo_batch.core.spec import TimeSpec
from eo_batch.core.timeline import time_steps


def scene(name: str, moment: datetime, *, minutes: int = 0, rank: float = 0.0, collection: str = "c") -> Item:
    half = timedelta(minutes=minutes)
    return Item(collection, name, moment, moment - half, moment + half, (0, 0, 1, 1), {}, {}, rank=rank)


def at(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=UTC)  # type: ignore[misc]


def steps(items: list[Item], step: str, composite: str = "first"):
    return time_steps(ItemTable(tuple(items), ()), TimeSpec.model_validate({"step": step, "composite": composite}))


def test_scenes_of_one_utc_day_are_one_step() -> None:
    found = steps(
        [scene("a", at(2019, 6, 7, 10), minutes=5), scene("b", at(2019, 6, 7, 23, 59)), scene("c", at(2019, 6, 8, 0, 0))], "scene"
    )
    assert [(s.label, s.items) for s in found] == [("2019-06-07", (0, 1)), ("2019-06-08", (2,))]


def test_a_scene_step_spans_its_items() -> None:
    found = steps([scene("a", at(2019, 6, 7, 10), minutes=5), scene("b", at(2019, 6, 7, 12), minutes=1)], "scene")
    assert (found[0].start, found[0].end) == (at(2019, 6, 7, 9, 55), at(2019, 6, 7, 12, 1))


def test_the_day_is_that_of_utc_whatever_zone_a_time_is_written_in() -> None:
    late = datetime(2019, 6, 7, 23, 30, tzinfo=timezone(timedelta(hours=-2)))
    assert steps([scene("a", late)], "scene")[0].label == "2019-06-08"


def test_months_are_half_open_and_only_those_with_items() -> None:
    found = steps([scene("a", at(2019, 12, 31, 23)), scene("b", at(2020, 2, 29))], "month")
    assert [(s.label, s.start, s.end) for s in found] == [
        ("2019-12", at(2019, 12, 1), at(2020, 1, 1)),
        ("2020-02", at(2020, 2, 1), at(2020, 3, 1)),
    ]


def test_years_are_half_open() -> None:
    found = steps([scene("a", at(2019, 12, 31, 23)), scene("b", at(2020, 1, 1))], "year")
    assert [(s.label, s.start, s.end) for s in found] == [
        ("2019", at(2019, 1, 1), at(2020, 1, 1)),
        ("2020", at(2020, 1, 1), at(2021, 1, 1)),
    ]


def test_all_is_one_step_from_the_first_to_the_last_item() -> None:
    found = steps([scene("a", at(2019, 1, 1), minutes=2), scene("b", at(2021, 1, 1), minutes=3)], "all")
    assert [(s.label, s.start, s.end, s.items) for s in found] == [
        ("all", at(2018, 12, 31, 23, 58), at(2021, 1, 1, 0, 3), (0, 1))
    ]


def test_first_and_median_go_by_time_then_collection_then_id() -> None:
    items = [
        scene("z", at(2020, 1, 2)),
        scene("b", at(2020, 1, 1)),
        scene("a", at(2020, 1, 1)),
        scene("y", at(2020, 1, 1), collection="a"),
    ]
    for composite in ("first", "median"):
        assert steps(items, "all", composite)[0].items == (3, 2, 1, 0)


def test_best_goes_by_rank_then_time() -> None:
    items = [scene("a", at(2020, 1, 1), rank=0.5), scene("b", at(2020, 1, 2), rank=0.9), scene("c", at(2020, 1, 3), rank=0.9)]
    assert steps(items, "all", "best")[0].items == (1, 2, 0)


@pytest.mark.parametrize("step", ["scene", "month", "year", "all"])
def test_every_item_is_in_exactly_one_step_and_steps_are_in_order(step: str) -> None:
    items = [scene(str(n), at(2018, 1, 1) + timedelta(days=37 * n)) for n in range(40)]
    found = steps(items, step)
    assert sorted(p for s in found for p in s.items) == list(range(40))
    assert [s.index for s in found] == list(range(len(found)))
    assert [s.start for s in found] == sorted(s.start for s in found)


def test_no_items_make_no_steps() -> None:
    assert steps([], "all") == ()
