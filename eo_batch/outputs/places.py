"""Where runs can be: a folder of a file system, or a prefix of a bucket. Only names; nothing is opened here.

Text of a location comes from people and from files, so whatever could carry a secret or leave its root is refused.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path

from eo_batch.core.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_FIX = "Give a folder, or s3://BUCKET/PREFIX."


@dataclass(frozen=True)
class Place:
    """A location; `str` gives it as people write it.

    Parameters
    ----------
    bucket : name of a bucket; "" for the file systems of this machine.
    path : absolute path without symbolic links, or prefix inside the bucket.
    """

    bucket: str
    path: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.path}".rstrip("/") if self.bucket else self.path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self.path) if self.bucket else os.path.basename(self.path)

    @property
    def parent(self) -> Place:
        """Where it lies."""
        return replace(self, path=posixpath.dirname(self.path))

    def beside(self, name: str) -> Place:
        """The place with another last part."""
        return replace(self, path=posixpath.join(self.parent.path, name))

    def holds(self, other: Place) -> bool:
        """`other` is this place, or lies inside it."""
        root = self.path.rstrip("/") + "/"
        return self.bucket == other.bucket and (other.path.rstrip("/") + "/").startswith(root)

    def seen_from(self, start: Place) -> str:
        """Text that leads from `start` to here: relative where both are on one file system or in one bucket."""
        return posixpath.relpath("/" + self.path, "/" + start.path) if self.bucket == start.bucket else str(self)

    def at(self, text: str) -> Place:
        """Where `text`, as `seen_from` gives it, leads from here."""
        if _SCHEME.match(text) or os.path.isabs(text):
            return place_of(text)
        if not self.bucket:
            return place_of(os.path.join(self.path, text))
        return place_of(f"s3://{self.bucket}{posixpath.normpath(posixpath.join('/', self.path, text))}")


def place_of(text: str | Path) -> Place:
    """The location that a person or a file names.

    Raises
    ------
    ConfigError : `config-invalid`: another scheme, no bucket, or credentials in the text, which is not repeated then.
    """
    written = str(text)
    scheme = _SCHEME.match(written)
    if scheme is None:
        return Place("", os.path.realpath(written))
    if not written.startswith("s3://"):
        shown = f"{scheme[1]}://..."
        why = "give it as text: a Path shortens //" if isinstance(text, Path) else ""
        raise ConfigError("config-invalid", "no place for a run", where=shown, why=why, fix=_FIX)
    if "@" in written or "?" in written:
        fix = "Give s3://BUCKET/PREFIX, and credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
        raise ConfigError("config-invalid", "a location holds no credentials and no query", where="s3://...", fix=fix)
    bucket, _, prefix = written.removeprefix("s3://").partition("/")
    parts = prefix.rstrip("/").split("/") if prefix.rstrip("/") else []
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError("config-invalid", "no name of a bucket", where=f"s3://{bucket}", fix=_FIX)
    if any(not part or part.startswith(".") or not part.isprintable() or set(part) & set('\\#%*"<>|^`{}[]~') for part in parts):
        raise ConfigError("config-invalid", "a prefix is made of plain names", where=repr(prefix), fix=_FIX)
    return Place(bucket, "/".join(parts))
