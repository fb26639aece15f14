"""What a failed read means, and the one place where reads are tried again.

GDAL reports by text, and its texts hold signed addresses, so no foreign exception leaves this room: it is sorted into one
of the codes of `AssetError`, the text is made safe, and the new error is raised without its cause. GDAL's own retries are off.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from rasterio.errors import RasterioError

from eo_batch.core.errors import AssetError, PolicyError
from eo_batch.core.hrefs import redact
from eo_batch.sources.gates import HostRefuses, Turns
from eo_batch.sources.http import LONGEST_RETRY_AFTER_S, retry_after
from eo_batch.sources.raster import GDAL_ENV

T = TypeVar("T")

TRANSIENT = frozenset({"asset-rate-limited", "asset-unreachable", "asset-timeout"})
"""Codes that may go away by themselves. So may "asset-corrupt" from a remote file: a body that was cut on the way."""
MAX_RESIGNS = 2
PROBE_TIMEOUT_S = (10.0, 20.0)

FOREIGN = (RasterioError, OSError, ValueError)
"""What rasterio raises for files it cannot open or read."""

_CODES = {
    401: "asset-forbidden",
    403: "asset-forbidden",
    404: "asset-not-found",
    408: "asset-timeout",
    410: "asset-not-found",
    429: "asset-rate-limited",
}
_FIXES = {
    "asset-forbidden": "Check the credentials of the catalog, then run eo-batch resume.",
    "asset-not-found": 'Set missing_assets = "skip" to continue without it.',
    "asset-rate-limited": "Lower requests_at_once in the catalog file, then run eo-batch resume.",
    "asset-unreachable": "Check the network, then run eo-batch resume.",
    "asset-timeout": "Check the network, then run eo-batch resume.",
    "asset-corrupt": "The file or its transfer is damaged: try eo-batch resume, and report it to the provider if it stays.",
}


@dataclass(frozen=True)
class Retry:
    """How often and how patiently reads are tried again.

    Waits are drawn evenly from [0, min(cap_s, base_s * 2**n)] ("full jitter"), or as long as the server asks, if that is longer.

    Parameters
    ----------
    tries : reads at most, the first included.
    base_s, cap_s : seconds; 0 for tests.
    """

    tries: int = 4
    base_s: float = 1.0
    cap_s: float = 60.0

    def wait_s(self, attempt: int, asked_s: float = 0.0) -> float:
        """Seconds to wait after failed attempt `attempt` (from 0)."""
        drawn = random.uniform(0.0, min(self.cap_s, self.base_s * 2.0**attempt))
        return max(drawn, min(asked_s, LONGEST_RETRY_AFTER_S, self.cap_s * 2))


@dataclass(frozen=True)
class Trouble:
    """A foreign error, understood: its code, a safe cause, and the seconds the server asks to wait."""

    code: str
    why: str
    wait_s: float = 0.0

    @property
    def is_refusal(self) -> bool:
        """True where the host asks for slower reads: 429, or another passing trouble with a Retry-After."""
        return self.code == "asset-rate-limited" or (self.code in TRANSIENT and self.wait_s > 0)

    def error(self, where: str, *, tries: int, seconds: float) -> AssetError:
        """The error that users see."""
        count = f" after {tries} tries in {seconds:.0f} s" if tries > 1 else ""
        return AssetError(self.code, f"could not be read{count}", where=where, why=self.why, fix=_FIXES[self.code])


class _Failed(Exception):
    """A try failed, and why; there may be another."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.why)
        self.trouble = trouble


def understand(error: BaseException, path: str, *, ask: Callable[[str], Trouble | None]) -> Trouble:
    """What went wrong when `path` was opened or read.

    Parameters
    ----------
    path : as given to GDAL; only its host is ever shown.
    ask : gives what the server says of the file now; asked where the error does not say it, or not for how long to wait.
    """
    text = _texts(error)
    host = host_of(path)
    status = re.search(r"HTTP response code: (\d{3})", text)
    if status:
        trouble = _of_status(int(status[1]), path)
        again = ask(path) if trouble.code in TRANSIENT else None
        return replace(trouble, wait_s=again.wait_s) if again else trouble
    if "CURL error" in text or "Could not resolve host" in text:
        kind = "asset-timeout" if re.search(r"(?i)timed? ?out|too slow", text) else "asset-unreachable"
        return Trouble(kind, f"{host}: {_curl_cause(text)}")
    if host:  # reads of an open file lose the status: ask the server itself
        return ask(path) or Trouble("asset-corrupt", f"{host} sent bytes that are not the file: {_gdal_cause(text)}")
    if "No such file" in text or "does not exist" in text:
        return Trouble("asset-not-found", "no such file")
    if "Permission denied" in text:
        return Trouble("asset-forbidden", "no permission to read the file")
    return Trouble("asset-corrupt", _gdal_cause(text))


def with_retries(
    read: Callable[[], T],
    *,
    where: str,
    path: Callable[[], str],
    on_fault: Callable[[], None],
    on_denied: Callable[[], None],
    retry: Retry,
    turns: Turns,
) -> T:
    """Answer of `read`, tried again while there is hope.

    Parameters
    ----------
    where : which asset, for messages.
    path : GDAL path of the last attempt.
    on_fault : called after each failed attempt: forget open handles.
    on_denied : called after 401 or 403: forget the signature; raises AssetError where there is nothing to sign.
    turns : at the host. A try is made in one; between tries none is held.

    Raises
    ------
    AssetError : as `understand` says, or raised by `read`; never with a foreign cause.
    """
    started, resigned, attempt = time.monotonic(), 0, 0
    while True:
        try:
            with turns:
                return _read_once(read, where, path, turns, retry, attempt)
        except _Failed as failed:
            trouble = failed.trouble
        except HostRefuses:
            trouble = _slower(turns.host)
            raise trouble.error(where, tries=attempt, seconds=time.monotonic() - started) from None
        on_fault()
        if trouble.code == "asset-forbidden" and host_of(path()):
            denied = _denied(on_denied) if resigned < MAX_RESIGNS else f"re-sign failed {MAX_RESIGNS} times"
            if denied is None:
                resigned += 1
                continue
            trouble = Trouble("asset-forbidden", f"{trouble.why} ({denied})")
        attempt += 1
        hopeful = trouble.code in TRANSIENT or (trouble.code == "asset-corrupt" and bool(host_of(path())))
        if not hopeful or attempt >= retry.tries:
            raise trouble.error(where, tries=attempt, seconds=time.monotonic() - started) from None
        if not trouble.is_refusal:  # else all readers of the host wait for their next turn
            time.sleep(retry.wait_s(attempt - 1, trouble.wait_s))


def _read_once(read: Callable[[], T], where: str, path: Callable[[], str], turns: Turns, retry: Retry, attempt: int) -> T:
    """Answer of `read`; raises `_Failed` where another try may help, and tells all readers if the host asks for patience."""
    asked = time.monotonic()
    try:
        return read()
    except AssetError as error:
        if error.where == where:
            raise
        trouble = Trouble(error.code, ": ".join(text for text in (error.where, error.what, error.why) if text))
        if error.code not in TRANSIENT:
            fix = error.fix or _FIXES.get(error.code, "")
            raise AssetError(error.code, "could not be read", where=where, why=trouble.why, fix=fix) from None
    except PolicyError as error:
        fix = error.fix or "Leave the item out by source.filter, or tell the keeper of the catalog."
        raise PolicyError(error.code, error.what, where=f"{where}: {error.where}", why=error.why, fix=fix) from None
    except FOREIGN as error:
        trouble = understand(error, path(), ask=(lambda path: _slower(turns.host)) if turns.is_refused else _probe)
        trouble = _unless_too_late(trouble, path(), time.monotonic() - asked)
    if trouble.is_refusal:
        turns.refuse(retry.wait_s(max(attempt, turns.refused), trouble.wait_s))
    raise _Failed(trouble)


def _slower(host: str) -> Trouble:
    """The trouble of a read whose host refused another one meanwhile: it is not asked once more what that meant."""
    return Trouble("asset-rate-limited", f"{host} asks for slower reads")


def host_of(path: str) -> str:
    """Host of a remote GDAL path ("example.org", "s3 bucket name"), or "" for a file of this machine."""
    if path.startswith("/vsicurl/"):
        return urlsplit(path.removeprefix("/vsicurl/")).hostname or "remote"
    if path.startswith("/vsis3/"):
        return "s3 " + path.removeprefix("/vsis3/").split("/", 1)[0]
    return ""


def _unless_too_late(trouble: Trouble, path: str, seconds: float) -> Trouble:
    """GDAL does not say that a body stopped on its way, only that bytes are missing: a read as long as its deadline tells."""
    deadline = min(float(GDAL_ENV["GDAL_HTTP_TIMEOUT"]), float(GDAL_ENV["GDAL_HTTP_LOW_SPEED_TIME"]))
    if trouble.code == "asset-corrupt" and host_of(path) and seconds >= deadline:
        return Trouble("asset-timeout", f"{host_of(path)} sent not all that was asked for in {seconds:.0f} s")
    return trouble


def _denied(on_denied: Callable[[], None]) -> str | None:
    try:
        on_denied()
    except AssetError as error:
        return error.why or "not signed"
    return None


def _of_status(status: int, path: str, asked_s: float = 0.0) -> Trouble:
    """The trouble behind a status; `asked_s`: how long the server asks to wait."""
    code = _CODES.get(status, "asset-unreachable" if status >= 500 else "asset-corrupt")
    return Trouble(code, f"HTTP {status} from {host_of(path)}", asked_s)


def _probe(path: str) -> Trouble | None:
    """What the server says about one byte of the file now; None where it gives it, or cannot be asked."""
    if not path.startswith("/vsicurl/"):
        return None
    try:
        with requests.get(
            path.removeprefix("/vsicurl/"),
            headers={"Range": "bytes=0-0"},
            allow_redirects=False,
            stream=True,
            timeout=PROBE_TIMEOUT_S,
        ) as answer:
            if answer.status_code < 400:
                return None
            return _of_status(answer.status_code, path, retry_after(answer.headers) or 0.0)
    except requests.Timeout:
        return Trouble("asset-timeout", f"{host_of(path)} does not answer")
    except requests.RequestException:
        return Trouble("asset-unreachable", f"{host_of(path)} cannot be reached")


def _texts(error: BaseException) -> str:
    texts, seen = [], error
    for _ in range(10):
        texts.append(str(seen))
        following = seen.__cause__ or seen.__context__
        if following is None:
            break
        seen = following
    return "\n".join(texts)


def _curl_cause(text: str) -> str:
    cause = text.split("CURL error", 1)[-1].lstrip(": ").splitlines()[0] if "CURL error" in text else "no such host"
    return redact(cause)[:200]


def _gdal_cause(text: str) -> str:
    if "not recognized as being in a supported file format" in text or "not recognized as a supported" in text:
        return "not a readable GeoTIFF"
    if "Range downloading not supported" in text:
        return "the server gives no byte ranges"
    read = re.search(r"Read error at row \d+, col \d+, tile \d+; got \d+ bytes, expected \d+|[A-Za-z]+Decode:[^;\n?]*", text)
    return redact(read[0])[:200] if read and "4294967295" not in read[0] else "its pixels cannot be decoded"
