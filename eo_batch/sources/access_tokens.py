"""Tokens of signing catalogs: asked for once per store, shared by all readers, renewed before they end.

The token service of the Planetary Computer answers `GET <service>/<account>/<container>` with
`{"msft:expiry": "...", "token": "se=...&sig=..."}` (its SAS API documentation); the token is the query string that opens
every blob of that container. The age of a token is taken from the Date header of the same answer and from a monotonic
clock, so that no two clocks are compared.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import parse_qs, unquote, urlsplit

import requests

from eo_batch.core.errors import AssetError
from eo_batch.core.hrefs import ip_of, redact
from eo_batch.sources.http import Http

MARGIN_S = 300.0
"""A token with less than this left (or a tenth of its life, if shorter) is renewed before it is used."""
MAX_RESIGNS = 2
RESIGN_WINDOW_S = 600.0
"""Refusals further apart than this are counted afresh."""

_NAME = re.compile(r"[A-Za-z0-9$-]{1,63}")


@dataclass(frozen=True)
class _Token:
    query: str
    renew_at: float  # monotonic seconds
    ends_at: float


@dataclass
class TokenService:
    """One token service; use `shared`, so that every reader of the process has the same tokens."""

    url: str
    allow_emulator: bool = False
    _tokens: dict[tuple[str, str], _Token] = field(default_factory=dict, repr=False)
    _resigns: dict[tuple[str, str], list[float]] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @staticmethod
    def shared(url: str, *, allow_emulator: bool = False) -> TokenService:
        """The service at `url` of this process."""
        return _service(url.rstrip("/"), allow_emulator)

    def covers(self, href: str) -> bool:
        """True where tokens of this service open `href`."""
        return self._store(href) is not None

    def sign(self, href: str, *, now: float) -> str:
        """`href` with a token that is valid at `now` (monotonic seconds); unchanged where the service does not cover it.

        Raises
        ------
        AssetError : `asset-unreachable`, or `asset-forbidden` when the service gives a token that has already ended.
        """
        store = self._store(href)
        if store is None:
            return href
        with self._lock:
            token = self._tokens.get(store)
            if token is None or token.renew_at <= now:
                token = self._renew(store, token, now)
        return href.split("?", 1)[0] + "?" + token.query

    def forget(self, href: str, path: str = "") -> None:
        """Drop the token of `href`, unless `path` shows that another one was refused.

        Raises
        ------
        AssetError : `asset-forbidden` after two new tokens were refused as well.
        """
        store = self._store(href)
        if store is None:
            return
        with self._lock:
            token = self._tokens.get(store)
            if path and token is not None and token.query not in path:
                return
            now = time.monotonic()
            recent = [moment for moment in self._resigns.get(store, []) if now - moment < RESIGN_WINDOW_S]
            if len(recent) >= MAX_RESIGNS:
                del self._resigns[store]
                raise AssetError(
                    "asset-forbidden",
                    f'access denied by store "{store[0]}/{store[1]}"',
                    why=f"re-sign failed {MAX_RESIGNS} times",
                    fix="Check that the catalog still gives access, then run eo-batch resume.",
                )
            self._resigns[store] = [*recent, now]
            self._tokens.pop(store, None)

    def _store(self, href: str) -> tuple[str, str] | None:
        """(account, container) of an Azure blob address; path style on an emulator, as Azurite has it."""
        try:
            parts = urlsplit(href)
        except ValueError:
            return None
        host, path = (parts.hostname or "").lower(), [unquote(part) for part in parts.path.split("/")[1:]]
        if host.endswith(".blob.core.windows.net"):
            pair = (host.split(".", 1)[0], path[0]) if len(path) >= 2 else None
        elif self.allow_emulator and ip_of(host) is not None:
            pair = (path[0], path[1]) if len(path) >= 3 else None
        else:
            return None
        return pair if pair and all(_NAME.fullmatch(part) for part in pair) else None

    def _renew(self, store: tuple[str, str], old: _Token | None, now: float) -> _Token:
        try:
            token = self._fetch(store, now)
        except AssetError as error:
            if old is not None and old.ends_at > now and error.code == "asset-unreachable":
                return old
            raise
        self._tokens[store] = token
        return token

    def _fetch(self, store: tuple[str, str], now: float) -> _Token:
        where = f'token service for store "{store[0]}/{store[1]}"'
        try:
            answer = Http().get_json(f"{self.url}/{store[0]}/{store[1]}")
            query = str(answer.document["token"]).lstrip("?")
            expiry = _expiry(query, answer.document.get("msft:expiry"))
            served = _served(answer.headers.get("Date"))
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise AssetError("asset-unreachable", "no token", where=where, why=redact(error)) from None
        left = (expiry - served).total_seconds()
        if left <= 0:
            why = f"it ended {timedelta(seconds=round(-left))} ago"
            raise AssetError("asset-forbidden", "token from signer is already expired", where=where, why=why)
        return _Token(query, now + left - min(MARGIN_S, left / 10), now + left)


@lru_cache(maxsize=64)
def _service(url: str, allow_emulator: bool) -> TokenService:
    return TokenService(url, allow_emulator)


def _served(date: str | None) -> datetime:
    """When the service answered, by its own clock; by ours where it sends no date (RFC 9110, 6.6.1: a date is GMT)."""
    if date is None:
        return datetime.now(UTC)
    found = parsedate_to_datetime(date)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _expiry(query: str, stated: str | None) -> datetime:
    """End of a token: its own `se` parameter, which the store obeys, else what the service states."""
    text = parse_qs(query).get("se", [stated or ""])[0]
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("the end of the token has no time zone")
    return found
