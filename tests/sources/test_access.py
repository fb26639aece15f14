from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from servers.cases import catalog
from servers.replay import Reply, serve_replies

from eo_batch.core.errors import AssetError, PolicyError
from eo_batch.sources import access as access_module
from eo_batch.sources import access_tokens
from eo_batch.sources.access import AssetAccess

BLOB = "https://account.blob.core.windows.net/container/a/b.tif"
DATE = "Wed, 21 Oct 2026 07:00:00 GMT"


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports of test servers may come again."""
    monkeypatch.setattr(access_module, "_CACHE", {})
    access_tokens._service.cache_clear()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Answers of the name server by host; the real one is not asked."""
    answers: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **options: Any) -> Any:
        if host == "127.0.0.1":
            return real(host, *rest, **options)
        if host not in answers:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answers[host]]

    monkeypatch.setattr(access_module.socket, "getaddrinfo", resolve)
    return answers


def signing(url: str) -> AssetAccess:
    """Access to a catalog that signs with the service at `url`; its stores are not asked for redirects."""
    return AssetAccess(catalog("https://api.example.org", signing="planetary-computer", sign_url=f"{url}/token"))


def tokens(*queries: str, expiry: str = "2026-10-21T08:00:00Z", **reply: Any) -> dict[str, list[Reply]]:
    replies = [Reply({"msft:expiry": expiry, "token": query}, headers={"Date": DATE}, **reply) for query in queries]
    return {"/token/account/container": replies}


# files


def test_a_local_file_is_given_by_its_real_path(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    (tmp_path / "b.tif").symlink_to("a.tif")
    assert AssetAccess(catalog(str(tmp_path / "c.json"), local=True, root=str(tmp_path))).open_path(
        str(tmp_path / "b.tif")
    ) == str(tmp_path / "a.tif")


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").touch()
    (tmp_path / "inside" / "a.tif").symlink_to(tmp_path / "secret")
    where = AssetAccess(catalog(str(tmp_path / "inside" / "c.json"), local=True, root=str(tmp_path / "inside")))
    with pytest.raises(PolicyError) as caught:
        where.open_path(str(tmp_path / "inside" / "a.tif"))
    assert caught.value.code == "path-escape"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: os.mkfifo(path)])
def test_what_is_no_file_is_not_found(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.tif")
    with pytest.raises(AssetError) as caught:
        AssetAccess(catalog(str(tmp_path / "c.json"), local=True, root=str(tmp_path))).open_path(str(tmp_path / "a.tif"))
    assert caught.value.code == "asset-not-found"


def test_files_of_a_remote_catalog_are_refused() -> None:
    with pytest.raises(PolicyError, match="files are not allowed for remote catalogs"):
        AssetAccess(catalog("https://api.example.org")).open_path("file:///etc/passwd")


# names and redirects


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "192.168.0.1", "::1", "::ffff:10.0.0.1", "fe80::1"]
)
def test_a_name_that_leads_to_a_private_address_is_refused(address: str, names: dict[str, list[str]]) -> None:
    names["data.example.org"] = ["93.184.216.34", address]
    with pytest.raises(PolicyError) as caught:
        AssetAccess(catalog("https://api.example.org")).open_path("https://data.example.org/a.tif")
    assert caught.value.code == "href-private-address"


def test_a_name_without_an_address_is_unreachable(names: dict[str, list[str]]) -> None:
    with pytest.raises(AssetError) as caught:
        AssetAccess(catalog("https://api.example.org")).open_path("https://gone.example.org/a.tif?sig=CANARY")
    assert caught.value.code == "asset-unreachable"
    assert "CANARY" not in str(caught.value)


def test_a_public_name_is_opened(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    names["data.example.org"] = ["93.184.216.34"]
    monkeypatch.setattr(access_module, "_redirect_of", lambda url: None)
    where = AssetAccess(catalog("https://api.example.org"))
    assert where.open_path("https://data.example.org/a.tif") == "/vsicurl/https://data.example.org/a.tif"


def test_a_checked_address_is_believed_for_a_while(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    names["data.example.org"] = ["93.184.216.34"]
    monkeypatch.setattr(access_module, "_redirect_of", lambda url: asked.append(url))
    where = AssetAccess(catalog("https://api.example.org"))
    for _ in range(3):
        where.open_path("https://data.example.org/a.tif")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("http://169.254.169.254/latest/meta-data", "href-private-address"),
        ("https://[::1]/a.tif", "href-private-address"),
        ("https://2130706433/a.tif", "href-private-address"),
        ("https://localhost/a.tif", "href-private-address"),
        ("file:///etc/passwd", "href-scheme"),
        ("ftp://data.example.org/a.tif", "href-scheme"),
        ("//evil.example.org/a.tif", "href-scheme"),
        ("/loop.tif", "href-host"),
    ],
)
def test_redirects_are_checked_hop_by_hop(target: str, code: str) -> None:
    with serve_replies({"/loop.tif": [Reply(b"", 302, {"Location": target})]}) as server, pytest.raises(PolicyError) as caught:
        AssetAccess(catalog(server.url)).open_path(f"{server.url}/loop.tif")
    assert caught.value.code == code


def test_redirects_to_hosts_that_are_not_listed_are_refused() -> None:
    elsewhere = {"/a.tif": [Reply(b"", 302, {"Location": "https://other.example.org/a.tif"})]}
    with serve_replies(elsewhere) as server, pytest.raises(PolicyError) as caught:
        AssetAccess(catalog(server.url, asset_hosts=[])).open_path(f"{server.url}/a.tif")
    assert caught.value.code == "href-host"


def test_allowed_redirects_give_the_last_address() -> None:
    replies = {
        "/a.tif": [Reply(b"", 302, {"Location": "/b.tif"})],
        "/b.tif": [Reply(b"", 307, {"Location": "{url}/c.tif?v=1"})],
        "/c.tif": [Reply(b"II")],
    }
    with serve_replies(replies) as server:
        assert AssetAccess(catalog(server.url)).open_path(f"{server.url}/a.tif") == f"/vsicurl/{server.url}/c.tif?v=1"


def test_a_store_that_answers_an_error_is_left_to_the_reader() -> None:
    with serve_replies({"/a.tif": [Reply({}, 403)]}) as server:
        assert AssetAccess(catalog(server.url)).open_path(f"{server.url}/a.tif").endswith("/a.tif")


# signing


def test_a_signed_address_carries_the_token_of_its_store(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "_redirect_of", lambda url: None)
    names["account.blob.core.windows.net"] = ["20.60.0.1"]
    with serve_replies(tokens("sv=1&se=2026-10-21T08:00:00Z&sig=abc")) as service:
        assert signing(service.url).open_path(BLOB) == f"/vsicurl/{BLOB}?sv=1&se=2026-10-21T08:00:00Z&sig=abc"


def test_a_signed_address_must_not_be_redirected() -> None:
    replies = {**tokens("sig=CANARY"), "/account/container/a.tif": [Reply(b"", 302, {"Location": "/account/container/b.tif"})]}
    with serve_replies(replies) as server:
        spec = catalog(
            "https://api.example.org", allow_private=True, signing="planetary-computer", sign_url=f"{server.url}/token"
        )
        with pytest.raises(PolicyError, match="a signed address is redirected") as caught:
            AssetAccess(spec).open_path(f"{server.url}/account/container/a.tif")
    assert "CANARY" not in str(caught.value)


def test_hosts_of_no_store_are_not_signed() -> None:
    with serve_replies(tokens("sig=abc")) as service:
        where = signing(service.url)
        assert where.sign("https://other.example.org/container/a.tif") == "https://other.example.org/container/a.tif"
        assert where.sign("https://account.blob.core.windows.net.evil.org/container/a.tif").endswith("a.tif")
        assert service.seen == []


def test_one_token_serves_all_threads_and_copies() -> None:
    with serve_replies(tokens("sig=one", "sig=two")) as service:
        where = signing(service.url)
        copies = [pickle.loads(pickle.dumps(where)) for _ in range(8)]
        signed: list[str] = []
        threads = [threading.Thread(target=lambda one=one: signed.append(one.sign(BLOB))) for one in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert signed == [f"{BLOB}?sig=one"] * 8
        assert len(service.seen) == 1


def test_a_token_is_renewed_before_it_ends() -> None:
    with serve_replies(tokens("sig=one", "sig=two")) as service:  # each lives for an hour
        where = signing(service.url)
        assert where.sign(BLOB, now=1000.0).endswith("sig=one")
        assert where.sign(BLOB, now=1000.0 + 3600 - 301).endswith("sig=one")
        assert where.sign(BLOB, now=1000.0 + 3600 - 299).endswith("sig=two")


def test_an_old_token_is_used_to_its_end_while_the_service_is_away() -> None:
    with serve_replies({"/token/account/container": [*tokens("sig=one")["/token/account/container"], Reply({}, 404)]}) as service:
        where = signing(service.url)
        where.sign(BLOB, now=0.0)
        assert where.sign(BLOB, now=3500.0).endswith("sig=one")
        with pytest.raises(AssetError) as caught:
            where.sign(BLOB, now=3700.0)
    assert caught.value.code == "asset-unreachable"


def test_a_token_that_has_already_ended_is_refused_at_once() -> None:
    old = tokens("se=2026-10-21T06:48:00Z&sig=CANARY", expiry="2026-10-21T09:00:00Z")
    with serve_replies(old) as service, pytest.raises(AssetError, match="token from signer is already expired") as caught:
        signing(service.url).sign(BLOB)
    assert caught.value.code == "asset-forbidden"
    assert "0:12:00 ago" in str(caught.value)
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"token": "sig=x"},
        {"token": "sig=x", "msft:expiry": "soon"},
        {"token": "sig=x", "msft:expiry": "2026-10-21T08:00:00"},
        [],
        "text",
    ],
)
def test_an_answer_that_is_no_token_is_an_error(answer: Any) -> None:
    replies = {"/token/account/container": [Reply(answer, headers={"Date": DATE})]}
    with serve_replies(replies) as service, pytest.raises(AssetError, match="no token") as caught:
        signing(service.url).sign(BLOB)
    assert caught.value.code == "asset-unreachable"


def test_a_refused_token_is_replaced_twice_and_then_the_read_fails() -> None:
    with serve_replies(tokens("sig=one", "sig=two", "sig=three", "sig=four")) as service:
        where = signing(service.url)
        for query in ("sig=one", "sig=two"):
            path = where.sign(BLOB)
            assert path.endswith(query)
            where.expired(BLOB, path)
        path = where.sign(BLOB)
        with pytest.raises(AssetError, match="re-sign failed 2 times") as caught:
            where.expired(BLOB, path)
    assert caught.value.code == "asset-forbidden"


def test_readers_that_saw_the_same_refusal_replace_the_token_once() -> None:
    with serve_replies(tokens("sig=one", "sig=two")) as service:
        where = signing(service.url)
        old = where.sign(BLOB)
        for _ in range(10):
            where.expired(BLOB, old)
            assert where.sign(BLOB).endswith("sig=two")


def test_a_catalog_that_does_not_sign_cannot_sign_again() -> None:
    with pytest.raises(AssetError, match="not signed") as caught:
        AssetAccess(catalog("https://api.example.org")).expired("https://data.example.org/a.tif?sig=CANARY")
    assert caught.value.code == "asset-forbidden"
    assert "CANARY" not in str(caught.value)


def test_a_signed_file_is_read_from_a_store_that_asks_for_the_token(tmp_path: Path) -> None:
    """Store and token service are real servers; the store is an emulator with account and container in the path."""
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=4, height=3, count=1, dtype="uint8") as made:
        made.write(np.full((1, 3, 4), 7, np.uint8))
    data = (tmp_path / "a.tif").read_bytes()

    def answer(method: str, path: str, body: bytes) -> Reply:
        if path.startswith("/token/"):
            return Reply({"msft:expiry": "2026-10-21T08:00:00Z", "token": "sig=good"}, headers={"Date": DATE})
        if path.startswith("/account/container/a.tif"):
            return Reply(data) if path.endswith("?sig=good") else Reply({}, 403)
        return Reply({}, 404)

    with serve_replies(answer) as server:
        spec = catalog(
            "https://api.example.org", allow_private=True, signing="planetary-computer", sign_url=f"{server.url}/token"
        )
        path = AssetAccess(spec).open_path(f"{server.url}/account/container/a.tif")
        options = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "CPL_VSIL_CURL_USE_HEAD": "NO"}
        with rasterio.Env(**options), rasterio.open(path, driver="GTiff") as found:
            assert found.read().tolist() == [[[7] * 4] * 3]
