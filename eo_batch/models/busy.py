"""How long segmenters have computed, so that a run can say whether it was them that it waited for.

One clock for each thread: a chunk is computed by one thread, so its share is the difference of two readings. On a GPU time counts
while the device is held, not while a call waits for it or prepares pixels; elsewhere while a segmenter is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class _Clock(threading.local):
    seconds, counts = 0.0, 0


def busy_seconds() -> float:
    """Seconds that segmenters have computed in this thread so far."""
    return _clock.seconds


@contextmanager
def counted() -> Iterator[None]:
    """Count the time of the block, unless something in it counts more exactly what it needs."""
    before, began = _clock.counts, time.monotonic()
    try:
        yield
    finally:
        if _clock.counts == before:
            _clock.seconds += time.monotonic() - began
            _clock.counts += 1


_clock = _Clock()
