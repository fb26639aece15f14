"""Which addresses of pixels may be opened at all, and how any text is made safe to print.

Items are written by strangers. This module decides from the text of an href alone; what needs a disk, a name server
or a redirect is decided in `sources/access.py`, which asks this policy first.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from eo_batch.core.errors import PolicyError
from eo_batch.core.spec import CatalogSpec

MAX_HREF_CHARACTERS = 4096
SECRET_KEYS = frozenset(
    [
        "sig",
        "signature",
        "se",
        "sp",
        "sr",
        "sv",
        "st",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "token",
        "access_token",
        "accesstoken",
        "id_token",
        "refresh_token",
        "jwt",
        "session",
        "code",
        "auth",
        "authorization",
        "key",
        "apikey",
        "api_key",
        "api-key",
        "subscription-key",
        "key-pair-id",
        "policy",
        "expires",
        "credential",
        "password",
        "passwd",
        "secret",
        "client_secret",
        "awsaccesskeyid",
        "googleaccessid",
    ]
)
"""Names of query parameters that sign or authorise a request (Azure SAS, AWS and Google presigned URLs, API keys)."""
_SECRET_PREFIXES = ("x-amz-", "x-goog-", "x-ms-")

_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,20}://)([^\s'\"<>\\^`{|}]*)")
_HEADER = re.compile(r"(?im)\b(authorization|proxy-authorization|cookie|set-cookie|x-api-key)(['\"]?\s*[:=]\s*)[^\n\r,;}]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic|sharedaccesssignature)\s+[A-Za-z0-9+/._~=-]{6,}")
_PAIR = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:x-(?:amz|goog|ms)-[a-z-]+|(?:[a-z_]+[_-])?(?:sig|signature|token|secret|password|passwd|apikey|api[_-]key|"
    r"secret[_-]access[_-]key|access[_-]key[_-]id|credential))['\"]?\s*[=:]\s*['\"]?)[^\s&'\",;)}]+"
)
_QUERY_PAIR = re.compile(r"(?i)(?<=[?&])((?:s[eprtv]|sk[a-z]{1,4}|key|code|expires|policy)=)[^\s&'\"]+")
_TOKENS = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]+)?")
HIDDEN = "***"


def redact(text: object) -> str:
    """`text` without query strings, user names and passwords in URLs, authorisation headers and token-like values.

    Parameters
    ----------
    text : anything; an exception is taken by its message.

    Returns
    -------
    Text that may be shown, logged and stored. Redacting twice changes nothing more.
    """
    out = _URL.sub(_redact_url, str(text))
    out = _HEADER.sub(rf"\1\2{HIDDEN}", out)
    out = _BEARER.sub(rf"\1 {HIDDEN}", out)
    out = _PAIR.sub(rf"\1{HIDDEN}", out)
    out = _QUERY_PAIR.sub(rf"\1{HIDDEN}", out)
    return _TOKENS.sub(HIDDEN, out)


def without_secrets(href: str) -> str:
    """`href` as it may be stored: no fragment, no user name, and no query when any of its parameters signs the request."""
    if "://" not in href:
        return href
    try:
        parts = urlsplit(href)
    except ValueError:
        return href.split("?", 1)[0]
    netloc = parts.netloc.rsplit("@", 1)[-1]
    query = "" if has_secrets(parts.query) else parts.query
    return parts._replace(netloc=netloc, query=query, fragment="").geturl()


def has_secrets(query: str) -> bool:
    """True where a query string holds a parameter that signs or authorises."""
    names = [unquote(pair.split("=", 1)[0]).lower() for pair in re.split("[&;]", query) if pair]
    return any(name in SECRET_KEYS or name.startswith(_SECRET_PREFIXES) for name in names)


@dataclass(frozen=True)
class HrefPolicy:
    """What hrefs of one catalog may name, decided from their text alone.

    Parameters
    ----------
    hosts : lower-case host names that assets may come from; "*.example.org" is any name below example.org, "*" any name.
    buckets : S3 buckets that assets may come from ("s3://name" in `asset_hosts`; "s3://*" is any).
    origin : (scheme, host, port) of the catalog itself, always allowed, or None for a file.
    root : absolute folder that files must lie in or below, or "" where files are not allowed.
    allow_private : hosts may be loopback or private addresses.
    """

    hosts: tuple[str, ...]
    buckets: tuple[str, ...] = ()
    origin: tuple[str, str, int] | None = None
    root: str = ""
    allow_private: bool = False

    @classmethod
    def of(cls, catalog: CatalogSpec, root: str | None = None) -> HrefPolicy:
        """Policy of a catalog; `root` (absolute) stands in for a catalog file that names none."""
        entries = [entry.strip().lower() for entry in catalog.asset_hosts]
        folder = (catalog.root or root or posixpath.dirname(catalog.url)) if catalog.local else ""
        return cls(
            hosts=tuple(entry for entry in entries if not entry.startswith("s3://")),
            buckets=tuple(entry.removeprefix("s3://").rstrip("/") for entry in entries if entry.startswith("s3://")),
            origin=_origin(catalog.url),
            root=posixpath.normpath(folder) if folder else "",
            allow_private=catalog.allow_private,
        )

    def check(self, href: str) -> str:
        """The path with which GDAL opens `href`: `/vsicurl/https://...`, `/vsis3/bucket/key` or a file path.

        Raises
        ------
        PolicyError : `href-scheme`, `href-host`, `href-private-address`, `path-escape`.
        """
        if len(href) > MAX_HREF_CHARACTERS or any(ord(c) < 32 or ord(c) == 127 for c in href) or not href.strip():
            raise _refused("href-scheme", "the address is empty, too long or holds control characters", href)
        if href.startswith(("\\\\", "//")) or "\\" in href:
            raise _refused("href-scheme", "network share paths are not allowed", href)
        if "/vsi" in href.lower():
            raise _refused("href-scheme", "a virtual file system of GDAL is not an address", href)
        if "://" not in href:
            return self._check_file(href)
        scheme = href.split("://", 1)[0].lower()
        if scheme == "file":
            return self._check_file(unquote(href[7:]))
        if scheme == "s3":
            return self._check_bucket(href)
        if scheme not in ("https", "http"):
            raise _refused("href-scheme", f'"{scheme[:20]}" addresses are not allowed', href, "Allowed are https and s3.")
        return self._check_url(href, scheme)

    def is_own(self, href: str) -> bool:
        """True where `href` has the scheme, host and port of the catalog itself, which the operator has named."""
        return self.origin is not None and _origin(href) == self.origin

    def _check_url(self, href: str, scheme: str) -> str:
        try:
            parts = urlsplit(href)
            host, _ = (parts.hostname or "").rstrip(".").lower(), parts.port
        except ValueError:
            raise _refused("href-host", "the host cannot be read", href) from None
        if not host or not re.fullmatch(r"[a-z0-9._:-]+", host):
            raise _refused("href-host", "the host cannot be read", href)
        if parts.username is not None or parts.password is not None:
            raise _refused("href-host", "user names and passwords in addresses are not allowed", href)
        own = self.is_own(href)
        if not own and re.search(r"(?i)(^|[&;])(url|href|src|file|path)=", parts.query):
            raise _refused("href-scheme", "an address inside an address is not allowed", href)
        if not own and not self._knows(host):
            fix = f'Add "{host}" to asset_hosts of the catalog file if you trust it.'
            raise _refused("href-host", f'host "{host}" is not one of the catalog\'s asset hosts', href, fix)
        address = ip_of(host)
        if address is not None and not own and not self.allow_private:
            fix = "Give the name of the host instead of its number."
            raise _refused("href-private-address", f'host "{host}" is given as a number', href, fix)
        if is_local_name(host) and not own and not self.allow_private:
            raise _refused("href-private-address", f'host "{host}" is a name of this machine or network', href)
        if scheme == "http" and not own and not self.allow_private:
            raise _refused("href-scheme", "http addresses are not encrypted", href, "Allowed are https and s3.")
        return f"/vsicurl/{parts._replace(fragment='').geturl()}"

    def _knows(self, host: str) -> bool:
        for entry in self.hosts:
            if entry in ("*", host) or (entry.startswith("*.") and host.endswith(entry[1:]) and len(host) > len(entry) - 1):
                return True
        return False

    def _check_bucket(self, href: str) -> str:
        bucket, _, key = href[5:].partition("/")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket) or not key or "?" in href or ".." in key.split("/"):
            raise _refused("href-scheme", "not an address of an S3 object", href)
        if not ({"*", bucket.lower()} & set(self.buckets)):
            fix = f'Add "s3://{bucket}" to asset_hosts of the catalog file if you trust it.'
            raise _refused("href-host", f'bucket "{bucket}" is not one of the catalog\'s asset hosts', href, fix)
        return f"/vsis3/{bucket}/{key}"

    def _check_file(self, path: str) -> str:
        if not self.root:
            raise _refused("href-scheme", "files are not allowed for remote catalogs", path)
        if not path.startswith("/") or ":" in path.split("/")[0] or path.startswith("//"):
            raise _refused("href-scheme", "the address has no scheme that is allowed", path)
        clean = posixpath.normpath(path)
        if clean != self.root and not clean.startswith(self.root.rstrip("/") + "/"):
            fix = "Set root of the catalog file to a folder that holds the scenes."
            raise _refused("path-escape", f'the file lies outside of "{self.root}"', path, fix)
        return clean


def ip_of(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """IP address that `host` spells in any form a resolver takes (dotted, decimal, octal, hexadecimal, IPv6), or None.

    The short and numeric forms are those of inet_aton(3): 1 to 4 parts, each decimal, 0-octal or 0x-hexadecimal.
    """
    text = host.strip("[]").split("%", 1)[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    parts = text.split(".")
    if len(parts) > 4 or not all(re.fullmatch(r"0x[0-9a-f]*|[0-9]+", part.lower()) for part in parts):
        return None
    try:
        numbers = [
            int(p, 16) if p.lower().startswith("0x") and len(p) > 2 else int(p or "0", 8 if p.startswith("0") else 10)
            for p in parts
        ]
    except ValueError:
        return ipaddress.IPv4Address(0)  # all digits and dots, yet no number: never a name
    value = sum(number << (24 - 8 * i) for i, number in enumerate(numbers[:-1])) + numbers[-1]
    return ipaddress.IPv4Address(value) if 0 <= value < 2**32 else ipaddress.IPv4Address(0)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """True for an address of the open internet; IPv4 inside IPv6 (mapped, 6to4, NAT64, Teredo) is judged by its IPv4 part."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in ipaddress.IPv6Network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def is_local_name(host: str) -> bool:
    """True for names that never leave the machine or its network: localhost, *.local, *.internal, names without a dot."""
    if "." not in host.rstrip("."):
        return ":" not in host
    return host.endswith((".localhost", ".local", ".internal", ".lan", ".home.arpa"))


def _origin(href: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(href)
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            return None
        scheme = parts.scheme.lower()
        return scheme, parts.hostname.lower(), parts.port or (443 if scheme == "https" else 80)
    except ValueError:
        return None


def _refused(code: str, what: str, href: str, fix: str = "") -> PolicyError:
    printable = "".join(c if c.isprintable() else "?" for c in href[:200])
    return PolicyError(code, what, where=f'href "{redact(printable)}"', fix=fix)


def _redact_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    path, mark, _ = re.sub("[?#]", "?", rest, count=1).partition("?")
    authority, slash, tail = path.partition("/")
    if "@" in authority:
        authority = f"{HIDDEN}@{authority.rsplit('@', 1)[1]}"
    return f"{scheme}{authority}{slash}{tail}" + ("?" + HIDDEN if mark else "")
