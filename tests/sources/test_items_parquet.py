from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers.cases import asset, item, pipeline, region_of
from stac_geoparquet.arrow import parse_stac_items_to_arrow, stac_table_to_items, to_parquet

from eo_batch.core.errors import CatalogError
from eo_batch.core.records import ItemTable
from eo_batch.sources.catalog import find_catalog
from eo_batch.sources.items import resolve_items
from eo_batch.sources.items.document import Unusable, normalise
from eo_batch.sources.items.parquet import items_from_parquet, items_to_parquet
from eo_batch.sources.search import search_items


def table(*documents: dict[str, Any]) -> ItemTable:
    return ItemTable((), tuple(normalise(document, base="https://h.example.org/a/", local=False) for document in documents))


AWKWARD = {
    "microseconds": item(datetime="2020-06-15T10:00:00.123456Z"),
    "null property": item(proj__epsg=None),
    "int beside float": item(gsd=10, other=10.0),
    "empty objects": item(deep={"a": {}, "b": []}),
    "mixed list": item(mixed=[1, "a", None, {"b": 2.5}]),
    "null geometry": item(geometry=None),
    "range": item(datetime=None, start_datetime="2020-06-01T00:00:00Z", end_datetime="2020-06-30T23:59:59.999999Z"),
    "no assets": item(assets={}),
    "other letters": item(title="Überflug 日本 \N{ROCKET}"),
    "lone surrogate": item(title="\ud800"),
    "not a number": item(assets={"red": asset("r.tif", "red", nodata=float("nan"))}),
    "large integer": item(big=2**60 + 1),
    "crossing": item(box=(179.5, 0.0, -179.5, 1.0)),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_a_document_comes_back_exactly(name: str) -> None:
    frozen = table(AWKWARD[name])
    assert ItemTable((), items_from_parquet(items_to_parquet(frozen))).digest == frozen.digest


def test_items_of_different_kinds_come_back_exactly_together() -> None:
    frozen = table(*(document | {"id": name} for name, document in AWKWARD.items()))
    assert ItemTable((), items_from_parquet(items_to_parquet(frozen))).digest == frozen.digest


def test_the_same_table_gives_the_same_bytes() -> None:
    frozen = table(item("a"), item("b"))
    assert items_to_parquet(frozen) == items_to_parquet(frozen)


def test_other_tools_can_read_the_columns() -> None:
    data = items_to_parquet(table(item("a", eo__cloud_cover=5), item("b", gsd=10)))
    frame = geopandas.read_parquet(io.BytesIO(data))
    assert frame.crs.to_epsg() == 4326
    assert list(frame["id"]) == ["a", "b"]
    assert frame.geometry.iloc[0].bounds == (10.05, 50.02, 10.15, 50.08)
    assert str(frame["datetime"].iloc[0]) == "2020-06-15 10:00:00+00:00"
    columns = pq.read_table(io.BytesIO(data))
    assert [document["assets"]["red"]["href"] for document in stac_table_to_items(columns)] == [
        "https://h.example.org/a/red.tif"
    ] * 2


def test_nulls_that_columns_add_are_dropped_from_files_of_others(tmp_path: Path) -> None:
    items = [item("a", gsd=10), item("b", platform="x", assets={"blue": asset("b.tif", "blue")})]
    to_parquet(parse_stac_items_to_arrow(items), tmp_path / "x.parquet")
    back = items_from_parquet((tmp_path / "x.parquet").read_bytes())
    assert "platform" not in back[0]["properties"]
    assert list(back[1]["assets"]) == ["blue"]
    assert back[0]["links"] == []


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 1000])
def test_a_file_that_is_not_parquet_is_an_error(data: bytes) -> None:
    with pytest.raises(CatalogError):
        items_from_parquet(data)


def test_parquet_that_is_not_stac_is_an_error() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), buffer)
    with pytest.raises(CatalogError, match="not a stac-geoparquet file"):
        items_from_parquet(buffer.getvalue())


def test_a_frozen_result_is_a_catalog_that_gives_the_same_items(tmp_path: Path) -> None:
    spec = pipeline()
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item("a"), item("b")]}))
    first = find_catalog("items.json", tmp_path)[0]
    frozen = resolve_items(search_items(spec, first, region=region_of(spec)).documents, spec, first)
    (tmp_path / "frozen.parquet").write_bytes(items_to_parquet(frozen))
    second = find_catalog("frozen.parquet", tmp_path)[0]
    again = resolve_items(search_items(spec, second, region=region_of(spec)).documents, spec, second)
    assert again.digest == frozen.digest
    assert str(again.items) == str(frozen.items)  # text, because NaN differs from itself


@pytest.mark.shared
def test_every_wild_item_comes_back_exactly(shared: Path) -> None:
    folders: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((shared / "stac/wild/items").rglob("*.json")):
        raw = json.loads(path.read_text())
        for feature in raw if isinstance(raw, list) else raw["features"] if raw["type"] == "FeatureCollection" else [raw]:
            try:
                clean = normalise(feature, base=str(path), local=True, collection="c")
            except Unusable:
                continue
            folders.setdefault(path.parent.name, []).append(clean)
    everything = [one for group in folders.values() for one in group]
    assert len(everything) == 73
    for name, group in [*folders.items(), ("everything", everything)]:
        frozen = ItemTable((), tuple(group))
        assert ItemTable((), items_from_parquet(items_to_parquet(frozen))).digest == frozen.digest, name


@pytest.mark.shared
def test_a_stac_geoparquet_file_of_others_is_searched(shared: Path) -> None:
    path = shared / "stac/wild/items/earth-search/100-sentinel-2-items.parquet"
    rows = pq.read_table(path, columns=["id", "bbox", "datetime", "eo:cloud_cover"]).to_pylist()
    west, south, east, north = (-106.0, 39.0, -104.0, 41.0)
    wanted = set()
    for row in rows:
        b = row["bbox"]
        touches = b["xmin"] <= east and b["xmax"] >= west and b["ymin"] <= north and b["ymax"] >= south
        if touches and "2024-06-01" <= str(row["datetime"])[:10] < "2025-01-01" and row["eo:cloud_cover"] <= 30:
            wanted.add(row["id"])
    spec = pipeline(
        bbox=(west, south, east, north), start="2024-06-01", end="2025-01-01", collections=("sentinel-2-l2a",), max_cloud_cover=30
    )
    where = find_catalog(str(path), Path("/"))[0]
    found = search_items(spec, where, region=region_of(spec))
    names = {document["id"] for document in found.documents}
    assert names <= wanted  # footprints are smaller than boxes
    assert len(names) >= 0.5 * len(wanted) > 3
    assert resolve_items(found.documents, spec, where).items[0].bands["red"].href.endswith("_B04_10m.tif")
