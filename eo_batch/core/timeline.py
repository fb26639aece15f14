"""How scenes become layers along time: one per acquisition day, month, year, or one for all.

A step is decided by the items alone, so it is the same on every machine and for every chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from eo_batch.core.records import Item, ItemTable, TimeStep
from eo_batch.core.spec import TimeSpec


def time_steps(items: ItemTable, spec: TimeSpec) -> tuple[TimeStep, ...]:
    """Time steps that have items, in order of time.

    Parameters
    ----------
    items : the frozen search result.
    spec : `[time]` of the pipeline.

    Returns
    -------
    "scene": one step per UTC date of the items' datetimes; `start` and `end` are the earliest start and the latest end of
    its items. "month", "year": half-open calendar periods that hold at least one datetime. "all": one step from the
    earliest start to the latest end. `TimeStep.items` follow the composite: (datetime, collection, id) for "first" and
    "median"; highest rank first, then (datetime, collection, id), for "best".
    """
    label_of, period_of = _RULES[spec.step]
    groups: dict[str, list[int]] = {}
    for position, item in enumerate(items.items):
        groups.setdefault(label_of(item.datetime.astimezone(UTC)), []).append(position)
    steps = []
    for index, label in enumerate(sorted(groups)):
        members = [items.items[position] for position in groups[label]]
        start, end = period_of(members)
        order = sorted(groups[label], key=lambda p: _order(items.items[p], spec.composite == "best"))
        steps.append(TimeStep(index, label, start, end, tuple(order)))
    return tuple(steps)


def _order(item: Item, by_rank: bool) -> tuple[float, datetime, str, str]:
    return (-item.rank if by_rank else 0.0), item.datetime, item.collection, item.id


def _span(members: list[Item]) -> tuple[datetime, datetime]:
    return min(item.start for item in members), max(item.end for item in members)


def _month(members: list[Item]) -> tuple[datetime, datetime]:
    day = members[0].datetime.astimezone(UTC)
    return _first_of(day.year, day.month), _first_of(day.year + day.month // 12, day.month % 12 + 1)


def _year(members: list[Item]) -> tuple[datetime, datetime]:
    year = members[0].datetime.astimezone(UTC).year
    return _first_of(year, 1), _first_of(year + 1, 1)


def _first_of(year: int, month: int) -> datetime:
    return datetime(year, month, 1, tzinfo=UTC)


_RULES: dict[str, tuple[Callable[[datetime], str], Callable[[list[Item]], tuple[datetime, datetime]]]] = {
    "scene": (lambda t: f"{t.year:04d}-{t.month:02d}-{t.day:02d}", _span),
    "month": (lambda t: f"{t.year:04d}-{t.month:02d}", _month),
    "year": (lambda t: f"{t.year:04d}", _year),
    "all": (lambda t: "all", _span),
}
