"""A run in a bucket of an object store that speaks S3: an object is there whole or not at all.

The store itself promises what `disk` has to work for: a put is visible when it is complete, and `If-None-Match: *` lets exactly
one of several creators win. Large files wait on the disk of this machine until they are complete. Nothing that comes from the
store or from the environment is repeated in an error but a status and a code: answers of stores name keys.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from hashlib import sha256
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from eo_batch.core.errors import ConfigError, StoreError
from eo_batch.outputs.doors import Door, HashingFile
from eo_batch.outputs.places import Place

READ_AHEAD = 1 << 20
"""Bytes that a reader asks for at once, at least."""
_WRITE_ID = "eo-batch-write"
"""Metadata of what was created: a creator that never heard the answer knows its own object by it."""
_TRIES = 5
_RETRIES: Any = {
    "max_retries": 100,  # time alone ends them
    "retry_timeout": timedelta(seconds=90),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 3},
}
"""A pause is drawn between the first and `base` times the last one: with 2 they hardly grow."""
_PATIENCE: Any = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=80)}
"""A request that hears nothing is given up while there is time to repeat it."""
_REFUSED = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "AuthorizationHeaderMalformed")
"""Codes of answers that speak of credentials without a status that does."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SETTINGS = re.compile(r"AWS_[A-Z0-9_]+")


class Bucket:
    """`Door` to the objects below a prefix of a bucket."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._root = f"{place.path}/".lstrip("/")
        self._client = _connect(place.bucket, _settings(os.environ))

    def put(self, key: str, data: bytes) -> str:
        """As `Store.put`."""
        with self._guard(key):
            obstore.put(self._client, self._root + key, data)
        return sha256(data).hexdigest()

    def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`. The store answers "it is there" also to a repetition of a request whose answer got lost."""
        mine = uuid4().hex
        for _ in range(_TRIES):
            with self._guard(key):
                try:
                    obstore.put(self._client, self._root + key, data, mode="create", attributes={_WRITE_ID: mine})
                    return True
                except AlreadyExistsError:
                    pass
                with suppress(FileNotFoundError):  # others were creating it at that moment, and failed; or it was deleted since
                    found = obstore.get(self._client, self._root + key, options={"head": True})
                    return found.attributes.get(_WRITE_ID) == mine
        raise self._unreachable(key, "others create and delete it at this moment")

    def take(self, key: str, source: Door, origin: str) -> bool:
        """As `Door.take`."""
        if not isinstance(source, Bucket) or source.place.bucket != self.place.bucket:
            return False
        with self._guard(key, missing=True):
            obstore.copy(self._client, source._root + origin, self._root + key)
        return True

    @contextmanager
    def writer(self, key: str, *, expected: int) -> Iterator[HashingFile]:
        """As `Store.writer`."""
        with self._waiting(key), tempfile.TemporaryFile(prefix="eo-batch-") as file:
            target = HashingFile(cast(BinaryIO, file), _append)
            yield target
            file.seek(0)
            with self._guard(key):
                obstore.put(self._client, self._root + key, file)

    @contextmanager
    def filling(self, key: str) -> Iterator[Path]:
        """As `Store.filling`."""
        with self._waiting(key), tempfile.TemporaryDirectory(prefix="eo-batch-") as folder:
            path = Path(folder, key.rpartition("/")[2])
            yield path
            with self._guard(key):
                obstore.put(self._client, self._root + key, path)

    def get(self, key: str) -> bytes:
        """As `Store.get`."""
        with self._guard(key, missing=True):
            return bytes(obstore.get(self._client, self._root + key).bytes())

    def open(self, key: str) -> BufferedReader:
        """As `Store.open`."""
        with self._guard(key, missing=True):
            meta = obstore.head(self._client, self._root + key)
        return BufferedReader(_Object(self, key, meta["size"], meta["e_tag"]), READ_AHEAD)

    def read_range(self, key: str, start: int, length: int, e_tag: str | None) -> memoryview:
        """Bytes of the object that had this tag when it was opened."""
        options: Any = {"range": (start, start + length), **({"if_match": e_tag} if e_tag else {})}
        with self._guard(key, missing=True):
            return memoryview(obstore.get(self._client, self._root + key, options=options).bytes())

    def exists(self, key: str) -> bool:
        """As `Store.exists`."""
        with self._guard(key):
            try:
                obstore.head(self._client, self._root + key)
            except FileNotFoundError:
                return False
            return True

    def size(self, key: str) -> int:
        """As `Store.size`."""
        with self._guard(key, missing=True):
            return int(obstore.head(self._client, self._root + key)["size"])

    def list(self, key: str) -> Iterator[str]:
        """As `Store.list`."""
        pages = iter(obstore.list(self._client, self._root + key))
        inside = f"{self._root}{key}/".lstrip("/") if key else self._root
        while True:
            with self._guard(key):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                if meta["path"].startswith(inside):  # a console keeps an empty object for each folder that was made in it
                    yield meta["path"].removeprefix(self._root)

    def folders(self, key: str) -> tuple[str, ...]:
        """As `Store.folders`."""
        with self._guard(key):
            found = obstore.list_with_delimiter(self._client, self._root + key)["common_prefixes"]
        return tuple(sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found))

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        with self._guard(key), suppress(FileNotFoundError):
            obstore.delete(self._client, self._root + key)

    def sweep(self) -> int:
        """See `Store.sweep`. Nothing here: a killed writer leaves no object. Parts of a broken upload are not listed by the
        store as objects; a rule of the bucket should end them (docs/guides/object-stores.md)."""
        return 0

    def free_bytes(self) -> None:
        """As `Store.free_bytes`."""
        return None

    def zarr(self, key: str) -> Any:
        """As `Store.zarr`."""
        from eo_batch.outputs.bucket_zarr import BucketZarr

        prefix = f"{self._root}{key}".rstrip("/") or None
        return BucketZarr(_connect(self.place.bucket, _settings(os.environ), prefix), self.explain)

    def explain(self, error: Exception, key: str) -> StoreError:
        """What an error of the store means, without its text."""
        text = str(error)
        named = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
        status = re.search(r"\b(?:status|HTTP)[^0-9]{0,12}([1-5]\d\d)\b", text)
        moved = "it is in another region" if "redirect" in text.lower() else "no answer"
        reason = ", ".join(filter(None, (status and f"HTTP {status[1]}", named and named[1]))) or moved
        where = f"{self.place}/{key}".rstrip("/")
        refused = (status and status[1] in ("401", "403")) or (named and named[1] in _REFUSED)
        if refused or isinstance(error, PermissionDeniedError | UnauthenticatedError):
            is_late = named is not None and named[1] == "RequestTimeTooSkewed"
            fix = "Check the credentials in the environment, and their rights (docs/guides/object-stores.md)."
            fix = "Set the clock of this machine: signatures hold for minutes." if is_late else fix
            return StoreError("store-denied", "may not read or write", where=where, why=reason, fix=fix)
        return self._unreachable(key, reason)

    @contextmanager
    def _waiting(self, key: str) -> Iterator[None]:
        """What cannot be kept on the disk of this machine is `disk-full`; other errors of the block are its own."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            folder = tempfile.gettempdir()
            why = f"{os.strerror(error.errno)}, {shutil.disk_usage(folder).free / 1e6:,.1f} MB free in {folder}"
            fix = "Free space there, or set TMPDIR to a folder with more."
            raise StoreError("disk-full", "could not keep it here until it is complete", where=key, why=why, fix=fix) from None

    @contextmanager
    def _guard(self, key: str, *, missing: bool = False) -> Iterator[None]:
        """Turn errors of the store into `StoreError`; `missing`: or FileNotFoundError where there is no such object."""
        try:
            yield
        except FileNotFoundError as error:
            if missing and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(f"{self.place}/{key}") from None
            raise self.explain(error, key) from None
        except BaseError as error:
            raise self.explain(error, key) from None

    def _unreachable(self, key: str, reason: str) -> StoreError:
        what = "could not be read or written"
        fix = f"Check that the bucket `{self.place.bucket}` is there, its region and endpoint; go on with `eo-batch resume`."
        return StoreError("store-unreachable", what, where=f"{self.place}/{key}".rstrip("/"), why=reason, fix=fix)


class _Object(RawIOBase):
    """Seekable reader of one object as it was when it was opened."""

    def __init__(self, bucket: Bucket, key: str, size: int, e_tag: str | None) -> None:
        self._bucket, self._key, self._size, self._e_tag, self._at = bucket, key, size, e_tag, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte; the new position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from here; bytes read."""
        view = memoryview(buffer).cast("B")
        length = min(len(view), max(0, self._size - self._at))
        if length:
            view[:length] = self._bucket.read_range(self._key, self._at, length, self._e_tag)
            self._at += length
        return length


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _settings(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What the environment says of the store.

    Raises
    ------
    ConfigError : `config-invalid`: an endpoint that is not encrypted, and is not on this machine.
    """
    return tuple(sorted((name, value) for name, value in environment.items() if _SETTINGS.fullmatch(name)))


@lru_cache(maxsize=8)
def _connect(bucket: str, settings: tuple[tuple[str, str], ...], prefix: str | None = None) -> S3Store:
    """The client of a bucket, or of what lies below a prefix of it, which holds the credentials: kept, with its connections."""
    said = dict(settings)
    endpoint = next((said[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if said.get(name)), "")
    plain = urlsplit(endpoint).scheme == "http"
    if plain and not _is_here(urlsplit(endpoint).hostname) and said.get("AWS_ALLOW_HTTP", "").lower() not in ("true", "1"):
        fix = "Give an https:// endpoint, or set AWS_ALLOW_HTTP=true where nobody can listen."
        raise ConfigError("config-invalid", "the endpoint is not encrypted", where="AWS_ENDPOINT_URL", fix=fix)
    region = said.get("AWS_REGION") or said.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        options: Any = {**_PATIENCE, **({"allow_http": True} if plain else {})}
        return S3Store(bucket, prefix=prefix, region=region, client_options=options, retry_config=_RETRIES)
    except (BaseError, ValueError):
        fix = "Check the AWS_ variables of the environment."
        raise ConfigError("config-invalid", "the object store cannot be set up", where="environment", fix=fix) from None


def _is_here(host: str | None) -> bool:
    """The host is this machine."""
    with suppress(ValueError):
        return ipaddress.ip_address(host or "").is_loopback
    return host == "localhost"
