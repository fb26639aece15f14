"""Small pipelines and STAC items for tests of the search."""

from __future__ import annotations

from typing import Any

from eo_batch.core.region import Region, region_from_bbox
from eo_batch.core.spec import CatalogSpec, PipelineSpec

BOX = (10.0, 50.0, 10.2, 50.1)


def pipeline(
    *,
    bbox: tuple[float, ...] = BOX,
    start: str = "2020-06-01",
    end: str = "2020-07-01",
    collections: tuple[str, ...] = ("scenes",),
    bands: tuple[str, ...] = ("red",),
    **source: Any,
) -> PipelineSpec:
    """A valid pipeline over `bbox` and a period."""
    return PipelineSpec.model_validate(
        {
            "name": "case",
            "region": {"bbox": bbox, "start": start, "end": end},
            "source": {"catalog": "case", "collections": list(collections), "bands": list(bands), **source},
            "grid": {"resolution": 10},
            "prompts": [{"text": "water"}],
        }
    )


def region_of(spec: PipelineSpec) -> Region:
    """The region of a pipeline with a box."""
    assert spec.region.bbox is not None
    return region_from_bbox("case", spec.region.bbox, spec.start, spec.end)


def catalog(url: str, **fields: Any) -> CatalogSpec:
    """A catalog without a file."""
    return CatalogSpec.model_validate({"title": "case", "url": url, "asset_hosts": ["*"], **fields})


def item(name: str = "a", **changes: Any) -> dict[str, Any]:
    """A STAC 1.1 item in the middle of `BOX` with one band, red; `changes` replace top-level fields or, else, properties."""
    west, south, east, north = changes.pop("box", (10.05, 50.02, 10.15, 50.08))
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    document: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "collection": "scenes",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {"datetime": "2020-06-15T10:00:00Z"},
        "links": [],
        "assets": {"red": asset("red.tif", "red")},
    }
    for key, value in changes.items():
        (document if key in document else document["properties"])[key.replace("__", ":")] = value
    return document


def asset(href: str, *names: str, **fields: Any) -> dict[str, Any]:
    """A GeoTIFF asset whose bands have the common names `names`."""
    bands = [{"name": f"B{index}", "eo:common_name": name} for index, name in enumerate(names, 1)]
    return {
        "href": href,
        "type": "image/tiff; application=geotiff",
        "roles": ["data"],
        **({"bands": bands} if names else {}),
        **fields,
    }


def landing(url: str = "{url}", *, conforms: bool = True) -> dict[str, Any]:
    """Landing page of a STAC API at `url`."""
    classes = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
    links = [{"rel": "root", "href": url}, {"rel": "self", "href": url}]
    links += [
        {"rel": "search", "href": f"{url}/search", "method": method, "type": "application/geo+json"} for method in ("GET", "POST")
    ]
    return {
        "type": "Catalog",
        "id": "case",
        "stac_version": "1.0.0",
        "description": "case",
        "conformsTo": classes if conforms else [],
        "links": links,
    }


def page(
    *items: dict[str, Any], next_body: dict[str, Any] | None = None, next_href: str = "{url}/search", **fields: Any
) -> dict[str, Any]:
    """A page of a search; with a `next` link where `next_body` is given."""
    links = [] if next_body is None else [{"rel": "next", "method": "POST", "href": next_href, "body": next_body}]
    return {"type": "FeatureCollection", "features": list(items), "links": links, **fields}
