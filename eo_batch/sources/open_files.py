"""Raster files that threads keep open: few enough for the process, never shared between threads."""

from __future__ import annotations

import resource
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from eo_batch.sources.asset_errors import FOREIGN

MAX_OPEN_PER_THREAD = 128
MIN_OPEN_PER_THREAD = 4
"""Threads share half of the files that the process may have open (RLIMIT_NOFILE), but each may have this many."""


@dataclass(eq=False)
class _Files:
    """(token, href, level) -> dataset and its path, of one thread; the last used last. Counted as long as the thread lives."""

    entries: OrderedDict[tuple[str, str, int], tuple[Any, str]] = field(default_factory=OrderedDict)


_HERE = threading.local()
_HOLDERS: weakref.WeakSet[_Files] = weakref.WeakSet()
_LOCK = threading.Lock()


def opened_files() -> OrderedDict[tuple[str, str, int], tuple[Any, str]]:
    """What this thread has open."""
    if not hasattr(_HERE, "files"):
        _HERE.files = _Files()
        with _LOCK:
            _HOLDERS.add(_HERE.files)
    files: _Files = _HERE.files
    return files.entries


def open_limit() -> int:
    """Files that this thread may have open now: all threads together stay well below the limit of the process."""
    allowed, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MAX_OPEN_PER_THREAD
    with _LOCK:
        threads = len(_HOLDERS)
    return max(MIN_OPEN_PER_THREAD, min(MAX_OPEN_PER_THREAD, allowed // 2 // max(1, threads)))


def forget(token: str, href: str) -> None:
    """Close the files of `href` that this thread has open: after a fault nothing of them is believed."""
    opened = opened_files()
    for key in [key for key in opened if key[:2] == (token, href)]:
        try:
            opened.pop(key)[0].close()
        except FOREIGN:
            continue  # closing a broken file may fail again; it is gone either way


def close_files() -> None:
    """Close the files that this thread has open."""
    opened = opened_files()
    while opened:
        opened.popitem()[1][0].close()
