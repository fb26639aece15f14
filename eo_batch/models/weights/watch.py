"""Weights stay in their file while they are used (mapped, not copied); what is written into the file would change the answers.

A file that is renamed, replaced or removed does no harm: the old one lives on as long as it is used.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eo_batch.core.errors import IntegrityError

Stamp = tuple[int, int, int, int]
"""Device, inode, bytes, and time of the last write in ns: equal while nobody writes into the file."""


def stamp_of(place: Path | int) -> Stamp:
    """Stamp of a path or of an open file."""
    found = os.stat(place)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Watch:
    """Open files that must stay as they were at their stamps.

    Parameters
    ----------
    files : each with `weights`, a path or several, and `stamp`, made before their sha256: one for each path.

    Raises
    ------
    IntegrityError : `weights-altered`: it is another file by now.
    """

    def __init__(self, files: Iterable[Any]) -> None:
        self._files: list[tuple[int, Stamp, Path]] = []
        for path, stamp in (pair for one in files for pair in _pairs(one)):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                raise _altered(path) from None
            weakref.finalize(self, os.close, descriptor)
            self._files.append((descriptor, stamp, path))
        self.check()

    def check(self) -> None:
        """Raise `weights-altered` where somebody has written into a file."""
        for descriptor, stamp, path in self._files:
            if stamp_of(descriptor) != stamp:
                raise _altered(path)


def _pairs(files: Any) -> list[tuple[Path, Stamp]]:
    if isinstance(files.weights, Path):
        return [(files.weights, files.stamp)]
    return list(zip(files.weights, files.stamp, strict=True))


def _altered(path: Path) -> IntegrityError:
    what = "somebody changed the weights while they were used"
    fix = "Restore them; replace weights by renaming, never copy over them."
    return IntegrityError("weights-altered", what, where=str(path), fix=fix)
