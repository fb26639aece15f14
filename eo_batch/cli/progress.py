"""What a person sees while a command works: a bar with chunks, speed, how busy the device is and the time left on a terminal;
a few lines elsewhere.

`--json` turns every event into one JSON object per line on stdout. Everything for people goes to stderr.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import deque
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from eo_batch.cli.report import plain, print_json, say

if TYPE_CHECKING:
    from eo_batch.run.told.events import Event

LINE_EVERY_S = 10.0
"""Without a terminal: at most one progress line in so many seconds."""
PACE_EVERY_S = 0.5
"""The bar's figures change at most so often."""
TOLD = ("warning", "failure")
SENTENCES = ("worker", "again", "wait")
"""Events whose text needs no word before it."""
FIGURES = ("start", "chunk", "failure", "worker")


class Progress:
    """Listener of a run's events; a context manager that owns the terminal line while it is open.

    Parameters
    ----------
    as_json : print events as JSON lines on stdout.
    quiet : show no progress; warnings and failures are still said.
    unit : what the bar counts.
    """

    def __init__(self, *, as_json: bool, quiet: bool, unit: str = "chunks") -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._lines: deque[dict[str, Any]] = deque(maxlen=5000)
        self._pace: tuple[str, ...] = ()
        self._last_pace = 0.0
        self._last_line = time.monotonic()
        self._withheld = ""
        self._reasons: set[str] = set()

    def __enter__(self) -> Progress:
        if not self._quiet and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """Say what is going on now, where the amount of work is not known."""
        if self._bar is not None:
            self._bar.update(self._task, description=plain(text))

    def count(self, done: int, total: int, text: str) -> None:
        """Say how many units are done."""
        if self._bar is not None:
            self._bar.update(self._task, description=plain(text)[:60], total=total, completed=done)

    def share(self, done: float, text: str) -> None:
        """Say how much of something that is not chunks is done, 0..1."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{plain(text)[:60]} {100 * done:.0f} %")

    def tell(self, event: Event) -> None:
        """Show one event."""
        if self._as_json:
            facts = {
                "event": event.kind,
                "text": event.text,
                "done": event.done,
                "total": event.total,
                "km2": round(event.km2, 6),
            }
            print_json({**facts, "data": event.data})
        if event.kind in FIGURES:
            told = {"time": datetime.now(UTC).isoformat(), "event": event.kind, "km2": event.km2}
            self._lines.append({**event.data, **told})
        if event.kind in TOLD:
            self._say(f"{event.kind}: {self._once(event)}")
        if self._quiet:
            return
        if event.kind == "start" and event.data.get("dashboard"):
            self._say(_dashboard(event.data["dashboard"]))
        if self._bar is not None:
            self._draw(event)
        elif event.kind not in TOLD:
            self._line(event)

    def _once(self, event: Event) -> str:
        """What to say of an event; a reason why chunks fail is said once, as one file can fail hundreds."""
        head, failed, reason = event.text.partition(" failed: ")
        if event.kind != "failure" or not failed or reason not in self._reasons:
            self._reasons.add(reason)
            return event.text
        return f"{head} failed, too: {event.data.get('code', 'as before')}"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(plain(text), markup=False, highlight=False)
        else:
            say(text)

    def _line(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "chunk":
            if now - self._last_line < LINE_EVERY_S and event.done < event.total:
                return
            self._last_line = now
            say(", ".join([f"chunk {event.done:,} of {event.total:,}", *self._figures(event)]))
        elif event.text.endswith(" items found"):  # a count that grows: the last one is said before the next event
            self._withheld = event.text
        else:
            if self._withheld:
                say(f"search: {self._withheld}")
                self._withheld = ""
            say(event.text if event.kind in SENTENCES else f"{event.kind}: {event.text}")

    def _figures(self, event: Event) -> tuple[str, ...]:
        """Speed, how busy the device is, and the time left, as far as they are known."""
        from eo_batch.run.told.pace import duration_text, pace_of, pace_texts

        now = time.monotonic()
        if now - self._last_pace < PACE_EVERY_S and event.done < event.total:
            return self._pace
        pace = pace_of(self._lines, until=datetime.now(UTC))
        if pace is not None:
            self._last_pace = now
            left = pace.seconds_left(event.total - event.done)
            self._pace = (*([f"{duration_text(left)} left"] if left else []), *pace_texts(pace))
        return self._pace

    def _draw(self, event: Event) -> None:
        if event.kind in ("chunk", "failure", "start"):
            figures = "  ".join(self._figures(event))
            self._bar.update(self._task, total=event.total or None, completed=event.done, description="mapping", figures=figures)
        elif event.kind in ("worker", "again"):
            self._say(event.text)
        elif event.kind not in TOLD:
            self._bar.update(self._task, description=plain(event.text)[:60])

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
        from rich.table import Column

        def whole() -> Column:
            return Column(no_wrap=True, overflow="ellipsis")

        def text(field: str) -> TextColumn:
            return TextColumn(field, markup=False, table_column=whole())

        self._bar = Bar(
            SpinnerColumn(),
            text("{task.description}"),
            BarColumn(bar_width=12, table_column=whole()),
            MofNCompleteColumn(table_column=whole()),
            text(self._unit),
            TimeElapsedColumn(table_column=whole()),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column()),  # two lines where it is narrow
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, figures="")
        self._bar.start()


def _dashboard(address: str) -> str:
    """Where the work can be watched; the page needs a library that not everybody has."""
    if importlib.util.find_spec("bokeh") is None:
        return "dashboard: none, as bokeh is not installed (pip install bokeh)"
    return f"dashboard: {address}"
