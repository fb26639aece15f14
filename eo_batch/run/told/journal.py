"""The journal of a run: one JSON line for everything that happened, in `events/` beside the results, and in no digest.

Storage of objects cannot append, so a segment is written again while it grows, and a new one begun when it is full. Losing the
journal loses nothing of the map: a journal that cannot be written is told once, and the run goes on.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from eo_batch.core.errors import EoBatchError
from eo_batch.core.hrefs import redact
from eo_batch.outputs.store import Store
from eo_batch.run.told.events import Event, Listener
from eo_batch.version import __version__

FOLDER = "events"
LINES = 500
"""Lines of a segment."""
MAX_SEGMENT_BYTES = 32_000_000
"""A larger one is not of ours, and not read."""
FLUSH_S = 10.0
"""A line is on disk after so many seconds at the latest."""
KEPT = ("start", "chunk", "failure", "worker", "again", "merge", "publish", "warning")
"""Kinds of events that are written down."""
_LEFT_OUT = ("notes", "polygons")
"""Of a chunk: notes are warnings of their own, polygons are in the receipt."""


@contextmanager
def journal(store: Store, epoch: int, listener: Listener) -> Iterator[Listener]:
    """A listener that writes events down and passes them on; the last line says how the sitting ended.

    Parameters
    ----------
    epoch : of the lease: every driver has a journal of its own.
    """
    pen = _Journal(store, epoch, listener)
    pen.begin()
    how = "ended"
    try:
        yield pen.tell
    except BaseException as error:
        how = error.code if isinstance(error, EoBatchError) else type(error).__name__
        raise
    finally:
        pen.end(how)


class _Journal:
    """Lines of one sitting, and the thread that brings them to disk."""

    def __init__(self, store: Store, epoch: int, listener: Listener) -> None:
        self._store, self._epoch, self._listener = store, epoch, listener
        self._lines: list[str] = []
        self._number, self._is_new = 1, False
        self._is_published = self._is_broken = self._is_told = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="eo-batch-journal", daemon=True)

    def begin(self) -> None:
        """Note who drives, and write from now on."""
        self._note("driver", "", {"host": platform.node(), "pid": os.getpid(), "version": __version__})
        self._write()
        self._thread.start()

    def end(self, how: str) -> None:
        """Note how it ended: "published", "ended" with chunks left, or the code of an error; write the rest."""
        self._note("stop", "", {"how": "published" if self._is_published and how == "ended" else how})
        self._stop.set()
        self._thread.join()
        self._write()
        self._say_if_broken()

    def tell(self, event: Event) -> None:
        """Write an event down, and pass it on."""
        self._is_published |= event.kind == "publish"
        if event.kind in KEPT:
            counts = {"done": event.done, "total": event.total, "km2": round(event.km2, 6)} if event.total else {}
            text = "" if event.kind == "chunk" else event.text
            self._note(event.kind, text, {**counts, **{k: v for k, v in event.data.items() if k not in _LEFT_OUT}})
        self._listener(event)
        self._say_if_broken()

    def _note(self, kind: str, text: str, facts: Mapping[str, Any]) -> None:
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, "epoch": self._epoch}
        if text:
            line["text"] = redact(text)
        encoded = json.dumps({**line, **facts}, ensure_ascii=True, allow_nan=False, default=str)
        with self._lock:
            self._lines.append(encoded)
            self._is_new = True
            is_full = len(self._lines) >= LINES
        if is_full:
            self._write()

    def _keep_writing(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._write()

    def _write(self) -> None:
        """Put the segment as it is now; begin the next one where it is full."""
        with self._lock:
            if not self._is_new:
                return
            path, data = segment_path(self._epoch, self._number), "".join(f"{line}\n" for line in self._lines)
            self._is_new = False
            try:
                self._store.put(path, data.encode())
            except EoBatchError:
                self._is_broken = True
            if len(self._lines) >= LINES:
                self._number, self._lines = self._number + 1, []

    def _say_if_broken(self) -> None:
        """Told in the thread of the driver, once: listeners are not made for several."""
        if self._is_broken and not self._is_told:
            self._is_told = True
            self._listener(Event("warning", f"the journal in {FOLDER}/ could not be written; the run goes on without it"))


def segment_path(epoch: int, number: int) -> str:
    """`events/000001/000001.jsonl`."""
    return f"{FOLDER}/{epoch:06d}/{number:06d}.jsonl"


Line = dict[str, Any]
"""One event: `time`, `event`, `epoch`, and what the event is about."""


def epochs(store: Store) -> list[int]:
    """Epochs that have a journal, oldest first."""
    return sorted(int(name) for name in store.folders(FOLDER) if name.isascii() and name.isdigit())


def read_journal(store: Store, epoch: int) -> Iterator[Line]:
    """All lines of one driver, in the order in which they were written. A line that cannot be read is left out."""
    for path in _segments(store, epoch):
        yield from _lines(store, path)


def newest_lines(store: Store, epoch: int, *, segments: int) -> list[Line]:
    """The last lines of one driver, oldest first, of at most so many segments: enough for a rate, whatever the run's size."""
    return [line for path in _segments(store, epoch)[-segments:] for line in _lines(store, path)]


def _segments(store: Store, epoch: int) -> list[str]:
    return [path for path in store.list(f"{FOLDER}/{epoch:06d}") if path.endswith(".jsonl")]


def _lines(store: Store, path: str) -> Iterator[Line]:
    try:
        data = store.get(path) if store.size(path) <= MAX_SEGMENT_BYTES else b""
    except FileNotFoundError:
        return
    for text in data.decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("event"), str) and moment(line.get("time")) is not None:
            yield line


def moment(text: Any) -> datetime | None:
    """A time as the journal and receipts write it; None where it is none, or so far away that no time zone holds it."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo and 1970 < found.year < 9000 else None
