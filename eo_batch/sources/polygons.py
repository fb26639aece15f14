"""Polygons of a file that a user points to: GeoPackage, GeoJSON, Shapefile, FlatGeobuf or GeoParquet, in the CRS of a grid.

Files are hostile: the first bytes must be those of the format that the name says (GDAL would open other formats under any
name, among them ones that point to other files and to the network), and sizes are bounded before geometry is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.sources.outlines import move_outlines, off_the_globe

FORMATS: Mapping[str, tuple[bytes, ...]] = {
    ".gpkg": (b"SQLite format 3\0",),
    ".geojson": (b"{",),
    ".json": (b"{",),
    ".shp": (b"\0\0\x27\x0a",),
    ".fgb": (b"fgb",),
    ".parquet": (b"PAR1",),
    ".geoparquet": (b"PAR1",),
}
"""Endings of names, and the bytes such a file begins with (after white space where it is text)."""
MAX_FILE_BYTES = 4 << 30
MAX_POLYGONS = 1_000_000
MAX_VERTICES = 50_000_000
MAX_ID_CHARACTERS = 200


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons with names, in the CRS of a grid.

    Parameters
    ----------
    ids : their names, all different, in the order of the file.
    shapes : shapely Polygons and MultiPolygons, valid; None for one that lies where the CRS has no coordinates.
    repaired : names of those whose outline crossed itself and was mended.
    """

    ids: tuple[str, ...]
    shapes: NDArray[np.object_]
    repaired: tuple[str, ...] = ()


def read_polygons(
    path: Path, *, crs: str, bounds: tuple[float, float, float, float], id_field: str | None = None, layer: str | None = None
) -> Polygons:
    """All polygons of the file `path`, in `crs`.

    Parameters
    ----------
    bounds : (left, bottom, right, top) of the grid in `crs`; a polygon without coordinates there must not touch it.
    id_field : column that names the polygons; None numbers them from 1.
    layer : which layer, where the file has several.

    Raises
    ------
    ConfigError : `zones-invalid`: no such file, format, layer or column; no CRS; names that are missing, long or the same; a
        geometry that is no polygon or cannot be mended; too large.
    """
    _check_file(path)
    shapes, names, source = (_read_parquet if "parquet" in path.suffix.lower() else _read_vector)(path, id_field, layer)
    if source is None:
        fix = "Write the CRS into the file (for example with `ogr2ogr -a_srs EPSG:4326`); eo-batch does not guess one."
        raise _invalid(path, "the polygons have no CRS", fix=fix)
    if not len(shapes):
        raise _invalid(path, "the file holds no polygon")
    ids = tuple(str(number + 1) for number in range(len(shapes))) if names is None else _checked_ids(path, names, id_field)
    shapes = shapely.force_2d(shapes)
    _check_shapes(path, shapes, ids)
    shapes, repaired = _mended(path, shapes, ids)
    return Polygons(ids, _moved(path, shapes, ids, source=source, target=crs, bounds=bounds), repaired)


def _check_file(path: Path) -> None:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise _invalid(path, "there is no such file")
    if suffix not in FORMATS:
        raise _invalid(path, f'files named "{suffix or path.name}" are not read', fix=f"Give one of {', '.join(FORMATS)}.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _invalid(path, f"the file has {path.stat().st_size / 1e9:.1f} GB (limit {MAX_FILE_BYTES / 1e9:.1f})", fix=_CUT)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise _invalid(path, "the file cannot be read", why=error.strerror or type(error).__name__) from None
    if suffix in (".geojson", ".json"):
        start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(FORMATS[suffix]):
        raise _invalid(path, f"the content is not that of a {suffix} file", fix="Give the file its right ending.")


def _read_vector(path: Path, id_field: str | None, layer: str | None) -> tuple[NDArray[np.object_], list[Any] | None, Any]:
    """Geometries, names and CRS of a file that GDAL reads."""
    import pyogrio
    import pyogrio.errors

    try:
        layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
        chosen = _chosen_layer(path, layers, layer)
        info = pyogrio.read_info(path, layer=chosen, force_feature_count=True)
        _check_count(path, int(info["features"]))
        _check_field(path, [str(name) for name in info["fields"]], id_field)
        columns = [] if id_field is None else [id_field]
        meta, _, geometry, fields = pyogrio.raw.read(path, layer=chosen, columns=columns, max_features=MAX_POLYGONS + 1)
        if geometry is None:
            raise _invalid(path, "the file has no geometry")
        shapes = shapely.from_wkb(geometry)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FieldError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _unreadable(path, error) from None
    except (shapely.errors.ShapelyError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    names = None if id_field is None else fields[0].tolist()
    return shapes, names, meta["crs"]


def _read_parquet(path: Path, id_field: str | None, layer: str | None) -> tuple[NDArray[np.object_], list[Any] | None, Any]:
    """Geometries, names and CRS of a GeoParquet file."""
    import geopandas
    import pyarrow.parquet as pq

    if layer is not None:
        raise _invalid(path, "a Parquet file has no layers", fix="Leave the layer out.")
    try:
        with pq.ParquetFile(path) as parquet:
            _check_count(path, parquet.metadata.num_rows)
            _check_field(path, parquet.schema_arrow.names, id_field)
        columns = [] if id_field is None else [id_field]
        geometry = _parquet_geometry(path)
        frame = geopandas.read_parquet(path, columns=[*columns, geometry])
    except ConfigError:
        raise
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    names = None if id_field is None else frame[id_field].tolist()
    return np.asarray(frame.geometry.values, dtype=object), names, frame.crs


def _parquet_geometry(path: Path) -> str:
    """Name of the main geometry column."""
    import json

    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        found = json.loads((parquet.metadata.metadata or {}).get(b"geo", b"{}"))
    name = found.get("primary_column") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise _invalid(path, "this Parquet file is not GeoParquet", fix="Write it with geopandas or GDAL.")
    return name


def _chosen_layer(path: Path, layers: list[str], layer: str | None) -> str:
    listed = ", ".join(f'"{name}"' for name in layers[:10])
    if layer is not None and layer not in layers:
        raise _invalid(path, f'the file has no layer "{layer}"', fix=f"It has {listed}.")
    if layer is None and len(layers) != 1:
        raise _invalid(path, f"the file has {len(layers):,} layers", fix=f"Name one with --layer: {listed}." if layers else "")
    return layer if layer is not None else layers[0]


def _check_count(path: Path, count: int) -> None:
    if count > MAX_POLYGONS:
        raise _invalid(path, f"the file holds {count:,} polygons (limit {MAX_POLYGONS:,})", fix=_CUT)


def _check_field(path: Path, fields: list[str], id_field: str | None) -> None:
    if id_field is not None and id_field not in fields:
        listed = ", ".join(f'"{name}"' for name in fields[:20])
        raise _invalid(path, f'the file has no column "{id_field}"', fix=f"It has {listed}." if fields else "It has none.")


def _checked_ids(path: Path, names: list[Any], id_field: str | None) -> tuple[str, ...]:
    ids = tuple("" if name is None or name != name else _as_text(name) for name in names)
    seen: set[str] = set()
    for number, name in enumerate(ids, 1):
        what = "has no name" if not name.strip() else f'has the name "{name[:40]}" of an earlier one' if name in seen else ""
        if len(name) > MAX_ID_CHARACTERS:
            what = f"has a name of {len(name):,} characters (limit {MAX_ID_CHARACTERS})"
        if what:
            fix = "Choose a column that names every polygon differently, or none: then they are numbered."
            raise _invalid(path, f'polygon {number:,} {what} in "{id_field}"', fix=fix)
        seen.add(name)
    return ids


def _as_text(name: Any) -> str:
    """Whole numbers without a decimal point: GDAL gives a column with gaps as floats."""
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def _check_shapes(path: Path, shapes: NDArray[np.object_], ids: tuple[str, ...]) -> None:
    kinds = shapely.get_type_id(shapes)
    wrong = np.flatnonzero(~np.isin(kinds, (3, 6)) | shapely.is_empty(shapes))
    if len(wrong):
        first = int(wrong[0])
        kind = (
            "has no geometry" if shapes[first] is None or shapely.is_empty(shapes[first]) else f"is a {shapes[first].geom_type}"
        )
        more = f", and {len(wrong) - 1:,} more are no polygons" if len(wrong) > 1 else ""
        raise _invalid(path, f"{_named(ids, first)} {kind}{more}", fix="Give polygons only.")
    vertices = int(shapely.get_num_coordinates(shapes).sum())
    if vertices > MAX_VERTICES:
        raise _invalid(path, f"the polygons have {vertices:,} vertices (limit {MAX_VERTICES:,})", fix=_CUT)
    wild = np.flatnonzero(~np.isfinite(shapely.bounds(shapes)).all(axis=1) | ~_all_finite(shapes))
    if len(wild):
        raise _invalid(path, f"{_named(ids, int(wild[0]))} has coordinates that are not finite")


def _all_finite(shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
    xy, index = shapely.get_coordinates(shapes, return_index=True)
    out = np.ones(len(shapes), np.bool_)
    out[index[~np.isfinite(xy).all(axis=1)]] = False
    return out


def _mended(path: Path, shapes: NDArray[np.object_], ids: tuple[str, ...]) -> tuple[NDArray[np.object_], tuple[str, ...]]:
    """Shapes whose rings cross themselves made valid ("structure": rings keep their roles), and the names of these."""
    broken = np.flatnonzero(~shapely.is_valid(shapes) & ~shapely.is_missing(shapes))
    shapes = shapes.copy()
    for index in broken.tolist():
        mended = shapely.make_valid(shapes[index], method="structure", keep_collapsed=False)
        if mended.is_empty or mended.geom_type not in ("Polygon", "MultiPolygon"):
            why = shapely.is_valid_reason(shapes[index])
            raise _invalid(path, f"{_named(ids, index)} is not valid and encloses no area", why=why, fix="Mend or remove it.")
        shapes[index] = mended
    return shapes, tuple(ids[index] for index in broken.tolist())


def _moved(
    path: Path,
    shapes: NDArray[np.object_],
    ids: tuple[str, ...],
    *,
    source: Any,
    target: str,
    bounds: tuple[float, float, float, float],
) -> NDArray[np.object_]:
    """`shapes` in the CRS `target`; None where a shape has no (sound) coordinates there and lies apart from `bounds`."""
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError, ProjError

    known = "Write it anew with a CRS that PROJ knows and that has a place on Earth."
    try:
        source, goal = CRS.from_user_input(source), CRS.from_user_input(target)
    except CRSError:
        raise _invalid(path, "the CRS of the file is not known", fix=known) from None
    if source.equals(goal, ignore_axis_order=True):
        away = np.flatnonzero(off_the_globe(shapes, goal))
        if len(away):
            raise _invalid(path, f"{_named(ids, int(away[0]))} has coordinates that are nowhere on Earth")
        return shapes
    try:
        moved = move_outlines(shapes, source, goal, max_vertices=2 * MAX_VERTICES)
    except ProjError:
        raise _invalid(path, f"there is no way from the CRS of the file to {target}", why=source.name[:200], fix=known) from None
    if moved is None:
        raise _invalid(path, "the edges of the polygons are too long to be followed over the globe", fix=_CUT)
    lost = np.flatnonzero(shapely.is_missing(moved))
    if len(lost):
        left, bottom, right, top = Transformer.from_crs(goal, source, always_xy=True).transform_bounds(*bounds)
        near = [(left, right)] if left <= right else [(left, 180.0), (-180.0, right)]
        turns = (-360.0, 0.0, 360.0) if source.is_geographic else (0.0,)  # longitudes may be written from 0 to 360
        boxes = [shapely.box(west + turn, bottom, east + turn, top) for west, east in near for turn in turns]
        for index in lost.tolist():
            if shapely.intersects(shapes[index], boxes).any():
                what = f"{_named(ids, index)} reaches where {target} has no coordinates, or around half the globe"
                raise _invalid(path, what, fix="Cut the polygons to the neighbourhood of the region first (`ogr2ogr -clipsrc`).")
    return _mended(path, moved, ids)[0]


def _named(ids: tuple[str, ...], index: int) -> str:
    return f'polygon "{ids[index]}"'


_CUT = "Cut the file to the neighbourhood of the region, or to fewer polygons."


def _unreadable(path: Path, error: BaseException) -> ConfigError:
    why = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return _invalid(path, "the polygons cannot be read", why=why, fix="Check the file with `ogrinfo`.")


def _invalid(path: Path, what: str, *, why: str = "", fix: str = "") -> ConfigError:
    return ConfigError("zones-invalid", what, where=str(path), why=why, fix=fix)
