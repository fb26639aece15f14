"""What a raster file is, checked before any pixel is read, and where its pixels lie on the grid of a run.

Files are written by strangers: a 46 MB file may declare 4 TB, a text file may be called .tif, and a VRT would read other
files. So the driver is named at open (a deny-list of drivers stops working once a WarpedVRT has existed in the process),
and size, blocks and bands are limited from the header alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import rasterio
from affine import Affine
from pyproj import Transformer
from pyproj.exceptions import CRSError, ProjError
from rasterio.enums import MaskFlags

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Grid
from eo_batch.sources.resample import Georeference

MAX_DECLARED_BYTES = 64 * 10**9
MAX_BLOCK_BYTES = 64 * 2**20
MAX_BANDS = 64
MAX_VALUE = 3e38
LARGEST_NUMBER = 2.0**64
"""Scale and offset must keep stored numbers up to this below `MAX_VALUE`: an infinite value would pass for an observation."""
ALIGNED_PX = 1e-6
"""A raster whose pixels meet grid pixels this closely is read as it is."""
RATIO_SLACK = 1.01
"""A grid pixel of 2.99 source pixels counts as one of 3."""

GDAL_ENV: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no sidecars: .aux.xml, .ovr, .msk are never looked for
    "GDAL_NUM_THREADS": "1",  # several threads in one read do not report all HTTP faults
    "GDAL_CACHEMAX": 256 * 2**20,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "CPL_CURL_VERBOSE": "NO",  # it would print headers
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/",  # a failure or an expired signature must not be remembered
    "GDAL_HTTP_MAX_RETRY": "0",  # retries live in asset_errors.py, in one layer
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "GDAL_GEOREF_SOURCES": "INTERNAL",  # no world files
}


@dataclass(frozen=True)
class Header:
    """What a file says about one of its bands at one of its levels.

    Parameters
    ----------
    height, width : pixels of the level.
    transform : affine from (column, row) of the level to CRS coordinates.
    crs : WKT.
    dtype : numpy name.
    nodata, scale, offset : the file's own tags of the band.
    is_masked : the file marks pixels without observation by a mask. Alpha bands do not count: aerial photos of four bands often
        call their near infrared one alpha.
    overviews : decimation factors of the smaller levels, ascending.
    """

    height: int
    width: int
    transform: Affine
    crs: str
    dtype: str
    nodata: float | None
    scale: float
    offset: float
    is_masked: bool
    overviews: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """How one band of a file is read for a grid; the same for every window.

    Parameters
    ----------
    overview : level to read, -1 for full resolution.
    block_px : level pixels are first averaged in blocks of this many, anchored at the raster's corner.
    extent : (rows, columns) of the raster after averaging; not whole numbers where the last block is cut.
    aligned_yx : absolute (row, column) on the grid of the raster's first pixel where their pixels coincide, else None.
    georeference : how grid pixels find their place where they do not.
    """

    overview: int
    block_px: int
    extent: tuple[float, float]
    aligned_yx: tuple[int, int] | None
    georeference: Georeference


def driver_of(href: str) -> str:
    """The only driver that may open `href`."""
    path = href.split("?", 1)[0].split("#", 1)[0]
    return "JP2OpenJPEG" if path.lower().endswith(".jp2") else "GTiff"


def open_raster(path: str, href: str, overview: int = -1) -> Any:
    """Open dataset; the caller has entered `rasterio.Env(**GDAL_ENV)` and sorts the errors of rasterio."""
    options = {} if overview < 0 else {"overview_level": overview}
    return rasterio.open(path, driver=driver_of(href), sharing=False, **options)


def read_header(dataset: Any, index: int, where: str) -> Header:
    """Header of band `index` (from 1), after all checks that need no pixel.

    Raises
    ------
    AssetError : `asset-contract`, `asset-too-big`.
    """
    _check_size(dataset, where)
    if not 1 <= index <= dataset.count:
        raise _broken(where, f"has {dataset.count} bands, band {index} was asked for")
    dtype = dataset.dtypes[index - 1]
    if not np.issubdtype(np.dtype(dtype), np.number) or np.dtype(dtype).kind == "c":
        raise _broken(where, f"holds {dtype} values, expected real numbers")
    if dataset.crs is None:
        has_gcps = bool(dataset.gcps[0])
        raise _broken(where, "has only ground control points, no grid" if has_gcps else "has no coordinate reference system")
    if dataset.transform.determinant == 0 or not np.isfinite(dataset.transform[:6]).all():
        raise _broken(where, "has no usable geotransform")
    flags = dataset.mask_flag_enums[index - 1]
    return Header(
        dataset.height,
        dataset.width,
        Affine(*dataset.transform[:6]),
        dataset.crs.to_wkt(),
        dtype,
        dataset.nodatavals[index - 1],
        float(dataset.scales[index - 1]),
        float(dataset.offsets[index - 1]),
        MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
        tuple(dataset.overviews(index)),
    )


def check_scale(scale: float, offset: float, where: str) -> None:
    """Refuse a scale and an offset that do not give float32 values.

    Raises
    ------
    AssetError : `asset-contract`.
    """
    if not abs(scale) * LARGEST_NUMBER + abs(offset) < MAX_VALUE:
        raise _broken(where, f"has scale {scale:g} and offset {offset:g}, which give no usable values")


def choose_level(header: Header, grid: Grid, *, nearest: bool, where: str) -> tuple[int, int]:
    """(overview, block_px): the level to read, and the size of blocks to average on it, for pixels of the grid's size.

    The ratio of pixel sizes is taken at the raster's centre, so the choice never depends on the window. Nearest neighbour
    always reads full resolution: overviews of class values may hold averages.
    """
    if nearest:
        return -1, 1
    ratio = _ratio(header, grid, where) * RATIO_SLACK
    fitting = [(factor, level) for level, factor in enumerate(header.overviews) if factor <= ratio]
    factor, overview = max(fitting, default=(1, -1))
    return overview, max(1, int(ratio / factor))


def place(header: Header, level: Header, grid: Grid, *, overview: int, block_px: int, where: str) -> Placement:
    """Placement on `grid` of the level with header `level`."""
    transform = level.transform @ Affine.scale(block_px)
    extent = level.height / block_px, level.width / block_px
    to_source = None if _same_crs(header.crs, grid.crs) else _transformer(grid.crs, header.crs, where)
    georeference = Georeference(grid.resolution, to_source, ~transform)
    aligned = _aligned(transform, extent, grid.resolution) if to_source is None else None
    return Placement(overview, block_px, extent, aligned, georeference)


def _check_size(dataset: Any, where: str) -> None:
    if dataset.count > MAX_BANDS:
        raise _too_big(where, f"declares {dataset.count:,} bands (limit {MAX_BANDS})")
    item = max((_item_bytes(dtype) for dtype in dataset.dtypes), default=1)
    declared = dataset.height * dataset.width * dataset.count * item
    if declared > MAX_DECLARED_BYTES:
        raise _too_big(where, f"declares {_size(declared)} (limit {_size(MAX_DECLARED_BYTES)})")
    bands = dataset.count if dataset.profile.get("interleave") == "pixel" else 1
    block = max((h * w for h, w in dataset.block_shapes), default=0) * item * bands
    if block > MAX_BLOCK_BYTES:
        raise _too_big(where, f"has blocks of {_size(block)} (limit {_size(MAX_BLOCK_BYTES)})")


def _item_bytes(dtype: str) -> int:
    return 8 if dtype == "complex_int16" else np.dtype(dtype).itemsize


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _aligned(transform: Affine, extent: tuple[float, float], resolution: float) -> tuple[int, int] | None:
    a, b, c, d, e, f = transform[:6]
    height, width = int(np.ceil(extent[0])), int(np.ceil(extent[1]))
    left, top = c / resolution, -f / resolution
    row, col = round(top), round(left)
    shifts = (
        left - col,
        top - row,
        (c + a * width) / resolution - col - width,
        -(f + e * height) / resolution - row - height,
        b * height / resolution,
        d * width / resolution,
    )
    return (row, col) if max(abs(shift) for shift in shifts) <= ALIGNED_PX else None


def _ratio(header: Header, grid: Grid, where: str) -> float:
    """Source pixels per grid pixel along the axis that has fewer, at the raster's centre."""
    x, y = header.transform @ (header.width / 2, header.height / 2)
    if not _same_crs(header.crs, grid.crs):
        x, y = _transformer(grid.crs, header.crs, where).transform(x, y, direction="INVERSE")
    if not (np.isfinite(x) and np.isfinite(y)):
        return 1.0
    to_source = None if _same_crs(header.crs, grid.crs) else _transformer(grid.crs, header.crs, where)
    row, col = -y / grid.resolution, x / grid.resolution
    georeference = Georeference(grid.resolution, to_source, ~header.transform)
    u, v = georeference.locate(np.array([row, row, row + 1.0]), np.array([col, col + 1.0, col]))
    ratio = min(np.hypot(u[1] - u[0], v[1] - v[0]), np.hypot(u[2] - u[0], v[2] - v[0]))
    return float(ratio) if np.isfinite(ratio) and ratio > 0 else 1.0


@lru_cache(maxsize=256)
def _same_crs(source_wkt: str, grid_crs: str) -> bool:
    source = rasterio.crs.CRS.from_user_input(source_wkt)
    if source == rasterio.crs.CRS.from_user_input(grid_crs):
        return True
    return pyproj.CRS.from_wkt(source_wkt).equals(pyproj.CRS.from_user_input(grid_crs), ignore_axis_order=True)


def _transformer(grid_crs: str, source_wkt: str, where: str) -> Transformer:
    try:
        return _cached_transformer(grid_crs, source_wkt)
    except (CRSError, ProjError):
        raise _broken(where, "has a coordinate reference system without a way to the grid's") from None


@lru_cache(maxsize=256)
def _cached_transformer(grid_crs: str, source_wkt: str) -> Transformer:
    return Transformer.from_crs(pyproj.CRS.from_user_input(grid_crs), pyproj.CRS.from_wkt(source_wkt), always_xy=True)


def _broken(where: str, what: str) -> AssetError:
    return AssetError("asset-contract", what, where=where, fix="The item cannot be used: leave it out, or ask its provider.")


def _too_big(where: str, what: str) -> AssetError:
    return AssetError("asset-too-big", what, where=where, fix="Leave the item out, or convert the file to a tiled COG.")
