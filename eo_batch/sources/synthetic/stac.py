"""The demo region as a static STAC 1.1 catalog: documents only, no pixel is needed to make them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from shapely.geometry import mapping

from eo_batch.core.grid import Span
from eo_batch.sources.synthetic.render import NODATA, OFFSET, SCALE
from eo_batch.sources.synthetic.scenes import DemoRegion, DemoScene

COLLECTION = "synthetic-sentinel-2"
NOTICE = "SYNTHETIC: computed pixels of a landscape that does not exist. Not an observation of the Earth."

_EXTENSIONS = [
    "https://stac-extensions.github.io/eo/v2.0.0/schema.json",
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "https://stac-extensions.github.io/view/v1.0.0/schema.json",
]
_CLASSIFICATION = "https://stac-extensions.github.io/classification/v2.0.0/schema.json"
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"
_SENSOR = {
    # common name: (band name, centre wavelength um) of Sentinel-2A, ESA Sentinel-2 MSI spectral responses
    "blue": ("B02", 0.4924),
    "green": ("B03", 0.5598),
    "red": ("B04", 0.6646),
    "nir": ("B08", 0.8328),
    "swir16": ("B11", 1.6137),
    "swir22": ("B12", 2.2024),
}
_SCL_CLASSES = (
    (0, "no_data"),
    (3, "cloud_shadow"),
    (4, "vegetation"),
    (5, "not_vegetated"),
    (6, "water"),
    (8, "cloud_medium_probability"),
    (9, "cloud_high_probability"),
    (10, "thin_cirrus"),
    (11, "snow_or_ice"),
)


def file_name(asset: str) -> str:
    """File of an asset inside the folder of its item: `B02.tif` for "blue"."""
    return f"{_SENSOR[asset][0]}.tif" if asset in _SENSOR else f"{asset.upper()}.tif"


def resolution_of(demo: DemoRegion, asset: str) -> int:
    """Pixel size of an asset in metres."""
    if asset == "scl":
        return 20
    return demo.swir_resolution_m if asset.startswith("swir") else 10


def describe_items(demo: DemoRegion) -> Iterator[dict[str, Any]]:
    """STAC items of all scenes of a region, in the order of time; one at a time, and no pixel is made.

    Hrefs are relative to the item (`<collection>/<item>/<item>.json`). `eo:cloud_cover` (percent)
    is what the clouds were asked to cover; `write_demo` writes what they do cover.
    """
    for scene in demo.scenes():
        yield item_document(demo, scene)


def item_document(demo: DemoRegion, scene: DemoScene, *, cloud_cover: float | None = None) -> dict[str, Any]:
    """The STAC item of one scene; `cloud_cover` is the measured share (0..1) where it is known."""
    cover = scene.acquisition.cloud_cover if cloud_cover is None else cloud_cover
    elevation, azimuth = scene.acquisition.sun_elevation_azimuth
    assets: dict[str, Any] = {name: _band_asset(demo, scene, name) for name in _SENSOR}
    assets["scl"] = _scl_asset(demo, scene)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [*_EXTENSIONS, _CLASSIFICATION],
        "id": scene.id,
        "collection": COLLECTION,
        "geometry": _rounded(mapping(scene.footprint_lonlat)),
        "bbox": [round(value, 7) for value in scene.footprint_lonlat.bounds],
        "properties": {
            "datetime": f"{scene.acquisition.datetime:%Y-%m-%dT%H:%M:%SZ}",
            "title": f"Synthetic scene {scene.id}",
            "description": NOTICE,
            "synthetic": True,
            "platform": "synthetic",
            "instruments": ["synthetic-msi"],
            "gsd": 10,
            "eo:cloud_cover": round(100.0 * cover, 2),
            "view:sun_elevation": round(elevation, 3),
            "view:sun_azimuth": round(azimuth, 3),
            "sat:relative_orbit": int(scene.acquisition.orbit[1:]),
            "proj:code": scene.crs,
        },
        "assets": assets,
        "links": [
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
        ],
    }


def collection_document(demo: DemoRegion, item_ids: list[str]) -> dict[str, Any]:
    """The STAC collection that holds the items."""
    first, last = demo.acquisitions[0].datetime, demo.acquisitions[-1].datetime + timedelta(minutes=1)
    return {
        "type": "Collection",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": COLLECTION,
        "title": "Synthetic Sentinel-2-like scenes",
        "description": f"{NOTICE} Region of {demo.size_px} x {demo.size_px} px, seed {demo.seed}.",
        "keywords": ["synthetic", "demo", "test"],
        "license": "Apache-2.0",
        "extent": {
            "spatial": {"bbox": [[round(value, 7) for value in demo.bounds_lonlat]]},
            "temporal": {"interval": [[f"{first:%Y-%m-%dT%H:%M:%SZ}", f"{last:%Y-%m-%dT%H:%M:%SZ}"]]},
        },
        "summaries": {"synthetic": [True], "proj:code": ["EPSG:32632", "EPSG:32633"]},
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{name}/{name}.json", "type": "application/geo+json"} for name in item_ids),
        ],
    }


def catalog_document(demo: DemoRegion) -> dict[str, Any]:
    """The STAC catalog at the top."""
    return {
        "type": "Catalog",
        "stac_version": "1.1.0",
        "id": "eo-batch-demo",
        "title": "Synthetic demo region of eo-batch",
        "description": f"{NOTICE} Seed {demo.seed}.",
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            {"rel": "child", "href": f"./{COLLECTION}/collection.json", "type": "application/json"},
        ],
    }


def _place(demo: DemoRegion, scene: DemoScene, asset: str) -> dict[str, Any]:
    """Fields that tell where the pixels of an asset are."""
    step = resolution_of(demo, asset)
    return {
        "gsd": step,
        "proj:shape": [len(scene.rows) * 10 // step, len(scene.cols) * 10 // step],
        "proj:transform": [step, 0, scene.cols.start * 10, 0, -step, -scene.rows.start * 10, 0, 0, 1],
        "proj:bbox": _bounds(scene.rows, scene.cols),
    }


def _bounds(rows: Span, cols: Span) -> list[int]:
    return [cols.start * 10, -rows.stop * 10, cols.stop * 10, -rows.start * 10]


def _band_asset(demo: DemoRegion, scene: DemoScene, asset: str) -> dict[str, Any]:
    name, wavelength = _SENSOR[asset]
    band = {
        "name": name,
        "data_type": "uint16",
        "nodata": NODATA,
        "unit": "1",
        "eo:common_name": asset,
        "eo:center_wavelength": wavelength,
        "raster:scale": SCALE,
        "raster:offset": OFFSET,
        "raster:spatial_resolution": resolution_of(demo, asset),
    }
    return {
        "href": f"./{file_name(asset)}",
        "title": f"Synthetic {asset} reflectance",
        "type": _COG,
        "roles": ["data", "reflectance"],
        **_place(demo, scene, asset),
        "bands": [band],
    }


def _scl_asset(demo: DemoRegion, scene: DemoScene) -> dict[str, Any]:
    return {
        "href": f"./{file_name('scl')}",
        "title": "Synthetic scene classification, codes of Sentinel-2 L2A",
        "type": _COG,
        "roles": ["data"],
        **_place(demo, scene, "scl"),
        "data_type": "uint8",
        "nodata": 0,
        "classification:classes": [{"value": value, "name": name} for value, name in _SCL_CLASSES],
    }


def _rounded(geometry: Any) -> dict[str, Any]:
    return {
        "type": geometry["type"],
        "coordinates": [[[round(x, 7), round(y, 7)] for x, y in ring] for ring in geometry["coordinates"]],
    }
