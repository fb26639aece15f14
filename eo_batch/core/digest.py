"""Digests: the sha256 names by which runs, items and files are compared."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, finite numbers only.

    Raises
    ------
    ValueError : the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """Hexadecimal sha256 of the canonical JSON of `value`."""
    return sha256(canonical_json(value))


class ListDigest:
    """`digest` of a list whose values are given one by one and not kept."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._between = b""

    def add(self, value: Any) -> None:
        """Append `value` to the list; errors as `digest`."""
        self._hash.update(self._between + canonical_json(value))
        self._between = b","

    @property
    def hexdigest(self) -> str:
        """Hexadecimal digest of the list so far."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()
