"""The answer to prompts on one image as files: masks, boxes, and everything as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image

from eo_batch.core.arrays import NO, NO_OBSERVATION, YES
from eo_batch.outputs.store import Store
from eo_batch.products.rules import Box
from eo_batch.run.images.answer import TASKS, ImageAnswer

ANSWER = "answer.json"
BOXES_PARQUET, BOXES_GEOJSON = "boxes.parquet", "boxes.geojson"
LONLAT = "EPSG:4326"
COLOURS = {NO: (225, 225, 220, 255), YES: (202, 60, 50, 255), NO_OBSERVATION: (120, 120, 120, 255)}
_GEOJSON_DIGITS = 9
"""Decimals of a degree: a tenth of a millimetre."""


def write_image_files(
    answer: ImageAnswer, folder: str | Path, *, tasks: Sequence[str] = TASKS, regions: int = 4, seed: int | None = None
) -> list[Path]:
    """Write what the tasks ask for into `folder`; files of the same names are replaced, the JSON comes last.

    `masks/PROMPT-ID.tif` where the image is georeferenced, else `.png`: 0 no, 1 yes, 254 not observed. For detection and
    grounding of a georeferenced image `boxes.parquet` in its CRS and `boxes.geojson` in longitude and latitude.
    `answer.json` holds everything, boxes in pixels.

    Returns
    -------
    Paths of the files, in the order written.

    Raises
    ------
    StoreError : the folder cannot be written.
    """
    store, files = Store(folder), []
    if "masks" in tasks:
        for prompt, code in zip(answer.prompts, answer.codes, strict=True):
            name = f"masks/{prompt.id}.{'tif' if answer.picture.crs else 'png'}"
            store.put(name, mask_geotiff(code, answer, prompt.text) if answer.picture.crs else mask_png(code))
            files.append(name)
    rows = box_rows(answer, tasks)
    if answer.picture.crs and ("detect" in tasks or "ground" in tasks):
        parquet, geojson = _vector_files(rows, answer)
        store.put(BOXES_PARQUET, parquet)
        files.append(BOXES_PARQUET)
        if geojson:
            store.put(BOXES_GEOJSON, geojson)
            files.append(BOXES_GEOJSON)
    told = answer.as_dict(tasks, regions=regions, seed=seed)
    store.put(ANSWER, json.dumps({**told, "files": files}, indent=1, allow_nan=False).encode())
    return [Path(folder) / name for name in [*files, ANSWER]]


def mask_png(code: NDArray[np.uint8]) -> bytes:
    """Mask codes (y, x) as an 8-bit PNG with a palette: the pixel values are the codes."""
    picture = Image.fromarray(code).convert("P")
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in COLOURS.items():
        palette[value] = colour[:3]
    picture.putpalette(palette.tobytes())
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()


def mask_geotiff(code: NDArray[np.uint8], answer: ImageAnswer, text: str) -> bytes:
    """Mask codes (y, x) as a GeoTIFF where the image lies; 254 is its nodata."""
    height, width = code.shape
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8"}
    profile |= {"crs": answer.picture.crs, "transform": answer.picture.transform, "nodata": NO_OBSERVATION}
    profile |= {"compress": "deflate"}
    if min(height, width) >= 512:
        profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512}
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as raster:
            raster.write(code, 1)
            raster.write_colormap(1, COLOURS)
            raster.set_band_description(1, text)
            raster.update_tags(PROMPT=text, VALUES="0 no, 1 yes, 254 not observed")
        return bytes(memory.read())


def box_rows(answer: ImageAnswer, tasks: Sequence[str]) -> list[tuple[str, str, str, Box]]:
    """(kind, prompt, prompt id, box): objects for detection, places for grounding."""
    rows = []
    for prompt in answer.prompts:
        if "detect" in tasks:
            rows += [("object", prompt.text, prompt.id, box) for box in answer.boxes[prompt.text]]
        place = answer.places[prompt.text] if "ground" in tasks else None
        if place is not None:
            rows.append(("place", prompt.text, prompt.id, place))
    return rows


def _vector_files(rows: Sequence[tuple[str, str, str, Box]], answer: ImageAnswer) -> tuple[bytes, bytes]:
    """The boxes as GeoParquet in the image's CRS and as GeoJSON in longitude and latitude; the latter is empty where the CRS
    has no way there."""
    import geopandas
    from pyproj.exceptions import CRSError, ProjError

    columns = {
        "kind": [kind for kind, *_ in rows],
        "prompt": [text for _, text, *_ in rows],
        "prompt_id": [identity for *_, identity, _ in rows],
        "score": np.array([box.score for *_, box in rows], np.float64),
        "pixels": np.array([box.pixels for *_, box in rows], np.int64),
    }
    for place, name in enumerate(("x0_px", "y0_px", "x1_px", "y1_px")):
        columns[name] = np.array([box.bounds[place] for *_, box in rows], np.float64)
    frame = geopandas.GeoDataFrame(columns, geometry=[_polygon(box, answer) for *_, box in rows], crs=answer.picture.crs)
    target = io.BytesIO()
    frame.to_parquet(target, index=False, write_covering_bbox=True, compression="zstd")
    try:
        lonlat = frame.to_crs(LONLAT)
    except (CRSError, ProjError):
        return target.getvalue(), b""
    if not np.isfinite(lonlat.total_bounds).all() and rows:
        return target.getvalue(), b""
    return target.getvalue(), _geojson(lonlat)


def _polygon(box: Box, answer: ImageAnswer) -> Any:
    """The box in the image's CRS, counterclockwise."""
    from shapely import Polygon
    from shapely.geometry.polygon import orient

    corners = box.corners or ((box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1))
    assert answer.picture.transform is not None
    return orient(Polygon([answer.picture.transform @ corner for corner in corners]))


def _geojson(frame: Any) -> bytes:
    """A FeatureCollection of RFC 7946: longitude and latitude, rings counterclockwise."""
    features = []
    for row in frame.itertuples(index=False):
        ring = [[round(x, _GEOJSON_DIGITS), round(y, _GEOJSON_DIGITS)] for x, y in row.geometry.exterior.coords]
        properties = {"kind": row.kind, "prompt": row.prompt, "prompt_id": row.prompt_id}
        properties |= {"score": float(row.score), "pixels": int(row.pixels)}
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, allow_nan=False).encode()
