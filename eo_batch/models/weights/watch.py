"""Weights stay in their file while they are used (mapped, not copied); what is written into the file would change the answers.

A file that is renamed, replaced or removed does no harm: the old one lives on as long as it is used.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path

from eo_batch.core.errors import IntegrityError

Stamp = tuple[int, int, int, int]
"""Device, inode, bytes, and time of the last write in ns: equal while nobody writes into the file."""


def stamp_of(place: Path | int) -> Stamp:
    """Stamp of a path or of an open file."""
    found = os.stat(place)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Watch:
    """An open file that must stay as it was at its stamp.

    Parameters
    ----------
    path : the file.
    stamp : its stamp before its sha256 was made.

    Raises
    ------
    IntegrityError : `weights-altered`: it is another file by now.
    """

    def __init__(self, path: Path, stamp: Stamp) -> None:
        self._path, self._stamp = path, stamp
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise self._altered() from None
        weakref.finalize(self, os.close, self._descriptor)
        self.check()

    def check(self) -> None:
        """Raise `weights-altered` where somebody has written into the file."""
        if stamp_of(self._descriptor) != self._stamp:
            raise self._altered()

    def _altered(self) -> IntegrityError:
        what = "somebody changed the weights while they were used"
        fix = "Restore them; replace weights by renaming, never copy over them."
        return IntegrityError("weights-altered", what, where=str(self._path), fix=fix)
