"""Files of weights are written whole or not at all, those of words read up to a bound; what a disk says is told in our words."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from eo_batch.core.errors import EoBatchError, ModelError, StoreError


@contextmanager
def whole_file(target: Path, *, needed: int) -> Iterator[Any]:
    """A binary file that becomes `target` when the block ends well, and nothing otherwise.

    Raises
    ------
    StoreError : `disk-full`, `store-denied`, `store-unreachable`.
    """
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target.parent, needed)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_error(error, target) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing; only where nobody else writes."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{32}\.tmp", path.name):
            path.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises
    ------
    StoreError : `disk-full`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        why = f"{free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed"
        raise StoreError("disk-full", "not enough room", where=str(folder), why=why, fix="Free space, or choose another folder.")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(error: OSError, path: Path) -> EoBatchError:
    """The error of a disk in our words."""
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError("disk-full", "could not write", where=str(path), why=why, fix="Free space, or choose another folder.")
    code = (
        "store-denied"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
        else "store-unreachable"
    )
    return StoreError(code, "could not read or write", where=str(path), why=why, fix="Check the folder, or choose another one.")


def read_words(path: Path, most: int, refuse: Callable[[Path, str, str], ModelError], *, kind: str) -> bytes:
    """A file of words, such as a vocabulary, of at most `most` bytes.

    Parameters
    ----------
    refuse : makes the error of a path, what is wrong and why.
    kind : what a larger file is not: "vocabulary", "tokenizer".

    Raises
    ------
    ModelError : as `refuse` makes it: not readable, too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise refuse(path, "could not be read", error.strerror or "") from None
    if len(data) > most:
        raise refuse(path, f"is larger than {most >> 20} MiB", f"it is no {kind}")
    return data
