"""A toy region for tests of whole runs: small real COGs on two dates and in two UTM zones, and their STAC catalog.

Independent of the package: plain rasterio and JSON, so that runs are tested against files the package did not write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.transform import from_origin

BANDS = ("green", "nir")
WEST, NORTH = 727_000.0, 5_210_000.0  # metres in EPSG:32632, near 12 E, 47 N: the border of zones 32 and 33
SIZE = 400  # pixels of 10 m


def make_toy(folder: Path, *, dates: int = 2, size: int = SIZE, name: str = "toy") -> Path:
    """Write scenes, catalog.json and pipeline.toml into `folder`; returns the pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for day in range(1, dates + 1):
        items.append(_scene(folder, f"a{day}", "EPSG:32632", WEST - 600, NORTH + 600, int(size * 0.75) + 60, size + 120, day))
        items.append(_scene(folder, f"b{day}", "EPSG:32633", *_corner(size), int(size * 0.9), size + 200, day))
    (folder / "catalog.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(toy_pipeline(size=size, name=name))
    return pipeline


def toy_pipeline(
    *,
    size: int = SIZE,
    name: str = "toy",
    chunk_px: int = 128,
    window_px: int = 64,
    model: str = "window-mean",
    step: str = "scene",
    composite: str = "first",
    prompts: tuple[str, ...] = ("bright", "dark"),
    extra: str = "",
) -> str:
    """Text of a pipeline over the toy scenes."""
    west, south, east, north = toy_bbox(size)
    tables = "\n".join(f'[[prompts]]\ntext = "{text}"\nthreshold = 0.5' for text in prompts)
    return f"""
name = "{name}"
[region]
bbox = [{west}, {south}, {east}, {north}]
start = "2024-06-01"
end = "2024-07-01"
[source]
catalog = "catalog.json"
collections = ["toy"]
bands = ["green", "nir"]
[grid]
crs = "EPSG:32632"
resolution = 10
chunk_px = {chunk_px}
[time]
step = "{step}"
composite = "{composite}"
[model]
name = "{model}"
window_px = {window_px}
overlap = 0.25
batch = 4
[output]
scores = true
{extra}
{tables}
"""


def toy_bbox(size: int = SIZE) -> tuple[float, float, float, float]:
    """Longitude and latitude box inside the toy square."""
    back = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    west, north = back.transform(WEST + 150, NORTH - 150)
    east, south = back.transform(WEST + size * 10 - 150, NORTH - size * 10 + 150)
    return round(west, 6), round(south, 6), round(east, 6), round(north, 6)


def field(x: NDArray[np.float64], y: NDArray[np.float64], day: int, band: int) -> NDArray[np.uint16]:
    """Digital numbers 1..9000 of a smooth landscape with sharp blobs; x, y in metres of EPSG:32632."""
    u, v = (x - WEST) / 300.0, (NORTH - y) / 300.0
    wave = np.sin(u * 1.7 + band) * np.cos(v * 1.3 - 0.4 * day) + 0.6 * np.sin(u * v / 3.1 + day)
    blobs = (np.sin(u * 5.3) * np.sin(v * 4.7) > 0.55) * 1.2
    return np.clip(2500 + 1100 * (wave + blobs) + 300 * band, 1, 9000).astype(np.uint16)


def _corner(size: int) -> tuple[float, float]:
    """Upper left corner, in EPSG:32633, of a scene over the eastern part of the toy square."""
    forward = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    x, y = forward.transform(WEST + size * 10 * 0.35, NORTH + 700)
    return round(x / 10) * 10.0, round(y / 10) * 10.0


def _scene(folder: Path, name: str, crs: str, west: float, north: float, width: int, height: int, day: int) -> dict[str, Any]:
    columns, rows = np.meshgrid(west + (np.arange(width) + 0.5) * 10, north - (np.arange(height) + 0.5) * 10)
    x, y = Transformer.from_crs(crs, "EPSG:32632", always_xy=True).transform(columns, rows)
    nodata = (columns - west) * 0.3 + (north - rows) < 900  # a slanted swath edge
    transform = from_origin(west, north, 10, 10)
    assets = {}
    for index, band in enumerate(BANDS):
        path = folder / f"{name}_{band}.tif"
        values = np.where(nodata, 0, field(x, y, day, index)).astype(np.uint16)
        profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "uint16", "crs": crs}
        with rasterio.open(
            path, "w", **profile, transform=transform, nodata=0, tiled=True, blockxsize=128, blockysize=128, compress="deflate"
        ) as target:
            target.write(values, 1)
        assets[band] = {
            "href": path.name,
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "proj:code": crs,
            "proj:shape": [height, width],
            "proj:transform": list(transform)[:6],
            "bands": [{"name": band, "eo:common_name": band, "nodata": 0, "raster:scale": 0.0001, "raster:offset": -0.1}],
        }
    back = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    east, south = west + width * 10, north - height * 10
    xs, ys = [west, east, east, west, west], [north, north, south, south, north]
    ring = [list(point) for point in zip(*back.transform(xs, ys), strict=True)]
    lon, lat = [p[0] for p in ring], [p[1] for p in ring]
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "collection": "toy",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(lon), min(lat), max(lon), max(lat)],
        "properties": {"datetime": f"2024-06-{day:02d}T10:00:0{0 if crs.endswith('2') else 5}Z", "eo:cloud_cover": 0},
        "links": [],
        "assets": assets,
    }
