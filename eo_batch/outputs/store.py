"""The only door to the files of a run: paths in, bytes out, and nothing half-written ever visible.

What a path may be is decided here; how bytes get to a file system or a bucket is the matter of `disk` and `bucket`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any

from eo_batch.core.errors import PolicyError
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.doors import Door, HashingFile
from eo_batch.outputs.places import Place, place_of


class Store:
    """Files of one run, in a directory of a local or shared file system or below a prefix of a bucket.

    Paths are relative, with `/`, of plain names: no `..`, no hidden names, no symbolic link on the way (`path-escape`).

    Parameters
    ----------
    where : directory, made by the first write, or `s3://bucket/prefix`; or a door that is open already.
    """

    def __init__(self, where: str | Path | Door) -> None:
        self.door = open_door(place_of(where)) if isinstance(where, str | Path) else where

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.where!r})"

    @property
    def where(self) -> str:
        """The location, for people and for tasks: a store that is opened with it shows the same files."""
        return str(self.door.place)

    def place(self, path: str) -> str:
        """Where `path` is, relative to `where`."""
        return path

    def named(self, path: str) -> str:
        """Where `path` is, for people."""
        return f"{self.where}/{self._key(path)}"

    def put(self, path: str, data: bytes) -> str:
        """Write `data` as `path`, replacing what was there in one step; its sha256.

        Raises
        ------
        StoreError : `disk-full`, `store-denied` or `store-unreachable`; the old file, if any, is untouched.
        PolicyError : `path-escape`.
        """
        return self.door.put(self._key(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` as `path` only if there is no such file: True if this call made it.

        Of several callers at once exactly one gets True. Errors as `put`.
        """
        return self.door.create(self._key(path), data)

    def adopt(self, path: str, source: Store) -> None:
        """Have the file `path` of `source` here too, under the same path, replacing what was there in one step.

        A hard link where both are on one file system that has them, so that it takes no space; a copy by the storage itself in
        one bucket; otherwise a copy. Files of a run are replaced and never written to, so what becomes of one run changes
        nothing in the other.

        Raises
        ------
        FileNotFoundError : `source` has no such file.
        StoreError, PolicyError : as `put`; what was here is untouched.
        """
        if not self.door.take(self._key(path), source.door, source._key(path)):
            self.put(path, source.get(path))

    def writer(self, path: str, *, expected: int = 0) -> AbstractContextManager[HashingFile]:
        """File object that becomes `path` when the block ends without an error; for files too big for memory.

        Parameters
        ----------
        expected : bytes that will be written, if known; only used in the text of `disk-full`.

        Raises
        ------
        StoreError, PolicyError : as `put`. After any error in the block there is no new file.
        """
        return self.door.writer(self._key(path), expected=expected)

    def filling(self, path: str) -> AbstractContextManager[Path]:
        """Path of a real file that becomes `path` when the block ends without an error; for libraries that write files.

        Raises
        ------
        StoreError, PolicyError : as `put`. After any error in the block there is no new file.
        """
        return self.door.filling(self._key(path))

    def get(self, path: str) -> bytes:
        """Content of `path`.

        Raises
        ------
        FileNotFoundError : there is no such file.
        StoreError : it cannot be read.
        PolicyError : `path-escape`.
        """
        return self.door.get(self._key(path))

    def open(self, path: str) -> BufferedReader:
        """Seekable reader of `path`, which reads only what it is asked for; errors as `get`."""
        return self.door.open(self._key(path))

    def exists(self, path: str) -> bool:
        """`path` is a file here."""
        return self.door.exists(self._key(path))

    def size(self, path: str) -> int:
        """Bytes of `path`; errors as `get`."""
        return self.door.size(self._key(path))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Paths of all files below the directory `prefix`, sorted, temporary ones left out; none where there is none."""
        start = self._key(prefix) if prefix else ""
        for key in self.door.list(start):
            yield prefix + key[len(start) :]

    def folders(self, prefix: str) -> tuple[str, ...]:
        """Names of the directories in the directory `prefix`, sorted; none where there is no such directory."""
        return self.door.folders(self._key(prefix))

    def delete(self, path: str) -> None:
        """Remove the file `path`; nothing happens where there is none."""
        self.door.delete(self._key(path))

    def sweep(self) -> int:
        """Remove what killed writers left; number of files removed. Only for the owner of the run."""
        return self.door.sweep()

    def free_bytes(self) -> int | None:
        """Bytes that this user can still write; None where the storage knows no limit."""
        return self.door.free_bytes()

    def zarr(self, path: str = "") -> Any:
        """What zarr opens the directory `path` with, for reading; "" is the whole."""
        return self.door.zarr(self._key(path) if path else "")

    def _key(self, path: str) -> str:
        """`path` as the door knows it.

        Raises
        ------
        PolicyError : `path-escape` for an absolute path, `..`, or hidden names.
        """
        if not path or path.startswith("/") or "\\" in path or "\0" in path or any(p.startswith(".") for p in path.split("/")):
            fix = "Give names below the run directory."
            why = "paths of a run are relative and made of plain names"
            raise PolicyError("path-escape", "leaves the run directory", where=repr(path), why=why, fix=fix)
        return self.place(path)


def file_at(where: str | Path) -> tuple[Store, str]:
    """Store and path of a file that a person names."""
    place = place_of(where)
    return Store(open_door(place.parent)), place.name


def open_door(place: Place) -> Door:
    """The door to a place; nothing is asked of the storage yet.

    Raises
    ------
    ConfigError : `config-invalid`: the environment does not say how to reach it.
    """
    if not place.bucket:
        return Disk(place)
    from eo_batch.outputs.bucket import Bucket

    return Bucket(place)
