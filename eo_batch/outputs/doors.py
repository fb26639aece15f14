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

    def put(self, key: str, data: bytes) -> str:
        """See `Store.put`."""

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""

    def writer(self, key: str, *, expected: int) -> AbstractContextManager[HashingFile]:
        """See `Store.writer`."""

    def filling(self, key: str) -> AbstractContextManager[Path]:
        """See `Store.filling`."""

    def take(self, key: str, source: Door, origin: str) -> bool:
        """Have the file `origin` of `source` as `key` without moving its bytes through here; False where that cannot be."""

    def get(self, key: str) -> bytes:
        """See `Store.get`."""

    def open(self, key: str) -> BufferedReader:
        """See `Store.open`."""

    def exists(self, key: str) -> bool:
        """See `Store.exists`."""

    def size(self, key: str) -> int:
        """See `Store.size`."""

    def list(self, key: str) -> Iterator[str]:
        """See `Store.list`."""

    def folders(self, key: str) -> tuple[str, ...]:
        """See `Store.folders`."""

    def delete(self, key: str) -> None:
        """See `Store.delete`."""

    def sweep(self) -> int:
        """See `Store.sweep`."""

    def free_bytes(self) -> int | None:
        """See `Store.free_bytes`."""

    def zarr(self, key: str) -> Any:
        """See `Store.zarr`."""
