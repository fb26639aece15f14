"""STAC of a run: valid offline, complete, without secrets, the same bytes each time."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac
import pytest
from outputs.small_run import make_grid, make_prompts, make_steps
from pystac.validation import validate_dict

from eo_batch.core.records import ItemTable
from eo_batch.core.region import Region, region_from_bbox
from eo_batch.outputs.stac import write_stac
from eo_batch.outputs.store import Store

DOCUMENTS = tuple(
    {"id": f"scene-{i}", "links": [{"rel": "self", "href": href}]}
    for i, href in enumerate(
        (
            "https://user:secret@example.org:8443/items/0?token=secret#secret",
            "/home/someone/items/1.json",
            "http://example.org/items/2",
        )
    )
)
REGION = region_from_bbox("r", (2.8, 42.3, 2.9, 42.4), datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 3, 1, tzinfo=UTC))


def written(store: Store, *, region: Region = REGION, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Collection and items as JSON values."""
    first, second = make_steps(2)
    steps = (replace(first, items=(2, 0)), replace(second, items=(1,)))
    arguments = {
        "name": "demo",
        "grid": make_grid((40, 50), 64),
        "region": region,
        "prompts": make_prompts(0.0, 500.0),
        "steps": steps,
        "items": ItemTable((), DOCUMENTS),
        "scores": True,
        "licence": "contains modified data",
        "model": {"name": "spectral", "digest": "abc"},
        "software": {"eo-batch": "0.1.0"},
    }
    paths = write_stac(store, **{**arguments, **changes})
    documents = [json.loads(store.get(path)) for path in paths]
    return documents[-1], documents[:-1]


def test_documents_pass_the_schemas_of_stac_1_1(store: Store) -> None:
    collection, items = written(store)
    for document in (collection, *items):
        # Schemas of extensions are not bundled with pystac: only the core ones can be used without a network.
        assert validate_dict({**document, "stac_extensions": []})


def test_pystac_walks_from_the_collection_to_the_files(store: Store) -> None:
    store.put("masks.zarr/zarr.json", b"{}")
    store.put("footprints.parquet", b"")
    written(store)
    collection = pystac.Collection.from_file(str(Path(store.where) / "stac" / "collection.json"))
    items = list(collection.get_items())
    assert [item.id for item in items] == ["demo-2020-01", "demo-2020-02"]
    for owner in (collection, *items):
        assert {key: asset.get_absolute_href() for key, asset in owner.assets.items()} == {
            "masks": str(Path(store.where) / "masks.zarr"),
            "footprints": str(Path(store.where) / "footprints.parquet"),
        }


def test_projection_is_that_of_the_grid(store: Store) -> None:
    _, items = written(store)
    grid = make_grid((40, 50), 64)
    properties = items[0]["properties"]
    assert properties["proj:code"] == "EPSG:32631"
    assert properties["proj:shape"] == [40, 50]
    assert properties["proj:bbox"] == list(grid.bounds)
    assert properties["proj:transform"] == list(grid.transform)[:6]


def test_source_items_are_named_without_secrets(store: Store) -> None:
    _, items = written(store)
    assert items[0]["properties"]["eo-batch:item_ids"] == ["scene-0", "scene-2"]
    links = [[link["href"] for link in item["links"] if link["rel"] == "derived_from"] for item in items]
    assert links == [["https://example.org:8443/items/0", "http://example.org/items/2"], []]
    text = "".join(store.get(path).decode() for path in store.list("stac"))
    assert "secret" not in text
    assert "/home" not in text


def test_prompts_model_and_licence_are_there(store: Store) -> None:
    collection, items = written(store)
    for about in (collection, items[0]["properties"]):
        assert [prompt["text"] for prompt in about["eo-batch:prompts"]] == ["thing 0", "thing 1"]
        assert about["eo-batch:model"]["digest"] == "abc"
        assert about["processing:software"] == {"eo-batch": "0.1.0"}
        assert "spectral" in about["processing:lineage"]
    assert "contains modified data" in collection["description"]
    assert {entry["value"] for entry in items[0]["assets"]["masks"]["classification:classes"]} == {0, 1, 254, 255}


def test_a_region_over_the_antimeridian_has_west_greater_than_east(store: Store) -> None:
    start, end = REGION.start, REGION.end
    collection, items = written(store, region=region_from_bbox("r", (179.0, -17.0, -179.5, -16.0), start, end))
    assert collection["extent"]["spatial"]["bbox"] == [[179.0, -17.0, -179.5, -16.0]]
    assert items[0]["geometry"]["type"] == "MultiPolygon"


def test_the_same_run_gives_the_same_bytes_and_time_only_on_request(store: Store) -> None:
    written(store)
    first = {path: store.get(path) for path in store.list("stac")}
    written(store)
    assert {path: store.get(path) for path in store.list("stac")} == first
    collection, _ = written(store, created=datetime(2026, 1, 2, tzinfo=UTC))
    assert collection["created"] == "2026-01-02T00:00:00Z"


@pytest.mark.parametrize("crs", ["+proj=laea +lat_0=10 +lon_0=20", "EPSG:4326"])
def test_a_crs_without_code_is_written_in_full(store: Store, crs: str) -> None:
    _, items = written(store, grid=make_grid((4, 4), 4, crs=crs))
    properties = items[0]["properties"]
    assert (properties["proj:code"] is None) == ("proj:projjson" in properties)
