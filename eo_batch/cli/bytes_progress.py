"""What a person sees while bytes come or go: a bar on a terminal, a line now and then elsewhere, nothing if it is quick."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from eo_batch.cli.report import plain, say

QUIET_S = 2.0
"""What is done sooner needs no progress."""
LINE_EVERY_S = 10.0
"""Without a terminal: at most one line in so many seconds."""
DRAW_EVERY_S = 0.1


class BytesProgress:
    """Listener of work that is counted in bytes; a context manager that owns the terminal line while it is open.

    Parameters
    ----------
    quiet : show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._next = time.monotonic() + QUIET_S

    def __enter__(self) -> BytesProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` bytes of `what` are done."""
        now = time.monotonic()
        if self._quiet or (now < self._next and not (self._bar is not None and what != self._what)):
            return
        if sys.stderr.isatty():
            self._next = now + DRAW_EVERY_S
            self._draw(what, done, total)
        else:
            self._next = now + LINE_EVERY_S
            say(f"{what}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    def _draw(self, what: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        if self._bar is None:
            label = TextColumn("{task.description}", markup=False)
            columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
            self._bar.start()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task, self._what = (
                self._bar.add_task(plain(what), total=total, completed=done),
                what,
            )  # no speed for what was there
        self._bar.update(self._task, completed=done, total=total)
