"""Sessions recorded from public servers, played again on loopback. Their queries were others', so answers are filtered here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from servers.cases import catalog, landing, pipeline, region_of
from servers.replay import Reply, recorded, serve_replies

from eo_batch.core.errors import CatalogError, ConfigError
from eo_batch.sources.search import search_items

pytestmark = pytest.mark.shared


def play(
    path: Path, prefix: str, spec: Any, *, root: Any = None, keep: int | None = None, **fields: Any
) -> tuple[Any, list[Any]]:
    """Search result over a recording, and the recorded exchanges. `root` replaces a landing page that was not recorded."""
    replies, exchanges = recorded(path)
    if root is not None:
        replies[f"GET {prefix}"] = [Reply(root)]
    if keep is not None:
        key = f"POST {prefix}/search"
        replies[key] = replies[key][:keep]
    with serve_replies(replies) as replay:
        return search_items(spec, catalog(f"{replay.url}{prefix}", **fields), region=region_of(spec)), exchanges


def ids(exchanges: list[Any], number: int = -1) -> set[str]:
    return {feature["id"] for feature in exchanges[number]["response"]["body"]["features"]}


PC = "/api/stac/v1"
VERMONT = {"bbox": (-73.21, 43.99, -73.12, 44.05), "start": "2000-01-01", "end": "2030-01-01", "collections": ("naip",)}


def test_one_page_of_the_planetary_computer_is_found_whole(shared: Path) -> None:
    spec = pipeline(**VERMONT)
    result, exchanges = play(shared / "stac/wild/search/pc-intersects-42.json.gz", PC, spec, root=landing(f"{{url}}{PC}"), keep=1)
    assert {document["id"] for document in result.documents} == ids(exchanges)
    assert len(result.documents) == 42
    assert [d["properties"]["datetime"] for d in result.documents] == sorted(
        d["properties"]["datetime"] for d in result.documents
    )


def test_items_outside_of_the_region_are_left_out_of_a_large_page(shared: Path) -> None:
    spec = pipeline(**VERMONT)
    path = shared / "stac/wild/search/pc-162-items-one-page.json.gz"
    result, exchanges = play(path, PC, spec, root=landing(f"{{url}}{PC}"))
    west, south, east, north = VERMONT["bbox"]
    wanted = set()
    for feature in exchanges[-1]["response"]["body"]["features"]:
        w, s, e, n = feature["bbox"]
        if w <= east and e >= west and s <= north and n >= south:
            wanted.add(feature["id"])
    assert {document["id"] for document in result.documents} <= wanted  # footprints are a little smaller than their boxes
    assert len(result.documents) >= 0.9 * len(wanted) > 15


def test_a_recording_that_ends_before_its_search_is_an_error(shared: Path) -> None:
    """Two pages were recorded and the second still has a next link: the last answer repeats, which must not look like the end."""
    with pytest.raises(CatalogError) as caught:
        play(shared / "stac/wild/search/pc-naip-paging.json.gz", PC, pipeline(**VERMONT), root=landing(f"{{url}}{PC}"))
    assert caught.value.code == "catalog-paging"


def test_two_pages_of_the_planetary_computer_join(shared: Path) -> None:
    path = shared / "stac/wild/search/pc-naip-paging.json.gz"
    replies, exchanges = recorded(path)
    last = json.loads(json.dumps(exchanges[-1]["response"]["body"]))
    last["links"] = [link for link in last["links"] if link["rel"] != "next"]
    replies[f"POST {PC}/search"][-1] = Reply(last)
    replies[f"GET {PC}"] = [Reply(landing(f"{{url}}{PC}"))]
    spec = pipeline(**VERMONT)
    with serve_replies(replies) as replay:
        result = search_items(spec, catalog(f"{replay.url}{PC}"), region=region_of(spec))
        bodies = [json.loads(body) for method, _, body in replay.seen if method == "POST"]
    assert len(result.documents) == 20
    assert bodies[1]["token"] == exchanges[1]["request"]["body"]["token"]


def test_a_server_that_forgets_the_query_on_page_two_is_caught(shared: Path) -> None:
    """The recorded `next` link of Earth Search carries only a cursor, and its second page holds another collection."""
    path = shared / "stac/wild/search/earth-search-v1-filter-two-pages.json.gz"
    names = ("sentinel-1-grd", "sentinel-2-c1-l2a", "sentinel-2-l1c")
    spec = pipeline(bbox=(-180, -90, 180, 90), start="2025-07-01", end="2025-09-01", collections=names)
    with pytest.raises(CatalogError, match='collection "sentinel-2-l2a", which was not asked for'):
        play(path, "/v1", spec, page_limit=10)


def test_the_first_page_of_a_million_is_not_taken_for_all(shared: Path) -> None:
    path = shared / "stac/wild/search/earth-search-v1-matched.json.gz"
    spec = pipeline(bbox=(-180, -90, 180, 90), start="2000-01-01", end="2030-01-01", collections=("cop-dem-glo-30",))
    with pytest.raises(CatalogError) as caught:
        play(path, "/v1", spec)
    assert caught.value.code == "catalog-paging"


def test_a_search_in_several_collections_ends_with_an_empty_page(shared: Path) -> None:
    path = shared / "stac/wild/search/pc-multiple-collections.json.gz"
    box = (-105.11, 40.16, -105.09, 40.18)
    spec = pipeline(bbox=box, start="2023-10-08", end="2023-10-09", collections=("sentinel-2-l2a", "landsat-c2-l2"))
    result, exchanges = play(path, "/v1", spec, root=landing("{url}/v1"))
    assert {document["id"] for document in result.documents} == ids(exchanges, 0)
    assert {document["collection"] for document in result.documents} == {"sentinel-2-l2a", "landsat-c2-l2"}


def test_a_server_that_does_not_conform_is_refused(shared: Path) -> None:
    path = shared / "stac/wild/search/earth-search-v0-non-conformant.json.gz"
    with pytest.raises(ConfigError, match="cannot be searched"):
        play(path, "/v0", pipeline(collections=("sentinel-s2-l2a-cogs",)))


def test_items_without_geometry_and_assets_are_unusable(shared: Path) -> None:
    """A server that was asked for fields leaves geometry and assets out."""
    path = shared / "stac/wild/search/earth-search-v1-fields.json.gz"
    replies, exchanges = recorded(path)
    only = json.loads(json.dumps(exchanges[-1]["response"]["body"]))
    only["links"], only["numberMatched"], only["context"] = [], 10, {}
    replies["POST /v1/search"] = [Reply(only)]
    spec = pipeline(bbox=(-180, -90, 180, 90), start="2000-01-01", end="2030-01-01", collections=("cop-dem-glo-30",))
    with serve_replies(replies) as replay, pytest.raises(CatalogError) as caught:
        search_items(spec, catalog(f"{replay.url}/v1"), region=region_of(spec))
    assert caught.value.code == "item-invalid"


def test_every_recorded_landing_page_can_be_read(shared: Path) -> None:
    for path in sorted((shared / "stac/wild/search").glob("*.gz")):
        replies, exchanges = recorded(path)
        root = next(
            (e for e in exchanges if e["request"]["method"] == "GET" and e["response"]["body"].get("type") == "Catalog"), None
        )
        if root is None or "v0" in path.name:
            continue
        prefix = "/" + root["request"]["uri"].split("/", 3)[3].rstrip("/") if root["request"]["uri"].count("/") > 2 else "/"
        replies[f"POST {prefix.rstrip('/')}/search"] = [Reply({"type": "FeatureCollection", "features": [], "links": []})]
        with serve_replies(replies) as replay, pytest.raises(CatalogError) as caught:
            search_items(pipeline(), catalog(replay.url + prefix.rstrip("/")), region=region_of(pipeline()))
        assert caught.value.code == "catalog-empty", path.name
