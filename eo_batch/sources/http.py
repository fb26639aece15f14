"""The one place that speaks HTTP with catalogs and token services: limits, redirects and retries in a single layer.

What is asked for is read only, so a request can be repeated: 429, 5xx, refused and broken connections, short bodies and
bodies that are not JSON are tried again with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from eo_batch.core.hrefs import redact
from eo_batch.core.logs import redact_logs

redact_logs("urllib3", "requests")

TRIES = 5
FIRST_WAIT_S, LONGEST_WAIT_S, LONGEST_RETRY_AFTER_S = 1.0, 60.0, 120.0
TIMEOUT_S = (10.0, 60.0)
MAX_REDIRECTS = 5
MAX_BODY_BYTES = 512_000_000

_REPEATED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)


class HttpFailure(requests.RequestException):
    """A request that stays without a usable answer; the text is redacted."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(redact(text))
        self.status = status


@dataclass(frozen=True)
class Answer:
    """A complete JSON answer and where it came from."""

    document: Any
    headers: Mapping[str, str]
    url: str


@dataclass
class Http:
    """Requests with limits and retries.

    Parameters
    ----------
    guard : called with every address before it is contacted, redirects included; raises to refuse.
    sleep : waits for seconds; replaced in tests.
    tries : requests made before giving up.
    """

    guard: Callable[[str], None] = lambda url: None
    sleep: Callable[[float], None] = time.sleep
    tries: int = TRIES
    session: requests.Session = field(default_factory=requests.Session, repr=False)

    def get_json(self, url: str) -> Answer:
        """JSON document at `url`."""
        return self.json("GET", url)

    def json(
        self,
        method: str,
        url: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """JSON answer to a request.

        Raises
        ------
        HttpFailure : no usable answer after all tries, or at once for answers that a repetition cannot change.
        """
        sent = {**(headers or {}), "Accept": "application/geo+json, application/json"}

        def parse(response: requests.Response, data: bytes) -> Answer:
            return Answer(json.loads(data), response.headers, response.url)

        answer = self._with_retries(method, url, parse, json=body, params=dict(params) if params else None, headers=sent)
        assert isinstance(answer, Answer)
        return answer

    def get_bytes(self, url: str) -> bytes:
        """Whole file at `url`; raises as `json`."""
        data = self._with_retries("GET", url, lambda response, data: data)
        assert isinstance(data, bytes)
        return data

    def _with_retries(self, method: str, url: str, parse: Callable[[requests.Response, bytes], Any], **options: Any) -> Any:
        attempt = 0
        while True:
            attempt += 1
            wait = random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
            status: int | None = None
            try:
                response, data = self._send(method, url, **options)
                status, why = response.status_code, f"HTTP {response.status_code}"
                if 200 <= status < 300:
                    return self._parsed(parse, response, data)
                if status not in _REPEATED_STATUS:
                    raise HttpFailure(why, status=status)
                asked = retry_after(response.headers)
                wait = wait if asked is None else asked
            except _BROKEN as error:
                why = _reason(error)
            if attempt >= self.tries:
                raise HttpFailure(f"{why} after {attempt} tries", status=status)
            self.sleep(wait)

    @staticmethod
    def _parsed(parse: Callable[[requests.Response, bytes], Any], response: requests.Response, data: bytes) -> Any:
        try:
            return parse(response, data)
        except (ValueError, RecursionError) as error:
            raise requests.ConnectionError(f"the answer is not JSON ({type(error).__name__})") from None

    def _send(self, method: str, url: str, **options: Any) -> tuple[requests.Response, bytes]:
        for _ in range(MAX_REDIRECTS + 1):
            self.guard(url)
            with self.session.request(method, url, allow_redirects=False, stream=True, timeout=TIMEOUT_S, **options) as response:
                target = response.headers.get("Location")
                if response.status_code not in (301, 302, 303, 307, 308) or not target:
                    return response, _body(response)
            url = urljoin(url, target)
            if urlsplit(url).scheme not in ("http", "https"):
                raise HttpFailure("a redirect leads away from the web")
            if response.status_code in (301, 302, 303) and method != "GET":
                raise HttpFailure(f"the server redirects {method} requests to {url}")
            options["params"] = None
        raise HttpFailure(f"more than {MAX_REDIRECTS} redirects")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (RFC 9110, 10.2.3: seconds or a date), 0 to 120, or None."""
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if not text[0].isalpha() else _until(text, headers.get("Date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if seconds == seconds else None


def _until(text: str, server_date: str) -> float:
    return (parsedate_to_datetime(text) - parsedate_to_datetime(server_date)).total_seconds()


def _body(response: requests.Response) -> bytes:
    """Whole body; a body shorter than announced is a broken connection."""
    pieces, size = [], 0
    for piece in response.iter_content(1 << 20):
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise HttpFailure(f"the answer is larger than {MAX_BODY_BYTES:,} bytes")
        pieces.append(piece)
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and "Content-Encoding" not in response.headers and size < int(announced):
        raise requests.ConnectionError(f"expected {int(announced):,} bytes, got {size:,}")
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {redact(error)[:200]}"
    text = redact(error)
    if text.startswith(("expected ", "the answer ")):
        return text[:200]
    return "the connection failed: " + next((hint for hint in _HINTS if hint in text), text[:200])


_HINTS = (
    "Connection refused",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Connection reset by peer",
    "expected ",
)
