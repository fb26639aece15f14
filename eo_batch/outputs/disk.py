"""A run on a file system: whole files or none, also after a power cut.

A write goes to a temporary name in the same directory, is synced, renamed into place, and the directory is synced,
so a reader (and a machine that lost power) sees the whole file or none. Every call to the operating system is one small
method, so that tests can make exactly one of them fail. Modes follow the umask.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from eo_batch.core.errors import PolicyError, StoreError
from eo_batch.outputs.doors import TEMPORARY, Door, HashingFile
from eo_batch.outputs.places import Place

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class Disk:
    """`Door` to the files below a directory of a file system."""

    def __init__(self, place: Place) -> None:
        self.place, self.root = place, Path(place.path)

    def put(self, key: str, data: bytes) -> str:
        """As `Store.put`."""
        with self.writer(key, expected=len(data)) as target:
            target.write(data)
        return target.sha256

    def create(self, key: str, data: bytes) -> bool:
        """As `Store.create`."""
        temporary, final = self._prepare(key, needed=len(data))

        def publish() -> bool:
            try:
                self._link(temporary, final)
            except FileExistsError:
                return False
            self._fsync_directory(final.parent)
            return True

        try:
            with self._guard(key, needed=len(data)):
                self._write_all(temporary, data)
                return publish()
        finally:
            with suppress(OSError):
                self._unlink(temporary)

    def take(self, key: str, source: Door, origin: str) -> bool:
        """As `Door.take`."""
        if not isinstance(source, Disk):
            return False
        place = source.path_of(origin)
        if not source.exists(origin):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), origin)
        temporary, final = self._prepare(key, needed=0)
        try:
            with self._guard(key):
                if not self._try_link(place, temporary):
                    return False
                self._rename(temporary, final)
                self._fsync_directory(final.parent)
                return True
        finally:
            with suppress(OSError):
                self._unlink(temporary)  # renaming a link to a file onto that file leaves both

    @contextmanager
    def writer(self, key: str, *, expected: int) -> Iterator[HashingFile]:
        """As `Store.writer`."""
        temporary, final = self._prepare(key, needed=expected)
        with self._publishing(key, temporary, final, needed=expected), self._open_new(temporary) as file:
            target = HashingFile(file, self._write)
            yield target
            file.flush()
            self._fsync(file)

    @contextmanager
    def filling(self, key: str) -> Iterator[Path]:
        """As `Store.filling`."""
        plain, final = self._prepare(key, needed=0)
        temporary = plain.with_name(f"{plain.name}{final.suffix}")  # libraries tell formats by the ending
        try:
            with self._publishing(key, temporary, final, needed=0):
                yield temporary
                with temporary.open("rb") as file:
                    self._fsync(file)
        finally:
            for leftover in final.parent.glob(f"{plain.name}*"):  # such as journals and side files of a library
                with suppress(OSError):
                    self._unlink(leftover)

    def get(self, key: str) -> bytes:
        """As `Store.get`."""
        place = self.path_of(key)
        with self._guard(key, missing=True):
            return self._read(place)

    def open(self, key: str) -> BufferedReader:
        """As `Store.open`."""
        place = self.path_of(key)
        with self._guard(key, missing=True):
            return self._open(place)

    def exists(self, key: str) -> bool:
        """As `Store.exists`."""
        place = self.path_of(key)
        with self._guard(key):
            return place.is_file()

    def size(self, key: str) -> int:
        """As `Store.size`."""
        place = self.path_of(key)
        with self._guard(key, missing=True):
            return place.stat().st_size

    def list(self, key: str) -> Iterator[str]:
        """As `Store.list`."""
        return self._walk(self.path_of(key) if key else self.root, key)

    def folders(self, key: str) -> tuple[str, ...]:
        """As `Store.folders`."""
        place = self.path_of(key)
        with self._guard(key):
            try:
                return tuple(sorted(entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)))
            except FileNotFoundError:
                return ()

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        place = self.path_of(key)
        with self._guard(key), suppress(FileNotFoundError):
            self._unlink(place)

    def sweep(self) -> int:
        """As `Store.sweep`."""
        count = 0
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names):
                if TEMPORARY in name:
                    with self._guard(name), suppress(FileNotFoundError):
                        self._unlink(Path(folder, name))
                        count += 1
        return count

    def free_bytes(self) -> int:
        """As `Store.free_bytes`."""
        place = self.root
        while not place.exists():
            place = place.parent
        with self._guard(""):
            status = os.statvfs(place)
        return status.f_bavail * status.f_frsize

    def zarr(self, key: str) -> Path:
        """As `Store.zarr`."""
        return self.path_of(key)

    def path_of(self, key: str) -> Path:
        """Where `key` is on disk.

        Raises
        ------
        PolicyError : `path-escape`: a symbolic link is on the way.
        """
        place = self.root
        for part in key.split("/"):
            place = place / part
            with suppress(FileNotFoundError, NotADirectoryError):
                with self._guard(key, missing=True):
                    mode = os.lstat(place).st_mode
                if stat.S_ISLNK(mode):
                    why, fix = "a symbolic link is on the way", "Remove the link, or choose another output folder."
                    raise PolicyError("path-escape", "leaves the run directory", where=repr(key), why=why, fix=fix)
        return place

    def _prepare(self, key: str, *, needed: int) -> tuple[Path, Path]:
        """Temporary and final place of `key`; makes the directories, each synced in its parent."""
        final = self.path_of(key)
        with self._guard(key, needed=needed):
            missing = []
            folder = final.parent
            while not folder.is_dir():
                missing.append(folder)
                folder = folder.parent
            for folder in reversed(missing):
                with suppress(FileExistsError):
                    self._mkdir(folder)
                self._fsync_directory(folder.parent)
        return final.with_name(f"{final.name}.{uuid4().hex}{TEMPORARY}"), final

    @contextmanager
    def _publishing(self, key: str, temporary: Path, final: Path, *, needed: int) -> Iterator[None]:
        """What the block leaves in `temporary` gets its name, or is removed after an error."""
        done = False
        try:
            with self._guard(key, needed=needed):
                yield
                self._rename(temporary, final)
                done = True
                self._fsync_directory(final.parent)
        finally:
            if not done:
                with suppress(OSError):
                    self._unlink(temporary)

    def _try_link(self, source: Path, target: Path) -> bool:
        """Hard link to a file that may be of another store; False where there can be none."""
        try:
            self._link(source, target)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def _write_all(self, place: Path, data: bytes) -> None:
        with self._open_new(place) as file:
            self._write(file, data)
            file.flush()
            self._fsync(file)

    def _walk(self, folder: Path, key: str) -> Iterator[str]:
        """Keys of files below `folder`, in the order of their whole text."""
        with self._guard(key):
            try:
                entries = sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in os.scandir(folder))
            except FileNotFoundError:
                return
        for name in entries:
            inner = f"{key}/{name}" if key else name
            if name.endswith("/"):
                yield from self._walk(folder / name, inner[:-1])
            elif TEMPORARY not in name:
                yield inner

    @contextmanager
    def _guard(self, key: str, *, needed: int = 0, missing: bool = False) -> Iterator[None]:
        """Turn errors of the operating system into `StoreError`; `missing`: let FileNotFoundError through."""
        try:
            yield
        except FileNotFoundError:
            if missing:
                raise
            raise self._unreachable(key, "the directory disappeared") from None
        except OSError as error:
            raise self._explain(error, key, needed) from None

    def _explain(self, error: OSError, key: str, needed: int) -> StoreError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        where = key or str(self.root)
        if error.errno in _FULL:
            with suppress(OSError, StoreError):
                reason += f" ({self.free_bytes() / 1e6:,.1f} MB free"
                reason += f", {needed / 1e6:,.1f} MB needed)" if needed else ")"
            fix = "Free space, then begin again; a run goes on with `eo-batch resume`: finished chunks are kept."
            return StoreError("disk-full", "could not write", where=where, why=reason, fix=fix)
        if error.errno in _DENIED:
            fix = f"Give this user the right to read and write `{self.root}`, or choose another output folder."
            return StoreError("store-denied", "may not read or write", where=where, why=reason, fix=fix)
        if error.errno == errno.ENOTDIR:
            fix = "Give the path of a folder."
            return StoreError("store-denied", "a file is where a folder must be", where=str(self.root), fix=fix)
        return self._unreachable(where, reason)

    def _unreachable(self, key: str, reason: str) -> StoreError:
        fix = f"Check that `{self.root}` is still there and mounted, then begin again; a run goes on with `eo-batch resume`."
        return StoreError("store-unreachable", "could not be read or written", where=key, why=reason, fix=fix)

    # One method per call of the operating system: the places where tests inject faults.

    def _mkdir(self, folder: Path) -> None:
        folder.mkdir()

    def _open_new(self, place: Path) -> BinaryIO:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        return os.fdopen(descriptor, "wb")

    def _write(self, file: BinaryIO, data: bytes) -> None:
        file.write(data)

    def _fsync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def _fsync_directory(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def _link(self, source: Path, target: Path) -> None:
        os.link(source, target)

    def _unlink(self, place: Path) -> None:
        os.unlink(place)

    def _open(self, place: Path) -> BufferedReader:
        flags = (
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        )  # a pipe in the folder of a stranger is no file, and no wait
        return os.fdopen(os.open(place, flags), "rb")

    def _read(self, place: Path) -> bytes:
        with self._open(place) as file:
            return file.read()
