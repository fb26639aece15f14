"""STAC 1.1 of what a run made: one collection, one item per time step. No clock: the same run gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pyproj import CRS
from shapely.geometry import mapping

from eo_batch.core.arrays import NO, NO_OBSERVATION, NOT_COMPUTED, YES
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ItemTable, TimeStep
from eo_batch.core.region import Region
from eo_batch.outputs.store import Store

VERSION = "1.1.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
)
ZARR_TYPE = "application/vnd+zarr"
PARQUET_TYPE = "application/vnd.apache.parquet"

_CLASSES = [
    {"value": NO, "name": "no", "description": "observed, and not what the prompt asks for"},
    {"value": YES, "name": "yes", "description": "observed, and what the prompt asks for"},
    {"value": NO_OBSERVATION, "name": "no-observation", "description": "no valid observation, or outside the region"},
    {"value": NOT_COMPUTED, "name": "not-computed", "description": "not computed", "nodata": True},
]


def write_stac(
    store: Store,
    *,
    name: str,
    grid: Grid,
    region: Region,
    prompts: PromptSet,
    steps: Sequence[TimeStep],
    items: ItemTable,
    scores: bool,
    licence: str,
    model: Mapping[str, Any],
    software: Mapping[str, str],
    created: datetime | None = None,
) -> list[str]:
    """Write `stac/collection.json` and `stac/items/tNNNN.json`; their paths, the collection last.

    Parameters
    ----------
    licence : terms and attribution of the source scenes, free text.
    model : JSON values that say what answered the prompts.
    software : name -> version.
    created : only written where given; part of the bytes, so leave it out where runs are compared.
    """
    about = {
        "eo-batch:model": dict(model),
        "eo-batch:prompts": [
            {"id": p.id, "text": p.text, "threshold": p.threshold, "min_area_m2": p.min_area_m2} for p in prompts
        ],
        "eo-batch:source_licence": licence,
        "processing:software": dict(software),
        "processing:lineage": _lineage(model, prompts),
    }
    if created is not None:
        about["created"] = _time(created)
    place = {"bbox": _bbox(region), "geometry": mapping(region.geometry)}
    assets = _assets(scores)
    paths = []
    for step in steps:
        path = f"stac/items/t{step.index:04d}.json"
        store.put(path, _json(_item(name, step, items, grid=grid, place=place, about=about, assets=assets)))
        paths.append(path)
    store.put("stac/collection.json", _json(_collection(name, steps, items, grid=grid, place=place, about=about, assets=assets)))
    return [*paths, "stac/collection.json"]


def _item(
    name: str,
    step: TimeStep,
    items: ItemTable,
    *,
    grid: Grid,
    place: Mapping[str, Any],
    about: Mapping[str, Any],
    assets: Mapping[str, Any],
) -> dict[str, Any]:
    sources = [items.documents[i] for i in sorted(step.items)]
    links = [
        _link("collection", "../collection.json"),
        _link("parent", "../collection.json"),
        _link("root", "../collection.json"),
    ]
    links += [link for document in sources if (link := _derived_from(document))]
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": f"{name}-{step.label}",
        "collection": name,
        **place,
        "properties": {
            "title": f"{name}, {step.label}",
            "datetime": None,
            "start_datetime": _time(step.start),
            "end_datetime": _time(step.end),
            **_projection(grid),
            **about,
            "eo-batch:step": step.label,
            "eo-batch:item_ids": [str(document.get("id")) for document in sources],
        },
        "links": links,
        "assets": {key: {**asset, "href": f"../../{asset['href']}"} for key, asset in assets.items()},
    }


def _collection(
    name: str,
    steps: Sequence[TimeStep],
    items: ItemTable,
    *,
    grid: Grid,
    place: Mapping[str, Any],
    about: Mapping[str, Any],
    assets: Mapping[str, Any],
) -> dict[str, Any]:
    texts = ", ".join(f'"{prompt["text"]}"' for prompt in about["eo-batch:prompts"])
    licence = about["eo-batch:source_licence"]
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    links = [_link("root", "./collection.json")]
    links += [{**_link("item", f"./items/t{step.index:04d}.json"), "type": "application/geo+json"} for step in steps]
    return {
        "type": "Collection",
        "stac_version": VERSION,
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "title": name,
        "description": f"Masks and footprints of {texts}, from {len(items):,} scenes. {licence}".strip(),
        "license": "other",
        "extent": {
            "spatial": {"bbox": [place["bbox"]]},
            "temporal": {"interval": [[_time(first), _time(last)]]},
        },
        "summaries": {"proj:code": [_projection(grid)["proj:code"]]} if _projection(grid)["proj:code"] else {},
        **about,
        "links": links,
        "assets": {key: {**asset, "href": f"../{asset['href']}"} for key, asset in assets.items()},
    }


def _assets(scores: bool) -> dict[str, Any]:
    text = "uint8 (prompt, time, y, x); mask: 0 no, 1 yes, 254 no observation, 255 not computed"
    text += "; score: value / 250" if scores else ""
    return {
        "masks": {
            "href": "masks.zarr",
            "type": f"{ZARR_TYPE}; version=3",
            "title": "Mask cube",
            "description": text,
            "roles": ["data"],
            "data_type": "uint8",
            "nodata": NOT_COMPUTED,
            "classification:classes": _CLASSES,
        },
        "footprints": {
            "href": "footprints.parquet",
            "type": PARQUET_TYPE,
            "title": "Footprints",
            "description": "GeoParquet 1.1: one polygon per object, prompt and time step",
            "roles": ["data"],
        },
    }


def _projection(grid: Grid) -> dict[str, Any]:
    crs = CRS.from_user_input(grid.crs)
    authority = crs.to_authority()
    out: dict[str, Any] = {"proj:code": ":".join(authority) if authority else None}
    if not authority:
        out["proj:projjson"] = crs.to_json_dict()
    return {
        **out,
        "proj:bbox": list(grid.bounds),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform)[:6],
    }


def _lineage(model: Mapping[str, Any], prompts: PromptSet) -> str:
    asked = "; ".join(f'"{p.text}" from score {p.threshold:g}' for p in prompts)
    name = model.get("name", "a model")
    return f"Scenes composed per time step, scored by {name} in overlapping windows, cut at thresholds ({asked})."


def _derived_from(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Link to a source item; only http(s) addresses, without query, fragment or user, which may hold secrets."""
    for link in document.get("links", ()):
        if link.get("rel") == "self":
            parts = urlsplit(str(link.get("href", "")))
            if parts.scheme in ("http", "https") and parts.hostname:
                host = parts.hostname + (f":{parts.port}" if parts.port else "")
                return _link("derived_from", urlunsplit((parts.scheme, host, parts.path, "", "")))
    return None


def _link(rel: str, href: str) -> dict[str, Any]:
    return {"rel": rel, "href": href, "type": "application/json"}


def _bbox(region: Region) -> list[float]:
    """west, south, east, north in degrees; west > east where the region crosses longitude 180 (RFC 7946, 5.2)."""
    bounds = [part.bounds for part in region.parts]
    west, east = min(b[0] for b in bounds), max(b[2] for b in bounds)
    if region.crosses_antimeridian:
        west = min(b[0] for b in bounds if b[0] >= 0)
        east = max(b[2] for b in bounds if b[0] < 0)
    return [west, min(b[1] for b in bounds), east, max(b[3] for b in bounds)]


def _time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
