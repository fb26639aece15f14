from __future__ import annotations

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from servers.cases import BOX, asset, catalog, item, pipeline, region_of
from servers.stac_api import serve_stac
from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

from eo_batch.core.errors import CatalogError, ConfigError
from eo_batch.core.records import ItemTable
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources.catalog import find_catalog
from eo_batch.sources.search import search_items


def found(spec: Any, where: CatalogSpec, **options: Any) -> list[str]:
    return [document["id"] for document in search_items(spec, where, region=region_of(spec), **options).documents]


def collection_file(folder: Path, *items: Any) -> CatalogSpec:
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return find_catalog("items.json", folder)[0]


def static_catalog(folder: Path, *items: dict[str, Any]) -> CatalogSpec:
    """catalog.json -> one collection.json per collection -> one file per item."""
    children = []
    for name in sorted({one["collection"] for one in items}):
        own = [one for one in items if one["collection"] == name]
        (folder / "stac" / name).mkdir(parents=True, exist_ok=True)
        links = [{"rel": "item", "href": f"./{one['id']}.json"} for one in own]
        for one in own:
            (folder / "stac" / name / f"{one['id']}.json").write_text(json.dumps(one))
        document = {"type": "Collection", "id": name, "links": [{"rel": "parent", "href": "../catalog.json"}, *links]}
        (folder / "stac" / name / "collection.json").write_text(json.dumps(document))
        children.append({"rel": "child", "href": f"{name}/collection.json"})
    (folder / "stac" / "catalog.json").write_text(json.dumps({"type": "Catalog", "id": "root", "links": children}))
    return find_catalog("stac/catalog.json", folder)[0]


def parquet_file(folder: Path, *items: dict[str, Any]) -> CatalogSpec:
    """stac-geoparquet as its own library writes it."""
    to_parquet(parse_stac_items_to_arrow([deepcopy(one) for one in items]), folder / "items.parquet")
    return find_catalog("items.parquet", folder)[0]


def many() -> list[dict[str, Any]]:
    """Items on a lattice around the region, over three months, in two collections."""
    out = []
    for n in range(120):
        west, south = 9.7 + 0.07 * (n % 12), 49.9 + 0.04 * (n // 12)
        day = f"2020-{5 + n % 3:02d}-{1 + n % 28:02d}T0{n % 10}:00:00Z"
        name = "scenes" if n % 5 else "others"
        properties = {"datetime": day, "eo:cloud_cover": float(n % 100), "platform": f"p{n % 2}"}
        out.append(item(f"i{n:03d}", box=(west, south, west + 0.05, south + 0.03), collection=name, properties=properties))
    return out


def expected(items: list[dict[str, Any]], *, cloud: float = 101.0, platform: str | None = None) -> list[str]:
    """Brute force over numbers and text; all boxes are upright."""
    west, south, east, north = BOX
    kept = []
    for one in items:
        w, s, e, n = one["bbox"]
        stated = one["properties"]
        if one["collection"] != "scenes" or not "2020-06-01T00:00:00Z" <= stated["datetime"] < "2020-07-01T00:00:00Z":
            continue
        touches = w <= east and e >= west and s <= north and n >= south
        if touches and stated["eo:cloud_cover"] <= cloud and platform in (None, stated["platform"]):
            kept.append((stated["datetime"], one["collection"], one["id"]))
    return [name for _, _, name in sorted(kept)]


SOURCES = {"items": collection_file, "static": static_catalog, "parquet": parquet_file}


@pytest.mark.parametrize("source", SOURCES)
def test_files_give_what_brute_force_gives(source: str, tmp_path: Path) -> None:
    items = many()
    assert found(pipeline(), SOURCES[source](tmp_path, *items)) == expected(items)
    assert len(expected(items)) > 5


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_an_api_gives_what_brute_force_gives_whatever_its_page_size(limit: int) -> None:
    items = many()
    with serve_stac(items) as url:
        assert found(pipeline(), catalog(url, page_limit=limit)) == expected(items)


def test_an_api_without_counts_gives_the_same() -> None:
    items = many()
    with serve_stac(items, announces=False) as url:
        assert found(pipeline(), catalog(url, page_limit=5)) == expected(items)


@pytest.mark.parametrize("source", [*SOURCES, "api"])
def test_cloud_cover_and_filter_hold_for_every_source(source: str, tmp_path: Path) -> None:
    items = many()
    spec = pipeline(max_cloud_cover=60, filter="platform = 'p1'")
    wanted = expected(items, cloud=60, platform="p1")
    assert wanted
    if source == "api":
        with serve_stac(items) as url:
            assert found(spec, catalog(url, page_limit=3)) == wanted
    else:
        assert found(spec, SOURCES[source](tmp_path, *items)) == wanted


def test_all_sources_give_the_same_documents(tmp_path: Path) -> None:
    items = [one | {"assets": {"red": asset("https://store.example.org/red.tif", "red")}} for one in many()]
    spec = pipeline()
    digests = set()
    for source in SOURCES.values():
        result = search_items(spec, source(tmp_path, *items), region=region_of(spec))
        digests.add(ItemTable((), result.documents).digest)
    with serve_stac(items) as url:
        digests.add(ItemTable((), search_items(spec, catalog(url), region=region_of(spec)).documents).digest)
    assert len(digests) == 1


def test_the_order_of_the_answer_does_not_matter(tmp_path: Path) -> None:
    items = many()
    spec = pipeline()
    straight = search_items(spec, collection_file(tmp_path, *items), region=region_of(spec))
    random.Random(7).shuffle(items)
    assert search_items(spec, collection_file(tmp_path, *items), region=region_of(spec)) == straight


def test_the_period_is_half_open(tmp_path: Path) -> None:
    times = {
        "before": "2020-05-31T23:59:59.999999Z",
        "first": "2020-06-01T00:00:00Z",
        "last": "2020-06-30T23:59:59.999999Z",
        "end": "2020-07-01T00:00:00Z",
    }
    items = [item(name, datetime=time) for name, time in times.items()]
    assert found(pipeline(), collection_file(tmp_path, *items)) == ["first", "last"]


def test_items_with_a_range_instead_of_a_time_are_found_where_it_overlaps(tmp_path: Path) -> None:
    ranges = {
        "before": ("2020-05-01T00:00:00Z", "2020-05-31T23:59:59Z"),
        "around": ("2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"),
        "into": ("2020-05-20T00:00:00Z", "2020-06-02T00:00:00Z"),
        "after": ("2020-07-01T00:00:00Z", "2020-07-02T00:00:00Z"),
    }
    items = [item(name, properties={"datetime": None, "start_datetime": s, "end_datetime": e}) for name, (s, e) in ranges.items()]
    assert found(pipeline(), collection_file(tmp_path, *items)) == ["into", "around"]


def test_a_box_that_touches_with_a_footprint_that_does_not_is_left_out(tmp_path: Path) -> None:
    ring = [[9.0, 49.0], [11.0, 49.0], [9.0, 51.0], [9.0, 49.0]]
    slanted = item("slanted", geometry={"type": "Polygon", "coordinates": [ring]}, bbox=[9.0, 49.0, 11.0, 51.0])
    spec = pipeline(bbox=(10.5, 50.5, 10.8, 50.8))
    inside = item("inside", box=(10.5, 50.5, 10.6, 50.6))
    assert found(spec, collection_file(tmp_path, slanted, inside)) == ["inside"]


FIJI = (179.0, -18.0, -179.0, -17.0)


def fiji() -> list[dict[str, Any]]:
    west = item("west", box=(178.5, -17.8, 179.5, -17.2))
    east = item("east", box=(-179.5, -17.8, -178.5, -17.2))
    far = item("far", box=(10.0, -17.8, 11.0, -17.2))
    split = [
        [[[179.5, -17.8], [180, -17.8], [180, -17.2], [179.5, -17.2], [179.5, -17.8]]],
        [[[-180, -17.8], [-179.6, -17.8], [-179.6, -17.2], [-180, -17.2], [-180, -17.8]]],
    ]
    both = item("both", geometry={"type": "MultiPolygon", "coordinates": split}, bbox=[179.5, -17.8, -179.6, -17.2])
    torn = [[179.5, -17.8], [-179.6, -17.8], [-179.6, -17.2], [179.5, -17.2], [179.5, -17.8]]
    unsplit = item("unsplit", geometry={"type": "Polygon", "coordinates": [torn]}, bbox=[-179.6, -17.8, 179.5, -17.2])
    return [west, east, far, both, unsplit]


@pytest.mark.parametrize("source", SOURCES)
def test_a_region_across_the_antimeridian_finds_both_sides_once(source: str, tmp_path: Path) -> None:
    assert found(pipeline(bbox=FIJI), SOURCES[source](tmp_path, *fiji())) == ["both", "east", "unsplit", "west"]


def test_an_api_is_asked_on_both_sides_of_the_antimeridian_and_items_come_once() -> None:
    with serve_stac(fiji()) as url:
        result = search_items(pipeline(bbox=FIJI), catalog(url), region=region_of(pipeline(bbox=FIJI)))
    assert [document["id"] for document in result.documents] == ["both", "east", "unsplit", "west"]
    assert not any("duplicate" in note for note in result.notes)


def test_an_item_that_crosses_unsplit_is_not_found_in_between(tmp_path: Path) -> None:
    spec = pipeline(bbox=(9.0, -18.0, 12.0, -17.0))
    assert found(spec, collection_file(tmp_path, *fiji())) == ["far"]


def test_an_empty_search_says_what_was_asked(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        found(pipeline(max_cloud_cover=20), collection_file(tmp_path, item(eo__cloud_cover=90)))
    assert caught.value.code == "catalog-empty"
    assert "0 items for scenes, 2020-06-01/2020-07-01, cloud <= 20 %" in str(caught.value)
    assert "1 items have eo:cloud_cover above 20" in str(caught.value)


def test_items_that_do_not_state_their_clouds_are_kept_and_counted(tmp_path: Path) -> None:
    spec = pipeline(max_cloud_cover=20)
    result = search_items(spec, collection_file(tmp_path, item("a"), item("b", eo__cloud_cover=3)), region=region_of(spec))
    assert len(result.documents) == 2
    assert result.notes == ("1 items do not state eo:cloud_cover and were kept",)


def test_items_that_lack_what_the_filter_asks_for_are_left_out_and_counted(tmp_path: Path) -> None:
    spec = pipeline(filter="platform = 'x'")
    result = search_items(spec, collection_file(tmp_path, item("a"), item("b", platform="x")), region=region_of(spec))
    assert [document["id"] for document in result.documents] == ["b"]
    assert "1 items lack what the filter asks for" in result.notes[0]


def test_a_filter_that_is_no_cql2_is_refused_before_the_search() -> None:
    with pytest.raises(ConfigError, match="not CQL2"):
        found(pipeline(filter="cloud <"), catalog("https://nowhere.invalid"))


BACKWARDS = {"datetime": None, "start_datetime": "2021-01-01T00:00:00Z", "end_datetime": "2020-01-01T00:00:00Z"}
OFF_GLOBE = {"type": "Polygon", "coordinates": [[[0, 95], [1, 95], [1, 96], [0, 95]]]}
BAD: dict[str, dict[str, Any]] = {
    "no datetime": {"properties": {}},
    '"yesterday" is not a time': {"datetime": "yesterday"},
    "its time range ends before it starts": {"properties": BACKWARDS},
    "null geometry and no bbox": {"geometry": None, "bbox": None},
    "its bbox is not four finite numbers": {"bbox": [0, float("nan"), 1]},
    "its bbox holds something else than numbers": {"bbox": ["a", 0, 1, 1]},
    "its geometry cannot be read": {"geometry": {"type": "Blob"}},
    "its geometry has no usable coordinates": {"geometry": OFF_GLOBE},
    "STAC 0.7.0 is not 0.9 to 1.1": {"stac_version": "0.7.0"},
    "too large": {"title": "x" * 6_000_000},
    "not a STAC item": {"type": "Collection"},
    "no properties or assets": {"assets": None},
}


def test_a_box_with_nan_is_unusable(tmp_path: Path) -> None:
    spec = pipeline()
    result = search_items(
        spec, collection_file(tmp_path, item("good"), item("bad", bbox=[float("nan"), 0, 1, 1])), region=region_of(spec)
    )
    assert "bad (its bbox is not four finite numbers)" in result.notes[0]


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_item_is_named_with_its_reason(reason: str, tmp_path: Path) -> None:
    spec = pipeline()
    result = search_items(
        spec, collection_file(tmp_path, item("good"), item("bad") | item("bad", **BAD[reason])), region=region_of(spec)
    )
    assert [document["id"] for document in result.documents] == ["good"]
    assert any(f"bad ({reason})" in note for note in result.notes)


def test_nesting_without_end_is_unusable(tmp_path: Path) -> None:
    deep: Any = "bottom"
    for _ in range(200):
        deep = [deep]
    spec = pipeline()
    result = search_items(spec, collection_file(tmp_path, item("good"), item("bad", deep=deep)), region=region_of(spec))
    assert "bad (nested deeper than 64 levels)" in result.notes[0]


def test_only_unusable_items_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        found(pipeline(), collection_file(tmp_path, item("bad", properties={})))
    assert caught.value.code == "item-invalid"
    assert "bad (no datetime)" in str(caught.value)


@pytest.mark.parametrize(
    "junk",
    [
        None,
        3,
        "text",
        [],
        {"type": "Feature"},
        {"type": "Feature", "id": 5},
        {"type": "Feature", "id": "a\x1b[31m", "properties": []},
    ],
)
def test_junk_among_items_is_left_out(junk: Any, tmp_path: Path) -> None:
    spec = pipeline()
    result = search_items(spec, collection_file(tmp_path, item("good"), junk), region=region_of(spec))
    assert [document["id"] for document in result.documents] == ["good"]
    assert "\x1b" not in " ".join(result.notes)


def test_null_geometry_with_a_box_is_usable(tmp_path: Path) -> None:
    assert found(pipeline(), collection_file(tmp_path, item("a", geometry=None))) == ["a"]


def test_equal_copies_are_joined_and_counted(tmp_path: Path) -> None:
    spec = pipeline()
    result = search_items(spec, collection_file(tmp_path, item("a"), item("a"), item("b")), region=region_of(spec))
    assert [document["id"] for document in result.documents] == ["a", "b"]
    assert result.notes == ("1 duplicate items removed",)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_different_copies_the_newer_counts(order: int, tmp_path: Path) -> None:
    copies = [item("a", updated="2021-01-01T00:00:00Z", v=1), item("a", updated="2022-01-01T00:00:00Z", v=2)][::order]
    spec = pipeline()
    result = search_items(spec, collection_file(tmp_path, *copies), region=region_of(spec))
    assert [document["properties"]["v"] for document in result.documents] == [2]


def test_two_different_copies_of_one_age_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError) as caught:
        found(pipeline(), collection_file(tmp_path, item("a", v=1), item("a", v=2)))
    assert caught.value.code == "item-duplicate"
    assert "scenes/a" in str(caught.value)


def test_stored_documents_hold_no_signatures(tmp_path: Path) -> None:
    signed = "https://store.example.org/red.tif?se=2030&sig=CANARY"
    linked = item(
        "a",
        assets={"red": asset(signed, "red", alternate={"s3": {"href": "https://u:CANARY@x.example.org/a.tif"}})},
        links=[{"rel": "self", "href": f"{signed}#x"}],
    )
    spec = pipeline()
    document = search_items(spec, collection_file(tmp_path, linked), region=region_of(spec)).documents[0]
    assert "CANARY" not in json.dumps(document)
    assert document["assets"]["red"]["href"] == "https://store.example.org/red.tif"


def test_local_hrefs_become_absolute_paths(tmp_path: Path) -> None:
    where = static_catalog(tmp_path, item("a", assets={"red": asset("../../scenes/red.tif", "red")}))
    spec = pipeline()
    document = search_items(spec, where, region=region_of(spec)).documents[0]
    assert document["assets"]["red"]["href"] == str(tmp_path / "scenes" / "red.tif")
    assert where.root == str(tmp_path)


def test_hrefs_of_an_api_are_relative_to_the_item() -> None:
    with serve_stac([item("a", assets={"red": asset("red.tif", "red")})]) as url:
        spec = pipeline()
        document = search_items(spec, catalog(url), region=region_of(spec)).documents[0]
        assert document["assets"]["red"]["href"] == f"{url}/collections/scenes/items/red.tif"


def test_documents_are_stac_1_1_whatever_they_were(tmp_path: Path) -> None:
    old = item("old", stac_version="0.9.0", stac_extensions=["projection"], proj__epsg=32633)
    spec = pipeline()
    document = search_items(spec, collection_file(tmp_path, old), region=region_of(spec)).documents[0]
    assert document["stac_version"] == "1.1.0"
    assert document["properties"]["proj:code"] == "EPSG:32633"


def test_progress_counts_what_is_received(tmp_path: Path) -> None:
    seen: list[int] = []
    found(pipeline(), collection_file(tmp_path, *many()), progress=seen.append)
    assert seen == list(range(1, 121))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    where = static_catalog(tmp_path, item("a"))
    path = tmp_path / "stac" / "scenes" / "collection.json"
    document = json.loads(path.read_text())
    document["links"] += [{"rel": "child", "href": "../catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    path.write_text(json.dumps(document))
    assert found(pipeline(), where) == ["a"]


def test_a_missing_file_of_a_catalog_is_an_error_and_not_fewer_items(tmp_path: Path) -> None:
    where = static_catalog(tmp_path, item("a"), item("b"))
    (tmp_path / "stac" / "scenes" / "b.json").unlink()
    with pytest.raises(CatalogError, match="no such file") as caught:
        found(pipeline(), where)
    assert caught.value.code == "catalog-unreachable"


def test_a_link_out_of_the_catalogs_root_is_refused(tmp_path: Path) -> None:
    where = static_catalog(tmp_path, item("a"))
    outside = tmp_path.parent / f"{tmp_path.name}-outside.json"
    outside.write_text(json.dumps(item("b")))
    (tmp_path / "stac" / "scenes" / "b.json").symlink_to(outside)
    path = tmp_path / "stac" / "scenes" / "collection.json"
    path.write_text(path.read_text().replace('"./a.json"', '"./b.json"'))
    with pytest.raises(Exception, match="path-escape"):
        found(pipeline(), where)


def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match="not a STAC catalog"):
        found(pipeline(), find_catalog("x.json", tmp_path)[0])


def test_a_broken_parquet_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(CatalogError) as caught:
        found(pipeline(), find_catalog("x.parquet", tmp_path)[0])
    assert caught.value.code == "catalog-unreachable"


# real scenes


def real_items(shared: Path) -> dict[str, list[tuple[Path, dict[str, Any]]]]:
    """Items with an outline of the catalog of real scenes, by collection."""
    out: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted((shared / "stac").glob("*/*/*.json")):
        document = json.loads(path.read_text())
        if document.get("type") == "Feature" and document.get("geometry") and "wild" not in path.parts:
            out.setdefault(document["collection"], []).append((path, document))
    return out


def whole_world(collection: str) -> Any:
    return pipeline(bbox=(-180, -90, 180, 90), start="1970-01-01", end="2030-01-01", collections=(collection,))


@pytest.mark.shared
def test_every_real_item_is_found_in_the_static_catalog_with_files_that_are_there(shared: Path) -> None:
    where, _ = find_catalog(str(shared / "stac" / "catalog.json"), Path("/"))
    for collection, entries in real_items(shared).items():
        spec = whole_world(collection)
        documents = search_items(spec, where, region=region_of(spec)).documents
        assert {d["id"] for d in documents} == {document["id"] for _, document in entries}
        assert all(Path(a["href"]).is_file() for d in documents for a in d["assets"].values())


@pytest.mark.shared
def test_a_real_api_over_real_items_finds_what_the_static_catalog_finds(shared: Path) -> None:
    entries = [entry for group in real_items(shared).values() for entry in group]
    items = [document for _, document in entries]
    spec = pipeline(bbox=(2.80, 42.32, 2.86, 42.36), start="2019-06-01", end="2021-01-01", collections=("sentinel-2-l2a",))
    static = search_items(
        spec, find_catalog(str(shared / "stac" / "catalog.json"), Path("/"))[0], region=region_of(spec)
    ).documents
    with serve_stac(items) as url:
        served = search_items(spec, catalog(url, page_limit=2), region=region_of(spec)).documents
    assert (
        [d["id"] for d in served]
        == [d["id"] for d in static]
        == [f"s2-l2a-boadella-{day}" for day in ("20190607", "20200118", "20200202")]
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    ("bbox", "collection", "names"),
    [
        ((-78.004, 36.620, -77.996, 36.624), "naip", ["naip-va-3607717-utm18", "naip-va-3607824-utm17"]),
        ((6.8, 46.3, 6.9, 46.4), "sentinel-2-l2a", ["s2-l2a-32tls-20220618"]),
        ((7.6, 46.3, 7.7, 46.4), "sentinel-2-l2a", ["s2-l2a-32tls-20220618", "s2-l2a-32tls-20220620"]),
        ((179.0, 50.0, -170.0, 75.0), "odd", ["landsat-antimeridian-utm60n"]),
    ],
)
def test_known_places_give_known_scenes(bbox: tuple[float, ...], collection: str, names: list[str], shared: Path) -> None:
    spec = pipeline(bbox=bbox, start="1970-01-01", end="2030-01-01", collections=(collection,))
    assert found(spec, find_catalog(str(shared / "stac" / "catalog.json"), Path("/"))[0]) == names
