"""Weights stay in their file while they are used (mapped, not copied); what is written into the file would change the answers.

A file that is renamed, replaced or removed does no harm: the old one lives on as long as it is used.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path

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
    path : the file, or several.
    stamp : its stamp before its sha256 was made; of several files one each.

    Raises
    ------
    IntegrityError : `weights-altered`: it is another file by now.
    """

    def __init__(self, path: Path | Sequence[Path], stamp: Stamp | Sequence[Stamp]) -> None:
        paths = (path,) if isinstance(path, Path) else tuple(path)
        stamps = (stamp,) if isinstance(path, Path) else tuple(stamp)
        self._files: list[tuple[int, Stamp, Path]] = []
        for one, known in zip(paths, stamps, strict=True):
            try:
                descriptor = os.open(one, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                raise _altered(one) from None
            weakref.finalize(self, os.close, descriptor)
            self._files.append((descriptor, known, one))  # type: ignore[arg-type]
        self.check()

    def check(self) -> None:
        """Raise `weights-altered` where somebody has written into a file."""
        for descriptor, stamp, path in self._files:
            if stamp_of(descriptor) != stamp:
                raise _altered(path)


def _altered(path: Path) -> IntegrityError:
    what = "somebody changed the weights while they were used"
    fix = "Restore them; replace weights by renaming, never copy over them."
    return IntegrityError("weights-altered", what, where=str(path), fix=fix)
