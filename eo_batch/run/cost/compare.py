"""What was planned, kept beside the run, and held against what it took.

`plan.json` and `pilot.json` are in no digest: they may be replaced or lost, and the map stays what it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eo_batch.core.digest import canonical_json
from eo_batch.outputs.store import Store
from eo_batch.run.cost.measured import ChunkWork, measure, works
from eo_batch.run.cost.memory import gb
from eo_batch.run.cost.plan import Plan, duration

PLAN = "plan.json"
"""The plan that a run began with."""
PILOT = "pilot.json"
"""What a pilot foretold of it."""


@dataclass(frozen=True)
class Compared:
    """One figure of a run three times: planned, foretold by a pilot as (low, middle, high), and measured; None: nobody knows.

    Parameters
    ----------
    unit : "" for counts, "x", "bytes", "s", "%", or a currency.
    """

    label: str
    unit: str
    planned: float | None
    piloted: tuple[float, float, float] | None
    measured: float | None

    def as_row(self) -> tuple[str, str, str, str]:
        """Label, planned, piloted with its range, and measured, for people; "-" where nobody knows."""
        piloted = "-"
        if self.piloted is not None:
            low, middle, high = (figure(value, self.unit) for value in self.piloted)
            piloted = middle if low == high else f"{middle} ({low} to {high})"
        return self.label, figure(self.planned, self.unit), piloted, figure(self.measured, self.unit)


HEADER = ("", "planned", "pilot", "measured")


def put_plan(store: Store, plan: Plan) -> None:
    """Keep the plan that a run, or an extension of it, begins with."""
    store.put(PLAN, canonical_json({**plan.as_dict(), "began": datetime.now(UTC).isoformat(timespec="seconds")}))


def read_plan(store: Store) -> dict[str, Any]:
    """The plan that a run began with; empty where there is none that can be read."""
    return _read(store, PLAN)


def read_pilot(store: Store) -> dict[str, Any]:
    """What a pilot foretold of the run; empty where there is none that can be read."""
    return _read(store, PILOT)


def compare(store: Store, done: Iterable[ChunkWork] | None = None) -> list[Compared]:
    """Figures of a run as they were planned, foretold and measured; measured ones are those of the chunks so far.

    Parameters
    ----------
    done : `works(store)`, for callers that have read all receipts already.
    """
    plan, pilot = read_plan(store), read_pilot(store)
    foretold = pilot.get("figures")
    foretold = foretold if isinstance(foretold, dict) else {}
    took = measure(works(store) if done is None else done)
    price, currency = _number(plan.get("price_per_hour")), str(plan.get("currency", ""))
    distinct = _number(plan.get("windows_distinct")) if took.chunks == plan.get("chunks") else None

    def row(label: str, unit: str, planned: str, measured: float | None, name: str = "") -> Compared:
        return Compared(label, unit, _number(plan.get(planned)), _range(foretold.get(name)), measured)

    counted = took.windows or None
    rows = [
        row("chunks", "", "chunks", took.chunks or None),
        row("windows computed", "", "windows", counted, "windows"),
        row("times that a window is computed", "x", "recomputed", counted / distinct if counted and distinct else None),
        row("read", "bytes", "bytes_to_read", took.bytes_read or None, "bytes_read"),
        Compared("written", "bytes", _written(plan), _range(foretold.get("bytes_written")), took.bytes_written or None),
        row("computing", "s", "seconds", took.computing_s or None, "computing_s"),
        row("all chunks, one after the other", "s", "", took.seconds or None, "seconds"),
    ]
    if price is not None:
        paid = price * took.worker_s / 3600 if took.worker_s else None
        rows.append(row("money", currency, "money", paid, "money"))
    return rows


def figure(value: float | None, unit: str) -> str:
    """A figure for people; "-" where there is none."""
    if value is None:
        return "-"
    if unit == "bytes":
        return gb(value)
    if unit == "s":
        return duration(value).removeprefix("about ")
    if unit == "x":
        return f"{value:.2f}x"
    if unit == "%":
        return f"{value:.0f} %"
    if unit:
        return f"{value:,.2f} {unit}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _written(plan: dict[str, Any]) -> float | None:
    """Bytes that chunks were planned to write: of the disk that a run takes, what is no cache of features."""
    disk = _number(plan.get("disk"))
    return None if disk is None else disk - (_number(plan.get("features")) or 0.0)


def _read(store: Store, path: str) -> dict[str, Any]:
    try:
        document = json.loads(store.get(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _range(value: Any) -> tuple[float, float, float] | None:
    if not isinstance(value, dict):
        return None
    numbers = [_number(value.get(name)) for name in ("low", "middle", "high")]
    return None if None in numbers else (numbers[0] or 0.0, numbers[1] or 0.0, numbers[2] or 0.0)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    return float(value) if is_number else None
