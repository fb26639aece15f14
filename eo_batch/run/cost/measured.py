"""What chunks really took, read from their receipts: seconds, windows, bytes, and who worked when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.store import Store
from eo_batch.run.ledger import get_receipt, receipt_keys

LONGEST_S = 1e9
"""More than a chunk can have taken: what began then, and took as long, still has a date."""


@dataclass(frozen=True)
class ChunkWork:
    """What one chunk took. Figures that its receipt lacks are 0, `began` is None, `worker` is "".

    Parameters
    ----------
    seconds : from the first byte read to the last one written, waiting for the device included.
    busy_s : in which the segmenter computed for it.
    windows, shared : windows computed, and found computed by a neighbour; -1 where nobody counted.
    bytes_written : of shards and part; the receipt is not in it.
    began : POSIX time, seconds.
    """

    key: str
    seconds: float
    busy_s: float
    windows: int
    shared: int
    bytes_read: int
    bytes_written: int
    polygons: int
    worker: str
    began: float | None

    @property
    def ended(self) -> float | None:
        """POSIX time of its end."""
        return None if self.began is None else self.began + self.seconds


def work_of(receipt: ChunkReceipt) -> ChunkWork:
    """What the telemetry of a receipt says; receipts of older versions say less."""
    told = receipt.telemetry
    windows = told.get("windows")
    windows = windows if isinstance(windows, dict) else {}
    seconds = told.get("seconds")
    stages = sum(_number(value) for value in seconds.values()) if isinstance(seconds, dict) else 0.0
    host, worker = told.get("host", ""), told.get("worker", "")
    return ChunkWork(
        key=receipt.key,
        seconds=min(_number(told.get("took_s")) or stages, LONGEST_S),
        busy_s=_number(told.get("busy_s")),
        windows=int(_number(windows["computed"])) if "computed" in windows else -1,
        shared=int(_number(windows["shared"])) if "shared" in windows else -1,
        bytes_read=int(_number(told.get("bytes_read"))),
        bytes_written=int(_number(told.get("bytes_written"))),
        polygons=receipt.polygons,
        worker=f"{host} {worker}".strip(),
        began=_posix(told.get("began")),
    )


def works(store: Store) -> Iterator[ChunkWork]:
    """What every finished chunk of a run took."""
    for key in receipt_keys(store):
        yield work_of(get_receipt(store, key))


@dataclass(frozen=True)
class Measured:
    """Sums over chunks.

    Parameters
    ----------
    seconds : of all chunks, one after the other.
    computing_s : in which at least one chunk was computed: pauses between sittings, search and merge are not in it.
    worker_s : from the first to the last chunk of each worker process, summed: what is paid for, but for starting and ending.
    workers : worker processes that were seen.
    """

    chunks: int
    windows: int
    shared: int
    seconds: float
    busy_s: float
    bytes_read: int
    bytes_written: int
    polygons: int
    computing_s: float
    worker_s: float
    workers: int


def measure(done: Iterable[ChunkWork]) -> Measured:
    """Sums over chunks; reads each once and keeps two numbers of it."""
    chunks = windows = shared = bytes_read = bytes_written = polygons = 0
    seconds = busy_s = 0.0
    spans: list[tuple[float, float]] = []
    lives: dict[str, tuple[float, float]] = {}
    for work in done:
        chunks += 1
        windows += max(work.windows, 0)
        shared += max(work.shared, 0)
        seconds += work.seconds
        busy_s += work.busy_s
        bytes_read += work.bytes_read
        bytes_written += work.bytes_written
        polygons += work.polygons
        if work.began is not None:
            end = work.began + work.seconds
            spans.append((work.began, end))
            first, last = lives.get(work.worker, (work.began, end))
            lives[work.worker] = min(first, work.began), max(last, end)
    return Measured(
        chunks,
        windows,
        shared,
        seconds,
        busy_s,
        bytes_read,
        bytes_written,
        polygons,
        covered_s(spans),
        sum(last - first for first, last in lives.values()),
        len(lives),
    )


def covered_s(spans: list[tuple[float, float]]) -> float:
    """Seconds that at least one of the spans (begin, end) covers."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return total


def _number(value: Any) -> float:
    """A number that is not negative; 0 for anything else: telemetry is nobody's promise."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < float("inf") else 0.0


def _posix(value: Any) -> float | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.timestamp() if moment.tzinfo and 1970 < moment.year < 9000 else None
