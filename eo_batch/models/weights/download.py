"""One file comes onto this machine: asked of the hub patiently, resumable, checked while it comes.

Requests go through huggingface_hub: its endpoint (`HF_ENDPOINT`), token, client and offline switch, and what its cache
holds already. The bytes are streamed by our own loop: the library (2.4) begins a file again after an interruption, here
the missing bytes alone are asked for, never more than was announced, and the hash is made while they come.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha1, sha256
from pathlib import Path
from urllib.parse import urlsplit

from eo_batch.core.errors import ConfigError, ModelError, PolicyError
from eo_batch.core.hrefs import redact
from eo_batch.models.weights import READ_BYTES, SUFFIX
from eo_batch.models.weights.checkpoints import Listener
from eo_batch.models.weights.disk import check_space, sweep, sync_folder, whole_file
from eo_batch.models.weights.hub_client import HUB, is_offline, transport_errors
from eo_batch.models.weights.published import PublishedFile
from eo_batch.version import __version__

TRIES = 5
"""So many failures in a row without a new byte, then we give up."""
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 30.0
FOR_GOOD = (400, 401, 403, 404, 410, 451)
"""Answers that asking again does not change."""


@dataclass(frozen=True)
class Hub:
    """How to ask: where, who is told of progress in bytes, and how seconds pass between tries."""

    endpoint: str
    listener: Listener
    wait: Callable[[float], None]


class _Again(Exception):
    """This try failed, the next may not."""

    def __init__(self, why: str, *, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Sum:
    """The two names that a hub may know a file by: its sha256, and git's name of a blob of so many bytes."""

    def __init__(self, size: int) -> None:
        self._sha256, self._blob = sha256(), sha1(b"blob %d\0" % size, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        """Go on with the next bytes."""
        self._sha256.update(piece)
        self._blob.update(piece)

    def wrong(self, file: PublishedFile) -> str:
        """Why what was summed up is not `file`; empty where it is."""
        kind, found, wanted = "sha256", self._sha256.hexdigest(), file.sha256
        if not wanted:
            kind, found, wanted = "git blob", self._blob.hexdigest(), file.blob
        return "" if found == wanted else f"its {kind} is {found[:16]}..., not {wanted[:16]}..."


class _Partial:
    """What is here of a file that is being downloaded, summed up as it comes; a context manager."""

    def __init__(self, path: Path, file: PublishedFile, listener: Listener) -> None:
        self._file, self._listener = file, listener
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        self._out = os.fdopen(descriptor, "r+b")
        self._sum = _Sum(file.bytes)
        if os.fstat(descriptor).st_size > file.bytes:
            self._out.truncate(0)
        while piece := self._out.read(READ_BYTES):
            self._count("checking", piece)

    def __enter__(self) -> _Partial:
        return self

    def __exit__(self, *raised: object) -> None:
        self._out.close()

    @property
    def size(self) -> int:
        """Bytes that are here."""
        return self._out.tell()

    @property
    def wrong(self) -> str:
        """Why these bytes are not the file; empty where they are."""
        return self._sum.wrong(self._file)

    def restart(self) -> None:
        """Throw away what is here."""
        self._out.seek(0)
        self._out.truncate()
        self._sum = _Sum(self._file.bytes)

    def write(self, piece: bytes) -> None:
        """Append; never more than the file has."""
        if self.size + len(piece) > self._file.bytes:
            raise _wrong(self._file, f"the hub sends more than {self._file.bytes:,} bytes")
        self._out.write(piece)
        self._count("downloading", piece)

    def sync(self) -> None:
        """Let the bytes survive a power cut."""
        self._out.flush()
        os.fsync(self._out.fileno())

    def _count(self, what: str, piece: bytes) -> None:
        self._sum.update(piece)
        self._listener(f"{what} {self._file.local_name}", self.size, self._file.bytes)


def keep(file: PublishedFile, place: Path, hub: Hub) -> None:
    """`file` at `place`, used as it is; what is there already, or in the cache of the library, is not asked for again.

    Raises
    ------
    ModelError, PolicyError, StoreError : as `fetch`.
    """
    if is_file(place, file, hub):
        return
    cached = in_library_cache(file, hub)
    if cached is None:
        download(file, place, hub)
        return
    with whole_file(place, needed=file.bytes) as copy, cached.open("rb") as opened:
        shutil.copyfileobj(opened, copy)


def is_file(path: Path, file: PublishedFile, hub: Hub) -> bool:
    """`path` is this file, byte for byte."""
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    made, done = _Sum(file.bytes), 0
    with path.open("rb") as opened:
        while piece := opened.read(READ_BYTES):
            made.update(piece)
            done += len(piece)
            hub.listener(f"checking {file.local_name}", done, file.bytes)
    return not made.wrong(file)


def in_library_cache(file: PublishedFile, hub: Hub) -> Path | None:
    """The file in the cache of huggingface_hub, if it is the one that is wanted."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repo, file.filename, revision=file.revision)
    path = Path(found) if isinstance(found, str) else None
    return path if path is not None and is_file(path, file, hub) else None


def download(file: PublishedFile, place: Path, hub: Hub) -> None:
    """`file` at `place`, checked; an interrupted download goes on where it ended.

    Raises
    ------
    ModelError, PolicyError, StoreError : as `fetch`.
    """
    _need_network(file)
    path = place.with_name(f"{place.name}.partial")
    check_space(place.parent, file.bytes - (path.stat().st_size if path.exists() else 0))
    _patiently(file, hub, lambda: _check_announcement(file, hub), gained=lambda: 0)
    with _Partial(path, file, hub.listener) as partial:
        _patiently(file, hub, lambda: _stream(file, partial, hub), gained=lambda: partial.size)
        partial.sync()
        wrong = partial.wrong
    if wrong:
        path.unlink()
        raise _wrong(file, f"{wrong}; what was loaded is removed")
    os.replace(path, place)
    sync_folder(place.parent)


def _need_network(file: PublishedFile) -> None:
    if is_offline():
        what = "is not on this machine, and HF_HUB_OFFLINE forbids to ask the hub"
        fix = "Unset HF_HUB_OFFLINE, or copy the weights folder from a machine that has them."
        raise ModelError("weights-missing", what, where=_where(file), fix=fix)


def _patiently(file: PublishedFile, hub: Hub, attempt: Callable[[], None], *, gained: Callable[[], int]) -> None:
    """Try until it works, or until it fails `TRIES` times in a row without gaining."""
    failures, best = 0, gained()
    while True:
        try:
            return attempt()
        except _Again as again:
            failures, best = (1, gained()) if gained() > best else (failures + 1, best)
            if failures >= TRIES:
                raise _unreachable(file, hub, str(again)) from None
            hub.wait(min(max(again.after_s, 2.0 ** (failures - 1)), LONGEST_WAIT_S))


def announced(file: PublishedFile, hub: Hub, *, most: int) -> PublishedFile:
    """`file` with its size and the name of its content as the hub tells them; a pinned name stays.

    Parameters
    ----------
    most : bytes that no such file exceeds.

    Raises
    ------
    ModelError : `weights-missing`: offline; `weights-unreachable`.
    PolicyError : `weights-hash`: too large, or the hub names no content.
    """
    _need_network(file)
    told: list[tuple[int | None, str]] = []
    _patiently(file, hub, lambda: told.append(_ask(file, hub)), gained=lambda: 0)
    size, etag = told[-1]
    if size is None or size > most:
        raise _wrong(file, f"the hub announces {size} bytes, more than any such file has")
    if file.sha256:
        return replace(file, bytes=size)
    if re.fullmatch("[0-9a-f]{64}", etag):
        return replace(file, bytes=size, sha256=etag)
    if re.fullmatch("[0-9a-f]{40}", etag) and not file.filename.endswith(SUFFIX):
        return replace(file, bytes=size, blob=etag)
    raise _wrong(file, f"the hub announces {etag[:16]!r} instead of a sha256")


def _check_announcement(file: PublishedFile, hub: Hub) -> None:
    """Ask what the hub would send: another file is refused before its first byte."""
    size, etag = _ask(file, hub)
    if size is not None and size != file.bytes:
        raise _wrong(file, f"the hub announces {size:,} bytes, not {file.bytes:,}")
    for kind, wanted in (("sha256", file.sha256), ("git blob", file.blob)):  # the hub names large files by their sha256
        if wanted and len(etag) == len(wanted) and etag != wanted:
            raise _wrong(file, f"the hub announces {kind} {etag[:16]!r}, not {wanted[:16]!r}")


def _ask(file: PublishedFile, hub: Hub) -> tuple[int | None, str]:
    """(bytes, etag) that the hub names for a file."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import HfHubHTTPError

    try:
        said = get_hf_file_metadata(
            _url(file, hub), timeout=TIMEOUT_S, library_name="eo-batch", library_version=__version__, endpoint=hub.endpoint
        )
    except HfHubHTTPError as error:
        raise _refusal(file, hub, error.response.status_code, error.response.headers) from None
    except transport_errors() as error:
        raise _Again(_said(error)) from None
    return said.size, (said.etag or "").lower()


def _stream(file: PublishedFile, partial: _Partial, hub: Hub) -> None:
    """One request for the bytes that are missing."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    start = partial.size
    if start == file.bytes:
        return
    headers = build_hf_headers(library_name="eo-batch", library_version=__version__, headers={"Accept-Encoding": "identity"})
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        with get_session().stream("GET", _url(file, hub), headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            is_rest = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            if answer.status_code not in (200, 206, 416):
                raise _refusal(file, hub, answer.status_code, answer.headers)
            if not is_rest:  # the whole file, or a part that was not asked for
                partial.restart()
                if answer.status_code != 200:
                    raise _Again("the hub sends another part of the file than was asked for")
            for piece in answer.iter_bytes():  # as they come: nothing is lost where they end
                partial.write(piece)
    except transport_errors() as error:
        raise _Again(_said(error)) from None
    if partial.size < file.bytes:
        raise _Again("the connection ended early")


def _refusal(file: PublishedFile, hub: Hub, status: int, headers: Mapping[str, str]) -> Exception:
    if status in FOR_GOOD:
        return _unreachable(file, hub, f"HTTP {status}")
    after = headers.get("Retry-After", "")
    return _Again(f"HTTP {status}", after_s=float(after) if after.isdecimal() and len(after) < 6 else 0.0)


def _url(file: PublishedFile, hub: Hub) -> str:
    from huggingface_hub import hf_hub_url

    url: str = hf_hub_url(file.repo, file.filename, revision=file.revision, endpoint=hub.endpoint)
    return url


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One fetch per folder at a time; the lock goes with its process."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what, fix = "another fetch is at work here", "Wait until it has ended."
            raise ConfigError("config-invalid", what, where=str(folder), fix=fix) from None
        sweep(folder)
        yield
    finally:
        os.close(descriptor)


def _where(file: PublishedFile) -> str:
    return f"{file.repo}/{file.filename} at {file.revision[:12]}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:150]}".rstrip(": ")


def _unreachable(file: PublishedFile, hub: Hub, why: str) -> ModelError:
    host = urlsplit(hub.endpoint).hostname
    if file.is_gated and why in ("HTTP 401", "HTTP 403"):
        fix = f"Accept the licence on {HUB}/{file.repo} and wait for approval; then set HF_TOKEN to a token of that account."
        what = f"{host} gives this file only to accounts that were approved"
        return ModelError("weights-unreachable", what, where=_where(file), why=why, fix=fix)
    fix = "Run the same command again: what is here already is kept. HF_ENDPOINT names another hub, HF_TOKEN an account."
    return ModelError("weights-unreachable", f"{host} does not give this file", where=_where(file), why=why, fix=fix)


def _wrong(file: PublishedFile, why: str) -> PolicyError:
    fix = "It is never used. Check HF_ENDPOINT and proxies, then run the same command again."
    return PolicyError("weights-hash", "is not the file that eo-batch knows", where=_where(file), why=why, fix=fix)
