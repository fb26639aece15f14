"""D: a catalog that cannot be trusted. The whole list of scenes, or one line that says why there is none; never a shorter one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rundigest import file_digests
from servers.cases import landing, page
from servers.files import Fault, FileServer
from servers.replay import Reply, serve_replies
from servers.stac_api import serve_stac
from toy import toy_bbox
from wholerun import BBOX, SIZE, documents, invoke, name_catalog, over_http, refused, results, run, spoil, spoil_item

pytestmark = pytest.mark.usefixtures("impatient")

WEST, SOUTH, EAST, NORTH = toy_bbox(SIZE)


@pytest.fixture
def scenes(toy: Path):
    """A server of pixels, and the two items of the toy with addresses there."""
    with FileServer(toy) as server:
        yield documents(toy, server)


def pages(*replies: Any) -> Any:
    """A STAC API whose search answers with `replies`, in order."""
    return serve_replies({"/": [Reply(landing())], "/search": [one if isinstance(one, Reply) else Reply(one) for one in replies]})


def more(token: int) -> dict[str, Any]:
    return {"next_body": {"token": str(token)}}


Pages = Callable[[dict[str, Any], dict[str, Any]], list[Any]]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (lambda a, b: [page(a, **more(2)), page(b, **more(2))], "page 3 has the address of a page that was read before"),
        (lambda a, b: [page(a, **more(2)), page(b, **more(3)), page(**more(2))], "of a page that was read before"),
        (lambda a, b: [page(a, **more(2)), page(a, **more(3))], "page 2 repeats page 1 (item a1)"),
        (lambda a, b: [page(a, **more(2), next_href="https://other.example.org/search")], 'another host, "other.example.org"'),
        (lambda a, b: [page(a, **more(2)), page({**b, "collection": "archive"})], 'items of collection "archive"'),
    ],
    ids=["itself", "circle", "repeats", "host", "collection"],
)
def test_d01_pages_that_lead_in_circles_or_away_end_the_search(toy: Path, scenes: Any, answers: Pages, words: str) -> None:
    with pages(*answers(*scenes)) as api:
        name_catalog(toy, api.url, kind="api")
        refused(toy, 4, "catalog-paging: ", words)


BROKEN = {
    "502": lambda b: Reply(b"<html>bad gateway</html>", 502),
    "reset": lambda b: Reply(reset=True),
    "cut": lambda b: Reply(page(b), cut=200),
    "half of the JSON": lambda b: Reply(b'{"type": "FeatureCollection", "features": [{"type": "Fea'),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_d02_a_page_that_breaks_once_is_asked_for_again(toy: Path, golden: dict[str, str], scenes: Any, fault: str) -> None:
    a, b = scenes
    with pages(page(a, **more(2)), BROKEN[fault](b), page(b)) as api:
        name_catalog(toy, api.url, kind="api")
        assert run(toy)[::2] == (0, "")
    assert results(toy / "run") == golden


@pytest.mark.parametrize("fault", BROKEN)
def test_d02_a_page_that_stays_broken_ends_the_search_with_its_number(toy: Path, scenes: Any, fault: str) -> None:
    a, b = scenes
    with pages(page(a, **more(2)), BROKEN[fault](b)) as api:
        name_catalog(toy, api.url, kind="api")
        refused(toy, 4, "catalog-unreachable: ", "page 2", "after 5 tries")


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ([Fault("status", 500, repeat=True)], "HTTP 500 after 5 tries"),
        ([Fault("status", 403, repeat=True)], "HTTP 403"),
        ([Fault("reset", repeat=True)], "Connection reset by peer after 5 tries"),
        ([Fault("status", 302, (("Location", "file:///etc/passwd"),), repeat=True)], "leads away from the web"),
    ],
)
def test_d02_a_remote_catalog_that_fails_is_refused(toy: Path, faults: list[Fault], why: str) -> None:
    with FileServer(toy) as server:
        server.script("catalog.json", *faults)
        over_http(toy, server)
        refused(toy, 4, f"catalog-unreachable: {server.url('catalog.json')}: ", why, "Check the catalog and the network")


def test_d02_a_remote_catalog_that_is_a_login_page_is_refused(toy: Path) -> None:
    (toy / "catalog.json").write_text("<html>please log in</html>")
    with FileServer(toy) as server:
        over_http(toy, server)
        refused(toy, 4, "catalog-unreachable: ", "the answer is not JSON")


@pytest.mark.parametrize("name", ["catalog.json", "items.parquet", "stac"])
def test_d02_a_catalog_behind_a_closed_port_is_refused(toy: Path, name: str) -> None:
    with FileServer(toy) as server:
        address = server.url(name)
    spoil(toy, "catalog.json", address)
    refused(toy, 4, "catalog-unreachable: ", "Connection refused after 5 tries")


def test_d03_an_item_on_two_pages_is_used_once_and_counted(toy: Path, golden: dict[str, str], scenes: Any) -> None:
    a, b = scenes
    with pages(*[page(a, **more(2)), page(b, a)] * 2) as api:
        name_catalog(toy, api.url, kind="api")
        assert run(toy)[0] == 0
        assert "1 duplicate items removed" in "".join(invoke("search", toy / "pipeline.toml")[1:])
    assert results(toy / "run") == golden


def test_d03_of_two_copies_the_newest_is_used_and_a_tie_is_an_error(toy: Path, golden: dict[str, str], scenes: Any) -> None:
    a, b = scenes

    def copy(updated: str, **properties: Any) -> dict[str, Any]:
        return {**a, "properties": {**a["properties"], "updated": updated, **properties}}

    wrong = copy("2024-07-01T00:00:00Z", note="first")
    wrong["assets"] = {name: {**asset, "href": b["assets"][name]["href"]} for name, asset in a["assets"].items()}
    with pages(page(wrong, **more(2)), page(b, copy("2024-07-02T00:00:00Z"))) as api:
        name_catalog(toy, api.url, kind="api")
        assert run(toy)[0] == 0
    assert results(toy / "run") == golden
    (toy / "run").rename(toy / "newest")
    spoil(toy, '"there"', '"catalog.json"')
    with pages(page(wrong, **more(2)), page(b, copy("2024-07-01T00:00:00Z"))) as api:
        name_catalog(toy, api.url, kind="api")
        refused(toy, 4, "item-duplicate: item toy/a1: ", "neither is newer")


@pytest.mark.parametrize("announced", [1, 3])
def test_d04_a_number_that_does_not_agree_is_an_error(toy: Path, scenes: Any, announced: int) -> None:
    with pages(page(*scenes, numberMatched=announced)) as api:
        name_catalog(toy, api.url, kind="api")
        refused(toy, 4, "catalog-paging: ", f"{announced} announced, 2 received", "miscounts = true")


def test_d04_a_server_that_is_known_to_miscount_may(toy: Path, golden: dict[str, str], scenes: Any) -> None:
    with pages(page(*scenes, numberMatched=3)) as api:
        name_catalog(toy, api.url, kind="api", miscounts=True)
        assert run(toy)[0] == 0
    assert results(toy / "run") == golden


def test_d05_the_order_of_the_answer_changes_no_byte_of_the_run(toy: Path, golden: dict[str, str], scenes: Any) -> None:
    a, b = scenes
    with serve_stac([a, b]) as first, serve_stac([b, a]) as second:
        found = []
        for url in (first, second):
            name_catalog(toy, url, kind="api", page_limit=1)
            assert run(toy)[::2] == (0, "")
            found.append(file_digests(toy / "run"))
            (toy / "run").rename(toy / f"run{len(found)}")
            spoil(toy, '"there"', '"catalog.json"')
    assert results(toy / "run1") == golden
    differ = {name for name in found[0] if found[0][name] != found[1].get(name)}
    assert found[0].keys() == found[1].keys()
    assert differ <= {"request.json", "manifest.json", "COMPLETE.json"}, "only the address of the server may differ"
    assert found[0]["items.parquet"] == found[1]["items.parquet"]


def drop_projection(item: dict[str, Any]) -> None:
    for asset in item["assets"].values():
        for key in [key for key in asset if key.startswith("proj:")]:
            del asset[key]


def lie_about_projection(item: dict[str, Any]) -> None:
    for asset in item["assets"].values():
        asset["proj:code"], asset["proj:epsg"] = "EPSG:3857", 3857


@pytest.mark.parametrize("change", [drop_projection, lie_about_projection])
def test_d06_the_header_of_a_file_decides_where_it_lies_not_the_item(
    toy: Path, golden: dict[str, str], change: Callable[[dict[str, Any]], None]
) -> None:
    spoil_item(toy, change)
    assert run(toy)[::2] == (0, "")
    assert results(toy / "run") == golden


def without_datetime(item: dict[str, Any]) -> None:
    item["properties"].update(datetime=None)


def without_geometry(item: dict[str, Any]) -> None:
    item.update(geometry=None)
    item.pop("bbox")


def with_nan_in_its_box(item: dict[str, Any]) -> None:
    item["bbox"][0] = math.nan
    item["geometry"]["coordinates"][0][0][0] = math.nan


@pytest.mark.parametrize("change", [without_datetime, without_geometry, with_nan_in_its_box])
def test_d06_an_item_that_cannot_be_used_is_counted_and_named(toy: Path, change: Callable[[dict[str, Any]], None]) -> None:
    spoil_item(toy, change)
    status, out, err = invoke("search", toy / "pipeline.toml")
    assert status == 0, err
    assert "1 items are unusable and were left out: a1 (" in out + err
    spoil_item(toy, change, "b1")
    refused(toy, 4, "item-invalid: catalog.json: none of 2 items can be used: a1 (", "b1 (")


CROSSING = {"type": "Polygon", "coordinates": [[[WEST, SOUTH], [EAST, NORTH], [EAST, SOUTH], [WEST, NORTH], [WEST, SOUTH]]]}
BEYOND = '{"type": "Polygon", "coordinates": [[[7e5, 5e6], [7e5, 6e6], [8e5, 5e6], [7e5, 5e6]]]}'


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["config-invalid: ", "cannot read the region file: No such file"]),
        ("<html>", ["region-invalid: ", "not GeoJSON"]),
        ("[" * 100_000, ["region-invalid: ", "not GeoJSON"]),
        ('{"a": 1}', ["region-invalid: ", "GeoJSON"]),
        ('{"type": "FeatureCollection", "features": []}', ["region-invalid: ", "no polygon"]),
        ('{"type": "Point", "coordinates": [12, 47]}', ["region-invalid: ", "not a polygon"]),
        ('{"type": "Polygon", "coordinates": [[[NaN, 1], [2, 2], [3, 1], [NaN, 1]]]}', ["region-invalid: ", "no numbers"]),
        (json.dumps(CROSSING), ["region-invalid: ", "Self-intersection", "rings do not cross"]),
        (BEYOND, ["region-invalid: ", "longitude"]),
    ],
)
def test_d08_a_region_that_is_no_area_on_earth_is_refused_by_its_file(toy: Path, content: str | None, parts: list[str]) -> None:
    spoil(toy, BBOX, 'file = "aoi.geojson"')
    if content is not None:
        (toy / "aoi.geojson").write_text(content)
    refused(toy, 2, f"{toy}/aoi.geojson: ", *parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (BBOX, "bbox = [12.0, 47.1, 12.1, 47.0]", ["region-invalid: ", "south < north"]),
        (BBOX, "bbox = [12.0, 47.0, 200.0, 47.1]", ["region-invalid: ", "-180..180"]),
        ("EPSG:32632", "EPSG:4326", ["region-invalid: ", "10 degree", "finer grid.resolution"]),
    ],
)  # fmt: skip
def test_d08_a_box_that_is_no_area_on_earth_is_refused(toy: Path, old: str, new: str, parts: list[str]) -> None:
    spoil(toy, old, new)
    refused(toy, 2, *parts)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('"toy"]', '"toi"]', ["catalog-empty: ", "0 items for toi, 2024-06-01/2024-07-01", "2 of them in another collection"]),
        (BBOX, "bbox = [80.0, 10.0, 80.1, 10.1]", ["catalog-empty: ", "2 of them outside of the region"]),
    ],
)  # fmt: skip
def test_d09_an_empty_search_says_what_was_received_instead(toy: Path, old: str, new: str, parts: list[str]) -> None:
    spoil(toy, old, new)
    refused(toy, 2, *parts)


def test_d10_items_that_came_after_the_search_are_not_used(toy: Path, golden: dict[str, str]) -> None:
    kept = (toy / "b1_nir.tif").read_bytes()
    (toy / "b1_nir.tif").unlink()
    assert run(toy)[0] == 3
    document = json.loads((toy / "catalog.json").read_text())
    new = json.loads(json.dumps(document["features"][0])) | {"id": "a0"}
    new["properties"]["datetime"] = "2024-06-01T09:00:00Z"
    (toy / "catalog.json").write_text(json.dumps({**document, "features": [new, *document["features"]]}))
    (toy / "b1_nir.tif").write_bytes(kept)
    assert invoke("resume", toy / "run", "--cluster", "serial", "--quiet")[::2] == (0, "")
    assert results(toy / "run") == golden


def nested(item: dict[str, Any]) -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    item["properties"]["deep"] = deep


@pytest.mark.parametrize("change", [lambda item: item["properties"].update(note="x" * 200_000), nested], ids=["long", "deep"])
def test_d11_long_and_deep_properties_change_no_pixel_or_are_left_out_by_name(
    toy: Path, golden: dict[str, str], change: Callable[[dict[str, Any]], None]
) -> None:
    spoil_item(toy, change)
    with FileServer(toy) as server:
        over_http(toy, server)
        status, out, err = invoke("search", toy / "pipeline.toml")
        assert status == 0, err
        if "left out: a1 (" in out + err:
            return
        assert run(toy)[0] == 0
    assert results(toy / "run") == golden


@pytest.mark.parametrize(
    ("content", "status", "parts"),
    [
        ("<html>", 4, ["catalog-unreachable: ", "not JSON"]),
        ("[" * 100_000, 4, ["catalog-unreachable: ", "nested too deeply"]),
        ("[1, null]", 4, ["item-invalid: ", "not a STAC item"]),
        ('{"type": "FeatureCollection", "features": null}', 2, ["config-invalid: ", "list of features"]),
        ('{"type": "Catalog", "links": null}', 2, ["config-invalid: ", "not a STAC catalog"]),
        (
            '{"type": "FeatureCollection", "features": [], "links": [{"rel": "next", "href": "2"}]}',
            4,
            ["catalog-paging: ", "one page of a longer answer"],
        ),
        (
            '{"type": "Catalog", "id": "x", "links": [{"rel": "child", "href": "../../../../../../../../etc/passwd"}]}',
            2,
            ["path-escape: ", "/etc/passwd"],
        ),
    ],
)
def test_d11_a_catalog_file_that_is_none_is_refused(toy: Path, content: str, status: int, parts: list[str]) -> None:
    (toy / "catalog.json").write_text(content)
    refused(toy, status, *parts)
