"""The only door to disk of a run: keys in, bytes out, and nothing half-written ever visible.

A write goes to a temporary name in the same directory, is synced, renamed into place, and the directory is synced,
so a reader (and a machine that lost power) sees the whole file or none. Every call to the operating system is one small
method, so that tests can make exactly one of them fail.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar
from uuid import uuid4

from eo_batch.core.errors import PolicyError, StoreError

TEMPORARY = ".partial"
"""Ending of names that no reader looks at; `Store.sweep` removes what a killed writer left."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_Result = TypeVar("_Result")


class Store:
    """Files of one run below one directory of a local or shared file system.

    Paths are relative, with `/`, of plain names: no `..`, no hidden names, no symbolic link on the way
    (`path-escape`). Modes follow the umask.

    Parameters
    ----------
    root : directory of the run; made by the first write.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.realpath(root))

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def put(self, path: str, data: bytes) -> str:
        """Write `data` as `path`, replacing what was there in one step; its sha256.

        Raises
        ------
        StoreError : `disk-full`, `store-denied` or `store-unreachable`; the old file, if any, is untouched.
        PolicyError : `path-escape`.
        """
        with self.writer(path, expected=len(data)) as target:
            target.write(data)
        return target.sha256

    def create(self, path: str, data: bytes) -> bool:
        """Write `data` as `path` only if there is no such file: True if this call made it.

        Of several callers at once exactly one gets True. Errors as `put`.
        """
        temporary, final = self._prepare(path, needed=len(data))

        def publish() -> bool:
            try:
                self._link(temporary, final)
            except FileExistsError:
                return False
            self._fsync_directory(final.parent)
            return True

        try:
            with self._guard(path, needed=len(data)):
                self._write_all(temporary, data)
                return publish()
        finally:
            with suppress(OSError):
                self._unlink(temporary)

    def adopt(self, path: str, source: Store) -> None:
        """Have the file `path` of `source` here too, under the same path, replacing what was there in one step.

        A hard link where both are on one file system that has them, so that it takes no space; otherwise a copy. Files of a
        run are replaced and never written to, so what becomes of one run changes nothing in the other.

        Raises
        ------
        FileNotFoundError : `source` has no such file.
        StoreError, PolicyError : as `put`; what was here is untouched.
        """
        origin = source.local_path(path)
        if not source.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        temporary, final = self._prepare(path, needed=0)
        try:
            with self._guard(path):
                if self._try_link(origin, temporary):
                    self._rename(temporary, final)
                    self._fsync_directory(final.parent)
                    return
        finally:
            with suppress(OSError):
                self._unlink(temporary)  # renaming a link to a file onto that file leaves both
        self.put(path, source.get(path))

    @contextmanager
    def writer(self, path: str, *, expected: int = 0) -> Iterator[HashingFile]:
        """File object that becomes `path` when the block ends without an error; for files too big for memory.

        Parameters
        ----------
        expected : bytes that will be written, if known; only used in the text of `disk-full`.

        Raises
        ------
        StoreError, PolicyError : as `put`. After any error in the block there is no new file.
        """
        temporary, final = self._prepare(path, needed=expected)
        done = False
        try:
            with self._guard(path, needed=expected):
                with self._open_new(temporary) as file:
                    target = HashingFile(file, self._write)
                    yield target
                    file.flush()
                    self._fsync(file)
                self._rename(temporary, final)
                done = True
                self._fsync_directory(final.parent)
        finally:
            if not done:
                with suppress(OSError):
                    self._unlink(temporary)

    def get(self, path: str) -> bytes:
        """Content of `path`.

        Raises
        ------
        FileNotFoundError : there is no such file.
        StoreError : it cannot be read.
        PolicyError : `path-escape`.
        """
        place = self.local_path(path)
        with self._guard(path, missing=True):
            return self._read(place)

    def exists(self, path: str) -> bool:
        """`path` is a file here."""
        place = self.local_path(path)
        with self._guard(path):
            return place.is_file()

    def size(self, path: str) -> int:
        """Bytes of `path`; errors as `get`."""
        place = self.local_path(path)
        with self._guard(path, missing=True):
            return place.stat().st_size

    def list(self, prefix: str = "") -> Iterator[str]:
        """Paths of all files in or below the directory `prefix`, sorted within each directory, temporary ones left out.

        Names are sorted by their bytes with directories and files together, so the whole listing is sorted by path parts.
        """
        start = self.local_path(prefix) if prefix else self.root
        with self._guard(prefix):
            if start.is_file():
                yield prefix
                return
        yield from self._walk(start, prefix)

    def folders(self, prefix: str) -> tuple[str, ...]:
        """Names of the directories in the directory `prefix`, sorted; none where there is no such directory."""
        place = self.local_path(prefix)
        with self._guard(prefix):
            try:
                return tuple(sorted(entry.name for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)))
            except FileNotFoundError:
                return ()

    def delete(self, path: str) -> None:
        """Remove the file `path`; nothing happens where there is none."""
        place = self.local_path(path)
        with self._guard(path), suppress(FileNotFoundError):
            self._unlink(place)

    def sweep(self) -> int:
        """Remove what killed writers left; number of files removed. Only for the owner of the run."""
        count = 0
        for folder, folders, names in os.walk(self.root):
            folders.sort()
            for name in sorted(names):
                if name.endswith(TEMPORARY):
                    with self._guard(name), suppress(FileNotFoundError):
                        self._unlink(Path(folder, name))
                        count += 1
        return count

    def free_bytes(self) -> int:
        """Bytes that this user can still write on the file system of the run."""
        place = self.root
        while not place.exists():
            place = place.parent
        with self._guard(""):
            status = os.statvfs(place)
        return status.f_bavail * status.f_frsize

    def local_path(self, path: str) -> Path:
        """Where `path` is on disk.

        Raises
        ------
        PolicyError : `path-escape` for an absolute path, `..`, hidden names, or a symbolic link on the way.
        """
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or "\\" in path or "\0" in path or any(p.startswith(".") for p in path.split("/")):
            raise _escape(path, "paths of a run are relative and made of plain names")
        place = self.root
        for part in parts:
            place = place / part
            with suppress(FileNotFoundError, NotADirectoryError):
                with self._guard(path, missing=True):
                    mode = os.lstat(place).st_mode
                if stat.S_ISLNK(mode):
                    raise _escape(path, "a symbolic link is on the way")
        return place

    def _prepare(self, path: str, *, needed: int) -> tuple[Path, Path]:
        """Temporary and final place of `path`; makes the directories, each synced in its parent."""
        final = self.local_path(path)
        with self._guard(path, needed=needed):
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

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        with self._guard(prefix):
            try:
                entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in os.scandir(folder))
            except FileNotFoundError:
                return
        for name, is_folder in entries:
            path = f"{prefix}/{name}" if prefix else name
            if is_folder:
                yield from self._walk(folder / name, path)
            elif not name.endswith(TEMPORARY):
                yield path

    @contextmanager
    def _guard(self, path: str, *, needed: int = 0, missing: bool = False) -> Iterator[None]:
        """Turn errors of the operating system into `StoreError`; `missing`: let FileNotFoundError through."""
        try:
            yield
        except FileNotFoundError:
            if missing:
                raise
            raise self._unreachable(path, "the directory disappeared") from None
        except OSError as error:
            raise self._explain(error, path, needed) from None

    def _explain(self, error: OSError, path: str, needed: int) -> StoreError:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        where = path or str(self.root)
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

    def _unreachable(self, path: str, reason: str) -> StoreError:
        fix = f"Check that `{self.root}` is still there and mounted, then begin again; a run goes on with `eo-batch resume`."
        return StoreError("store-unreachable", "could not be read or written", where=path, why=reason, fix=fix)

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

    def _read(self, place: Path) -> bytes:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()


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


def _escape(path: str, why: str) -> PolicyError:
    fix = "Remove the link, or choose another output folder."
    return PolicyError("path-escape", "leaves the run directory", where=repr(path), why=why, fix=fix)
