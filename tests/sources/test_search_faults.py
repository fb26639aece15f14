"""A server that misbehaves is an error or is asked again; it never makes a shorter result."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from servers.cases import catalog, item, landing, page, pipeline, region_of
from servers.replay import Replay, Reply, serve_replies

from eo_batch.core.errors import CatalogError, ConfigError, PolicyError
from eo_batch.sources.http import Http, retry_after
from eo_batch.sources.search import search_items
from eo_batch.sources.search.api import _encrypted


def ask(replay: Replay, *, waits: list[float] | None = None, spec: Any = None, **fields: Any) -> list[str]:
    spec = spec or pipeline()
    sleeps = [] if waits is None else waits
    http = Http(sleep=sleeps.append)
    result = search_items(spec, catalog(replay.url, **fields), region=region_of(spec), http=http)
    return [document["id"] for document in result.documents]


NORMAL = landing()


def server(*pages: Any, root: Any = NORMAL) -> Any:
    replies = [one if isinstance(one, Reply) else Reply(one) for one in pages]
    return serve_replies({"/": [Reply(root)], "/search": replies})


def test_pages_are_followed_to_the_end() -> None:
    with server(page(item("a"), next_body={"token": "2"}), page(item("b"), next_body={"token": "3"}), page(item("c"))) as replay:
        assert ask(replay) == ["a", "b", "c"]
        bodies = [json.loads(body) for method, path, body in replay.seen if path == "/search"]
    assert bodies[1:] == [{"token": "2"}, {"token": "3"}]
    assert bodies[0]["collections"] == ["scenes"]
    assert bodies[0]["datetime"] == "2020-06-01T00:00:00Z/2020-07-01T00:00:00Z"


def test_a_link_that_says_merge_keeps_the_query() -> None:
    first = page(item("a"))
    first["links"] = [{"rel": "next", "method": "POST", "href": "{url}/search", "body": {"token": "2"}, "merge": True}]
    with server(first, page(item("b"))) as replay:
        assert ask(replay) == ["a", "b"]
        body = json.loads(replay.seen[-1][2])
    assert body["token"] == "2"
    assert body["collections"] == ["scenes"]


def test_an_empty_page_in_the_middle_does_not_end_the_search() -> None:
    with server(page(item("a"), next_body={"token": "2"}), page(next_body={"token": "3"}), page(item("b"))) as replay:
        assert ask(replay) == ["a", "b"]


def test_an_empty_page_after_the_last_announced_item_is_the_end() -> None:
    with server(page(item("a"), next_body={"t": 2}, numberMatched=1), page(next_body={"t": 2}, numberMatched=1)) as replay:
        assert ask(replay) == ["a"]


def test_a_server_that_lists_no_post_is_asked_with_get() -> None:
    root = landing()
    root["links"] = [link for link in root["links"] if link.get("method") != "POST"]
    first = page(item("a"))
    first["links"] = [{"rel": "next", "href": "{url}/search?token=2"}]
    with server(first, page(item("b")), root=root) as replay:
        assert ask(replay) == ["a", "b"]
        paths = [path for method, path, _ in replay.seen if method == "GET" and path.startswith("/search")]
    query = parse_qs(paths[0].partition("?")[2])
    assert query["bbox"] == ["10.0,50.0,10.2,50.1"]
    assert query["collections"] == ["scenes"]
    assert query["datetime"] == ["2020-06-01T00:00:00Z/2020-07-01T00:00:00Z"]
    assert paths[1] == "/search?token=2"


@pytest.mark.parametrize(
    ("target", "url", "seen"),
    [
        ("http://a.org/s?x=1", "https://a.org/v1", "https://a.org/s?x=1"),
        ("http://a.org:80/s", "https://a.org/v1", "https://a.org/s"),
        ("http://b.org/s", "https://a.org/v1", "http://b.org/s"),
        ("http://a.org/s", "http://a.org/v1", "http://a.org/s"),
    ],
)
def test_links_of_a_server_that_does_not_know_its_scheme_stay_encrypted(target: str, url: str, seen: str) -> None:
    assert _encrypted(target, url) == seen


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ([page(item("a"), next_body={"token": "2"}), page(item("b"), next_body={"token": "2"})], "was read before"),
        (
            [page(item("a"), next_body={"t": 2}), page(item("b"), next_body={"t": 3}), page(item("c"), next_body={"t": 2})],
            "was read before",
        ),
        ([page(item("a"), next_body={"t": 2}), page(item("a"), next_body={"t": 3})], "page 2 repeats page 1 (item a)"),
        ([page(item("a"), next_body={"t": 2}, next_href="https://evil.example.org/search")], "another host"),
        ([page(item("a"), next_body={"t": 2}, next_href="http://127.0.0.1:1/search")], "another host"),
        ([page(item("a"), item("x", collection="secrets"))], 'items of collection "secrets"'),
        ([page(item("a"), item("b"), numberMatched=3)], "3 announced, 2 received"),
        ([page(item("a"), item("b"), numberMatched=1)], "1 announced, 2 received"),
        ([page(item("a"), context={"matched": 7})], "7 announced, 1 received"),
    ],
)
def test_paging_that_cannot_be_trusted_is_an_error(pages: list[Any], words: str) -> None:
    with server(*pages) as replay, pytest.raises(CatalogError) as caught:
        ask(replay)
    assert caught.value.code == "catalog-paging"
    assert words in str(caught.value)


def test_a_server_that_is_known_to_miscount_may() -> None:
    with server(page(item("a"), item("b"), numberMatched=3)) as replay:
        assert ask(replay, miscounts=True) == ["a", "b"]


@pytest.mark.parametrize("announced", [2, 3])
def test_an_item_on_two_pages_may_be_counted_once_or_twice(announced: int) -> None:
    with server(
        page(item("a"), item("b"), next_body={"t": 2}, numberMatched=announced), page(item("b"), numberMatched=announced)
    ) as replay:
        assert ask(replay) == ["a", "b"]


TWO_PAGES = (page(item("a"), next_body={"token": "2"}), page(item("b")))
BROKEN = {
    "status 502": Reply(b"<html>bad gateway</html>", 502),
    "status 429": Reply({}, 429),
    "reset": Reply(reset=True),
    "short body": Reply(page(item("b"), item("c")), cut=40),
    "short but clean JSON": Reply(b'{"type": "FeatureCollection", "features": [{"type": "Fea'),
    "html": Reply(b"<html>please log in</html>", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_page_is_asked_for_again(fault: str) -> None:
    waits: list[float] = []
    with server(TWO_PAGES[0], BROKEN[fault], BROKEN[fault], TWO_PAGES[1]) as replay:
        assert ask(replay, waits=waits) == ["a", "b"]
    assert len(waits) == 2
    assert all(0 <= wait <= 60 for wait in waits)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_page_that_stays_broken_is_an_error_and_not_a_shorter_result(fault: str) -> None:
    with server(TWO_PAGES[0], BROKEN[fault]) as replay, pytest.raises(CatalogError) as caught:
        ask(replay)
    assert caught.value.code == "catalog-unreachable"
    assert "page 2" in str(caught.value)
    assert "after 5 tries" in str(caught.value)


def test_retry_after_is_obeyed_and_capped() -> None:
    waits: list[float] = []
    slow = [Reply({}, 429, {"Retry-After": text}) for text in ("2", "1000000000")]
    with server(*slow, page(item("a"))) as replay:
        assert ask(replay, waits=waits) == ["a"]
    assert waits == [2.0, 120.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Wed, 21 Oct 99999999999999999999 07:28:30 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_answer_that_repeating_cannot_change_ends_at_once(status: int) -> None:
    waits: list[float] = []
    with server(Reply({"description": "no"}, status)) as replay, pytest.raises(CatalogError, match=f"HTTP {status}"):
        ask(replay, waits=waits)
    assert waits == []


def test_a_server_that_is_not_there_is_named_without_its_secrets() -> None:
    with serve_replies({}) as replay:
        url = replay.url
    spec = pipeline()
    with pytest.raises(CatalogError, match="Connection refused") as caught:
        search_items(spec, catalog(f"{url}/v1?token=CANARY"), region=region_of(spec), http=Http(sleep=lambda s: None))
    assert "CANARY" not in str(caught.value)


def test_a_server_that_does_not_offer_item_search_is_refused() -> None:
    with (
        server(page(item("a")), root=landing(conforms=False)) as replay,
        pytest.raises(ConfigError, match="conforms to item search"),
    ):
        ask(replay)


@pytest.mark.parametrize(
    "root",
    [{"hello": "world"}, [], "text", None, landing() | {"conformsTo": 5}, landing() | {"links": [3]}, landing() | {"id": None}],
)
def test_a_landing_page_that_is_no_catalog_is_refused(root: Any) -> None:
    with server(page(item("a")), root=root) as replay, pytest.raises((ConfigError, CatalogError)):
        ask(replay)


def test_a_server_that_ignores_the_query_cannot_add_a_scene() -> None:
    strays = [
        item("late", datetime="2021-01-01T00:00:00Z"),
        item("far", box=(50.0, 0.0, 51.0, 1.0)),
        item("cloudy", eo__cloud_cover=99),
    ]
    with server(page(item("good", eo__cloud_cover=1), *strays)) as replay:
        assert ask(replay, spec=pipeline(max_cloud_cover=20)) == ["good"]


def test_a_filter_that_the_server_cannot_read_is_applied_here() -> None:
    with server(page(item("a", platform="x"), item("b", platform="y"))) as replay:
        assert ask(replay, spec=pipeline(filter="platform = 'x'")) == ["a"]
        assert b"filter" not in replay.seen[-1][2]


def test_redirects_on_the_same_server_are_followed() -> None:
    replies = {
        "/": [Reply({}, 307, {"Location": "/v1"})],
        "/v1": [Reply(landing())],
        "/search": [Reply({}, 307, {"Location": "/v1/search"})],
        "/v1/search": [Reply(page(item("a")))],
    }
    with serve_replies(replies) as replay:
        assert ask(replay) == ["a"]


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost:1/"]
)
def test_redirects_to_private_addresses_are_refused(target: str) -> None:
    with server(Reply({}, 307, {"Location": target})) as replay, pytest.raises(PolicyError):
        ask(replay)


def test_redirects_away_from_the_web_are_refused() -> None:
    with server(Reply({}, 307, {"Location": "file:///etc/passwd"})) as replay, pytest.raises(CatalogError):
        ask(replay)


def test_redirects_in_a_circle_end() -> None:
    with server(Reply({}, 307, {"Location": "/search"})) as replay, pytest.raises(CatalogError, match="redirects"):
        ask(replay)


def test_json_without_end_is_an_error() -> None:
    with server(Reply(b"[" * 200_000)) as replay, pytest.raises(CatalogError) as caught:
        ask(replay)
    assert caught.value.code == "catalog-unreachable"


def test_one_part_of_the_region_failing_fails_the_search() -> None:
    def answer(method: str, path: str, body: bytes) -> Reply:
        if path.rstrip("/") == "":
            return Reply(landing())
        return Reply(page(item("a", box=(179.2, 1.0, 179.6, 2.0)))) if json.loads(body)["bbox"][0] > 0 else Reply({}, 500)

    with serve_replies(answer) as replay, pytest.raises(CatalogError):
        ask(replay, spec=pipeline(bbox=(179.0, 1.0, -179.0, 2.0)))


def test_a_static_catalog_on_a_server_is_walked_and_its_broken_pages_asked_again() -> None:
    root = {
        "type": "Catalog",
        "id": "c",
        "links": [{"rel": "item", "href": "items/a.json"}, {"rel": "item", "href": "items/b.json"}],
    }
    replies = {
        "/catalog.json": [Reply(root)],
        "/items/a.json": [Reply({}, 503), Reply(item("a"))],
        "/items/b.json": [Reply(item("b"), cut=10), Reply(item("b"))],
    }
    spec = pipeline()
    with serve_replies(replies) as replay:
        where = catalog(f"{replay.url}/catalog.json", kind="static")
        result = search_items(spec, where, region=region_of(spec), http=Http(sleep=lambda s: None))
        assert [d["assets"]["red"]["href"] for d in result.documents] == [f"{replay.url}/items/red.tif"] * 2


def test_a_static_catalog_cannot_lead_to_private_servers() -> None:
    root = {"type": "Catalog", "id": "c", "links": [{"rel": "child", "href": "http://169.254.169.254/latest/meta-data"}]}
    spec = pipeline()
    with serve_replies({"/catalog.json": [Reply(root)]}) as replay, pytest.raises(PolicyError):
        search_items(spec, catalog(f"{replay.url}/catalog.json", kind="static"), region=region_of(spec))
