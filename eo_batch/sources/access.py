"""The door to pixels: every address goes through here just before it is opened.

After the policy of `core/hrefs.py` come the checks that need the machine: files are confined by their real path, names
are resolved and must not lead to private addresses, redirects are walked hop by hop, and addresses of signing catalogs
get a token that is shared by all readers of the process. GDAL resolves a name again when it opens it; a name server that
changes its answer in between is what an egress policy of the network is for (SECURITY.md).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import requests

from eo_batch.core.errors import AssetError, PolicyError
from eo_batch.core.hrefs import HrefPolicy, ip_of, is_public, redact
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources.access_tokens import TokenService
from eo_batch.sources.http import HttpFailure

MAX_REDIRECTS = 5
CHECK_SECONDS = 300.0
"""How long a checked address (its DNS answer and its redirects) is believed."""
TIMEOUT_S = (10.0, 30.0)

_REDIRECTS = (301, 302, 303, 307, 308)
_CACHE: dict[tuple[HrefPolicy, str], tuple[float, str]] = {}
_VERSIONS: dict[str, str] = {}
"""Address without its query -> which version of the file the server gave when it was asked last."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class AssetAccess:
    """Opens the way to assets of one catalog.

    Picklable (it is its catalog and nothing else) and safe for threads: tokens and checked addresses are kept per process.

    Parameters
    ----------
    catalog : as found by `find_catalog`: its `url` and `root` are absolute.
    """

    catalog: CatalogSpec

    @property
    def policy(self) -> HrefPolicy:
        """The rules for hrefs of this catalog."""
        return HrefPolicy.of(self.catalog)

    def open_path(self, href: str) -> str:
        """Path for `rasterio.open`: a local file, `/vsis3/...`, or `/vsicurl/https://...` checked, redirected and signed.

        Call it before each open; it costs nothing while what it knows is fresh.

        Raises
        ------
        PolicyError : `href-scheme`, `href-host`, `href-private-address`, `path-escape`.
        AssetError : `asset-unreachable` (no such host, no token service), `asset-forbidden` (token already expired),
            `asset-not-found` (no such local file).
        """
        path = self.resolve(href)
        if self.catalog.signing == "none" or not path.startswith("/vsicurl/"):
            return path
        return "/vsicurl/" + self.sign(path.removeprefix("/vsicurl/"))

    def resolve(self, href: str) -> str:
        """GDAL path of `href` after policy, real path, DNS and redirects; without a token."""
        policy = self.policy
        path = policy.check(href)
        if path.startswith("/vsis3/"):
            return path
        if not path.startswith("/vsicurl/"):
            return _real_file(path, policy.root)
        with _LOCK:
            known = _CACHE.get((policy, href))
        if known and known[0] > time.monotonic():
            return known[1]
        checked = "/vsicurl/" + self._checked(path.removeprefix("/vsicurl/"), policy)
        with _LOCK:
            if len(_CACHE) > 100_000:
                _CACHE.clear()
                _VERSIONS.clear()
            _CACHE[policy, href] = time.monotonic() + CHECK_SECONDS, checked
        return checked

    def version(self, href: str) -> str:
        """Which version of a remote file its server has; "" where it does not say. Asked for when an address is checked."""
        path = self.resolve(href)
        with _LOCK:
            return _VERSIONS.get(path.removeprefix("/vsicurl/").split("?", 1)[0], "")

    def check_again(self, href: str) -> None:
        """Believe no longer what was found out about the address of `href`."""
        with _LOCK:
            _CACHE.pop((self.policy, href), None)

    def _checked(self, url: str, policy: HrefPolicy) -> str:
        """Where `url` leads; a signed address must stay where it is, because its token is for that store alone."""
        check_address(url, policy)
        signed = self.sign(url)
        target = _walk(signed, policy)
        if signed == url:
            return target
        if target != signed:
            raise PolicyError("href-host", "a signed address is redirected", where=f'href "{redact(url)}"')
        return url

    def sign(self, href: str, *, now: float | None = None) -> str:
        """`href` with the token of its store, or unchanged where the catalog does not sign it.

        Parameters
        ----------
        now : monotonic seconds, for tests.
        """
        service = self._service()
        return href if service is None else service.sign(href, now=time.monotonic() if now is None else now)

    def expired(self, href: str, path: str = "") -> None:
        """Tell that a store answered 401 or 403: the token is forgotten, so the next `open_path` signs again.

        Parameters
        ----------
        href : as in the item.
        path : what `open_path` had returned and the store refused; a token that was replaced meanwhile is kept.

        Raises
        ------
        AssetError : `asset-forbidden` when the catalog does not sign, or two new tokens were refused as well.
        """
        host = urlsplit(href).hostname or href
        service = self._service()
        if service is None or not service.covers(href):
            raise AssetError(
                "asset-forbidden", f"access denied by {host} (not signed)", fix="Check the credentials for this store."
            )
        service.forget(href, path)

    def _service(self) -> TokenService | None:
        if self.catalog.signing == "none":
            return None
        return TokenService.shared(self.catalog.sign_url or "", allow_emulator=self.catalog.allow_private)


def check_address(url: str, policy: HrefPolicy) -> None:
    """Resolve the host of `url` and refuse private, loopback and link-local addresses.

    With a proxy in between, the proxy resolves names, so its own rules apply.

    Raises
    ------
    PolicyError : `href-private-address`.
    AssetError : `asset-unreachable`: the name has no address.
    """
    if policy.allow_private or policy.is_own(url):
        return
    host = urlsplit(url).hostname or ""
    if ip_of(host) is None and _behind_proxy(url):
        return
    for address in _addresses(host):
        if not is_public(address):
            what = f'host "{host}" leads to the private address {address}'
            raise PolicyError("href-private-address", what, where=f'href "{redact(url)}"')


def guard_address(url: str, policy: HrefPolicy) -> None:
    """Refuse a document address that the policy or the address of its host forbids; for `Http.guard`."""
    policy.check(url)
    try:
        check_address(url, policy)
    except AssetError as error:
        raise HttpFailure(error.what) from None


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise AssetError("asset-unreachable", f'host "{host}" has no address', why=redact(error)) from None
    return [ipaddress.ip_address(str(answer[4][0]).split("%", 1)[0]) for answer in answers]


def _behind_proxy(url: str) -> bool:
    return urlsplit(url).scheme in requests.utils.get_environ_proxies(url)


def _walk(url: str, policy: HrefPolicy) -> str:
    """Address that `url` leads to, each hop checked. Answers other than redirects are left for the reader to judge."""
    for _ in range(MAX_REDIRECTS + 1):
        check_address(url, policy)
        target = _redirect_of(url)
        if target is None:
            return url
        url = policy.check(urljoin(url, target)).removeprefix("/vsicurl/")
        if not url.startswith(("http://", "https://")):
            raise PolicyError("href-scheme", "a redirect leads away from the web", where=f'href "{redact(target)}"')
    raise PolicyError("href-host", f"more than {MAX_REDIRECTS} redirects", where=f'href "{redact(url)}"')


def _redirect_of(url: str) -> str | None:
    try:
        with requests.get(url, headers={"Range": "bytes=0-0"}, allow_redirects=False, stream=True, timeout=TIMEOUT_S) as answer:
            if answer.status_code in (200, 206):
                with _LOCK:
                    _VERSIONS[url.split("?", 1)[0]] = _version(answer)
            return answer.headers.get("Location") if answer.status_code in _REDIRECTS else None
    except requests.RequestException:
        return None  # the open that follows meets the same fault, classifies and retries it


def _version(answer: requests.Response) -> str:
    """When the file was changed last and its size, which all servers behind one name agree about; else its ETag."""
    changed, size = answer.headers.get("Last-Modified", ""), answer.headers.get("Content-Range", "").rpartition("/")[2]
    return f"{changed}, {size} bytes" if changed else answer.headers.get("ETag", "").strip('W/"')


def _real_file(path: str, root: str) -> str:
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath([real, real_root]) != real_root:
        raise PolicyError("path-escape", f'a link leads out of "{root}"', where=f'file "{path}"')
    if not os.path.isfile(real):
        raise AssetError("asset-not-found", "no such file", where=f'file "{path}"')
    return real
