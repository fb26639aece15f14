from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eo_batch.core.errors import PolicyError
from eo_batch.core.hrefs import HrefPolicy, has_secrets, ip_of, is_public, redact, without_secrets
from eo_batch.core.spec import CatalogSpec

REMOTE = HrefPolicy.of(
    CatalogSpec.model_validate(
        {
            "title": "r",
            "url": "https://api.example.org/v1",
            "asset_hosts": ["data.example.org", "*.tiles.example.net", "s3://scenes"],
        }
    )
)
ANY = HrefPolicy.of(CatalogSpec.model_validate({"title": "any", "url": "https://api.example.org/v1", "asset_hosts": ["*"]}))
LOCAL = HrefPolicy.of(
    CatalogSpec.model_validate({"title": "l", "url": "/data/stac/catalog.json", "kind": "static", "local": True, "root": "/data"})
)
TEST_SERVER = HrefPolicy.of(
    CatalogSpec.model_validate({"title": "t", "url": "http://127.0.0.1:8000", "asset_hosts": ["*"], "allow_private": True})
)


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("https://data.example.org/a/b.tif", "/vsicurl/https://data.example.org/a/b.tif"),
        ("https://DATA.example.org/a.tif", "/vsicurl/https://DATA.example.org/a.tif"),
        ("https://x.y.tiles.example.net/a.tif", "/vsicurl/https://x.y.tiles.example.net/a.tif"),
        ("https://api.example.org/v1/a.tif", "/vsicurl/https://api.example.org/v1/a.tif"),
        ("https://data.example.org/a.tif?v=2#part", "/vsicurl/https://data.example.org/a.tif?v=2"),
        ("s3://scenes/2020/a.tif", "/vsis3/scenes/2020/a.tif"),
    ],
)
def test_known_hosts_become_gdal_paths(href: str, path: str) -> None:
    assert REMOTE.check(href) == path


@pytest.mark.parametrize(
    ("href", "code"),
    [
        ("file:///etc/passwd", "href-scheme"),
        ("/etc/passwd", "href-scheme"),
        ("../../etc/passwd", "href-scheme"),
        ("/vsizip//vsicurl/https://data.example.org/a.zip", "href-scheme"),
        ("/vsicurl/https://data.example.org/a.tif", "href-scheme"),
        ("/VSICURL/https://data.example.org/a.tif", "href-scheme"),
        ("/vsicurl?url=https://data.example.org/a.tif", "href-scheme"),
        ("https://data.example.org/a?url=http://10.0.0.1/", "href-scheme"),
        ("https://data.example.org/a?x=1&URL=file:///etc/passwd", "href-scheme"),
        ("GTIFF_DIR:1:/etc/passwd", "href-scheme"),
        ('NETCDF:"/etc/passwd":a', "href-scheme"),
        ("WMS:https://data.example.org/a", "href-scheme"),
        ("<VRTDataset/>", "href-scheme"),
        ("\\\\server\\share\\a.tif", "href-scheme"),
        ("//server/share/a.tif", "href-scheme"),
        ("C:\\a.tif", "href-scheme"),
        ("ftp://data.example.org/a.tif", "href-scheme"),
        ("gopher://data.example.org/", "href-scheme"),
        ("data:image/tiff;base64,AAAA", "href-scheme"),
        ("http://data.example.org/a.tif", "href-scheme"),
        ("https://data.example.org/a\n.tif", "href-scheme"),
        ("https://data.example.org/\x00a.tif", "href-scheme"),
        ("", "href-scheme"),
        ("   ", "href-scheme"),
        ("https://" + "a" * 5000, "href-scheme"),
        ("https://other.example.org/a.tif", "href-host"),
        ("https://data.example.org.evil.net/a.tif", "href-host"),
        ("https://evildata.example.org/a.tif", "href-host"),
        ("https://tiles.example.net/a.tif", "href-host"),
        ("https://me:pw@data.example.org/a.tif", "href-host"),
        ("https://data.example.org@evil.net/a.tif", "href-host"),
        ("https:///a.tif", "href-host"),
        ("https://[::1/a.tif", "href-host"),
        ("https://data.example.org:99999/a.tif", "href-host"),
        ("s3://others/a.tif", "href-host"),
        ("s3://scenes/../others/a.tif", "href-scheme"),
        ("s3://scenes", "href-scheme"),
    ],
)
def test_foreign_addresses_are_refused(href: str, code: str) -> None:
    with pytest.raises(PolicyError) as caught:
        REMOTE.check(href)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "127.1",
        "0",
        "8.8.8.8",
    ],
)
def test_numbers_are_not_hosts_of_assets(host: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ANY.check(f"https://{host}/a.tif")
    assert caught.value.code == "href-private-address"


@pytest.mark.parametrize(
    "host", ["localhost", "printer.local", "metadata.google.internal", "intranet", "a.localhost", "localhost."]
)
def test_names_of_this_network_are_refused(host: str) -> None:
    with pytest.raises(PolicyError) as caught:
        ANY.check(f"https://{host}/a.tif")
    assert caught.value.code == "href-private-address"


def test_test_servers_may_be_private_and_unencrypted() -> None:
    assert TEST_SERVER.check("http://127.0.0.1:9000/a.tif") == "/vsicurl/http://127.0.0.1:9000/a.tif"


def test_the_catalogs_own_server_needs_no_entry_but_its_other_ports_do() -> None:
    own = HrefPolicy.of(CatalogSpec.model_validate({"title": "t", "url": "http://127.0.0.1:8000/stac", "asset_hosts": ["*"]}))
    assert own.check("http://127.0.0.1:8000/a.tif").endswith("a.tif")
    with pytest.raises(PolicyError):
        own.check("http://127.0.0.1:8001/a.tif")


@pytest.mark.parametrize(
    "href", ["/data/scenes/a.tif", "file:///data/scenes/a.tif", "/data/stac/../scenes/a.tif", "/data/scenes/a%20b.tif"]
)
def test_local_catalogs_may_name_files_below_their_root(href: str) -> None:
    assert LOCAL.check(href).startswith("/data/scenes/a")


@pytest.mark.parametrize(
    ("href", "code"),
    [
        ("/etc/passwd", "path-escape"),
        ("/data/../etc/passwd", "path-escape"),
        ("/database/a.tif", "path-escape"),
        ("file:///etc/passwd", "path-escape"),
        ("file:///data/%2e%2e/etc/passwd", "path-escape"),
        ("/data/vsi/../vsizip/a", "ok"),
        ("/vsizip/data/a.zip", "href-scheme"),
        ("file://server/data/a.tif", "href-scheme"),
        ("scenes/a.tif", "href-scheme"),
    ],
)
def test_local_catalogs_stay_in_their_root(href: str, code: str) -> None:
    if code == "ok":
        with pytest.raises(PolicyError):  # "/vsi" anywhere is refused: no scene needs it
            LOCAL.check(href)
        return
    with pytest.raises(PolicyError) as caught:
        LOCAL.check(href)
    assert caught.value.code == code


@given(st.text(max_size=60), st.sampled_from(["", "https://", "s3://", "file://", "/data/", "/vsi", "http://127.0.0.1/"]))
def test_any_text_is_allowed_or_refused_and_nothing_else(text: str, head: str) -> None:
    for policy in (REMOTE, ANY, LOCAL):
        outcome = _outcome(policy, head + text)
        assert outcome in CODES or outcome.startswith(("/vsicurl/https://", "/vsis3/", "/data"))


CODES = ("href-scheme", "href-host", "href-private-address", "path-escape")


def _outcome(policy: HrefPolicy, href: str) -> str:
    try:
        return policy.check(href)
    except PolicyError as error:
        return error.code


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("10.513", "10.0.2.1"),
        ("[fe80::1%eth0]", "fe80::1"),
    ],
)
def test_numbers_are_read_as_a_resolver_reads_them(text: str, address: str) -> None:
    assert ip_of(text) == ipaddress.ip_address(address)


@pytest.mark.parametrize("text", ["example.org", "a.b", "1.2.3.4.5", "0xg", "face"])
def test_names_are_not_numbers(text: str) -> None:
    assert ip_of(text) is None


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::a00:1"),
    ],
)
def test_other_addresses_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


CANARIES = [
    "https://store.example.org/a.tif?sig=CANARY&se=2030",
    "https://store.example.org/a.tif?X-Amz-Signature=CANARY",
    "https://user:CANARY@store.example.org/a.tif",
    "Authorization: Bearer CANARY123456",
    "{'Authorization': 'Basic CANARY=='}",
    "cookie: session=CANARY",
    "token=CANARY",
    'AWS_SECRET_ACCESS_KEY="CANARY"',
    "failed: /vsicurl/https://store.example.org/a.tif?st=1&sig=CANARY: HTTP 403",
    "url (https://h.example.org/p?token=CANARY), retry",
    "sv=2020&sr=c&sig=CANARY%3D",
    "ASIACANARYCANARYCANA",
    "https://h.example.org/a#access_token=CANARY",
]


@pytest.mark.parametrize("text", CANARIES)
def test_redacted_text_holds_no_secret(text: str) -> None:
    assert "CANARY" not in redact(text)


@pytest.mark.parametrize("text", CANARIES)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


def test_redacted_text_still_says_where() -> None:
    assert (
        redact("HTTP 403 from https://store.example.org/a/b.tif?sig=x") == "HTTP 403 from https://store.example.org/a/b.tif?***"
    )


@pytest.mark.parametrize(
    "text", ["chunk t0003/y0012_x0044 done", "band red of item S2B_20TMR: 10 of 12", "a token of love", "key: value"]
)
def test_plain_text_is_not_redacted(text: str) -> None:
    assert redact(text) == text


def test_stored_hrefs_keep_harmless_queries_only() -> None:
    assert without_secrets("https://h.example.org/a.tif?v=3#x") == "https://h.example.org/a.tif?v=3"
    assert without_secrets("https://u:p@h.example.org/a.tif?se=1&sig=x") == "https://h.example.org/a.tif"
    assert not has_secrets("collection=a&item=b")
