"""When a chunk was computed, by whom, what took how long and was written: telemetry, never part of a digest."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eo_batch.models.busy import busy_seconds
from eo_batch.outputs.store import Store
from eo_batch.run.executors.worker import telling, worker_name


@dataclass
class Stopwatch:
    """Seconds per stage, monotonic; bytes of files; and when and where it was started."""

    seconds: dict[str, float] = field(default_factory=dict)
    bytes_written: int = 0
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self._start = time.perf_counter()
        self._busy = busy_seconds()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time a stage under its name; the driver hears of it if it lasts."""
        start = time.perf_counter()
        with telling(stage):
            yield
        self.seconds[stage] = round(time.perf_counter() - start, 4)

    def put(self, store: Store, path: str, data: bytes) -> str:
        """`store.put`, counted."""
        self.bytes_written += len(data)
        return store.put(path, data)

    def telemetry(self) -> dict[str, Any]:
        """What is known of the chunk by now, as JSON values."""
        return {
            "seconds": dict(self.seconds),
            "worker": worker_name(),
            "host": platform.node(),
            "began": self.began.isoformat(timespec="milliseconds"),
            "took_s": round(time.perf_counter() - self._start, 4),
            "busy_s": round(busy_seconds() - self._busy, 4),
            "bytes_written": self.bytes_written,
            "peak_memory": peak_memory(),
        }


def peak_memory() -> int:
    """Most memory that this process has held so far, bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
