"""What every kind of storage offers a `Store`: one door for file systems (`disk`), one for buckets (`bucket`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from eo_batch.outputs.places import Place

TEMPORARY = ".partial"
"""Ending of names that no reader looks at; `Store.sweep` removes what a killed writer left."""


class HashingFile:
    """Write-only file object that counts and hashes what passes; enough of a file for pyarrow's Parquet writer."""

    closed = False

    def __init__(self, file: BinaryIO, write: Callable[[BinaryIO, bytes], None]) -> None:
        self._file, self._write_out = file, write
        self._hash = sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of everything written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append `data`; its length in bytes."""
        self._write_out(self._file, data)
        self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.bytes

    def flush(self) -> None:
        """Nothing: the store flushes when the file is complete."""

    def close(self) -> None:
        """Nothing: the store closes the file."""

    def readable(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """False."""
        return False


class Door(Protocol):
    """Files by key below one place. Keys are relative, with `/`, of plain names: `Store` sees to that.

    Errors and meanings are those of the methods of `Store` with the same name.
    """

    place: Place

    def put(self, key: str, data: bytes) -> str: ...

    def create(self, key: str, data: bytes) -> bool: ...

    def writer(self, key: str, *, expected: int) -> AbstractContextManager[HashingFile]: ...

    def filling(self, key: str) -> AbstractContextManager[Path]: ...

    def take(self, key: str, source: Door, origin: str) -> bool:
        """Have the file `origin` of `source` as `key` without moving its bytes through here; False where that cannot be."""
        ...

    def get(self, key: str) -> bytes: ...

    def open(self, key: str) -> BufferedReader: ...

    def exists(self, key: str) -> bool: ...

    def size(self, key: str) -> int: ...

    def list(self, key: str) -> Iterator[str]: ...

    def folders(self, key: str) -> tuple[str, ...]: ...

    def delete(self, key: str) -> None: ...

    def sweep(self) -> int: ...

    def free_bytes(self) -> int | None: ...

    def zarr(self, key: str) -> Any: ...
