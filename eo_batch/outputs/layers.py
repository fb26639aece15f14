"""Layers made from a finished run, below `RUN/products/`: boxes of objects, and figures of zones, as GeoParquet 1.1.

Written through the store, file by file, without a time of creation: the same run and rules give the same bytes. Each file
says in its metadata (key `eo-batch`) which run and which rules it was made from; `COMPLETE.json` knows nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pyproj import CRS

from eo_batch.core.grid import Grid
from eo_batch.core.prompts import Prompt
from eo_batch.core.records import TimeStep
from eo_batch.outputs.areas import PixelAreas
from eo_batch.outputs.geoparquet import ROW_GROUP
from eo_batch.outputs.objects import Objects
from eo_batch.outputs.store import Store
from eo_batch.outputs.times import microseconds

PRODUCTS = "products"
BOXES, ZONES, ZONES_CSV = f"{PRODUCTS}/boxes.parquet", f"{PRODUCTS}/zones.parquet", f"{PRODUCTS}/zones.csv"
NOTES = b"eo-batch"
"""Key of the Parquet metadata that holds what a layer was made from, as JSON."""

_TIME = pa.timestamp("us", tz="UTC")
_BBOX = pa.struct([pa.field(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])


def _field(name: str, kind: pa.DataType, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable)


BOX_SCHEMA = pa.schema(
    [
        _field("id", pa.string()),
        _field("prompt", pa.string()),
        _field("prompt_id", pa.string()),
        _field("step", pa.string()),
        _field("time", _TIME),
        _field("score", pa.float64()),
        _field("score_max", pa.float64()),
        _field("pixels", pa.int64()),
        _field("area_m2", pa.float64()),
        _field("footprints", pa.int64()),
        _field("touches_region_edge", pa.bool_()),
        _field("oriented", pa.bool_()),
        _field("angle", pa.float64()),
        _field("length", pa.float64()),
        _field("width", pa.float64()),
        _field("geometry", pa.binary()),
        _field("bbox", _BBOX),
    ]
)
"""Columns of `boxes.parquet`; meanings in docs/reference/outputs.md."""

ZONE_SCHEMA = pa.schema(
    [
        _field("zone", pa.string()),
        _field("step", pa.string()),
        _field("time", _TIME),
        _field("prompt", pa.string()),
        _field("prompt_id", pa.string()),
        _field("count", pa.int64()),
        _field("pixels", pa.int64()),
        _field("observed_pixels", pa.int64()),
        _field("observed_share", pa.float64()),
        _field("observed_m2", pa.float64()),
        _field("covered_pixels", pa.int64()),
        _field("covered_m2", pa.float64()),
        _field("covered_share", pa.float64(), nullable=True),
        _field("score_mean", pa.float64(), nullable=True),
        _field("score_max", pa.float64(), nullable=True),
        _field("presence", pa.float64(), nullable=True),
        _field("presence_from", pa.string()),
        _field("present", pa.bool_(), nullable=True),
        _field("class", pa.string(), nullable=True),
        _field("caption", pa.string(), nullable=True),
        _field("geometry", pa.binary(), nullable=True),
        _field("bbox", _BBOX, nullable=True),
    ]
)
"""Columns of `zones.parquet`, one row per zone, time step and prompt; meanings in docs/reference/outputs.md."""


@dataclass(frozen=True)
class Sheet:
    """What a row of a layer belongs to: a prompt at a time step of a run on a grid."""

    grid: Grid
    prompt: Prompt
    step: TimeStep


class LayerWriter:
    """Rows of one layer, `ROW_GROUP` to a row group; opened by `open_layer`.

    Attributes
    ----------
    rows : rows written so far.
    """

    def __init__(self, parquet: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._parquet, self._schema = parquet, schema
        self._waiting: list[pa.Table] = []
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._kinds: set[str] = set()
        self.rows = 0

    def write(self, table: pa.Table, *, kinds: Sequence[str] = ("Polygon",)) -> None:
        """Append rows with the schema of the layer, whose geometries are of `kinds`."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self._kinds.update(kinds)
        box = table["bbox"].combine_chunks()
        corners = [box.field(name).to_numpy(zero_copy_only=False) for name in ("xmin", "ymin", "xmax", "ymax")]
        if not np.isnan(corners[0]).all():
            self._bounds[:2] = np.fmin(self._bounds[:2], [np.nanmin(corners[0]), np.nanmin(corners[1])])
            self._bounds[2:] = np.fmax(self._bounds[2:], [np.nanmax(corners[2]), np.nanmax(corners[3])])
        self._waiting.append(table)
        self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        waiting = sum(table.num_rows for table in self._waiting)
        if waiting < ROW_GROUP and not everything:
            return
        table = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        stop = waiting if everything else waiting - waiting % ROW_GROUP
        for start in range(0, stop, ROW_GROUP):
            group = table.slice(start, min(ROW_GROUP, stop - start)).combine_chunks()
            self._parquet.write_table(group, row_group_size=ROW_GROUP)
        self._waiting = [table.slice(stop)] if stop < waiting else []

    def finish(self, crs: str, notes: Mapping[str, Any]) -> None:
        """Write what waits, and the metadata."""
        self._flush(everything=True)
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(self._kinds),
            "crs": CRS.from_user_input(crs).to_json_dict(),
            "edges": "planar",
            "covering": {"bbox": {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}},
        }
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        said = json.dumps(notes, sort_keys=True, allow_nan=False)
        self._parquet.add_key_value_metadata({"geo": json.dumps(geo), NOTES.decode(): said})


@contextmanager
def open_layer(
    store: Store, path: str, schema: pa.Schema, *, crs: str, notes: Mapping[str, Any], dictionary: Sequence[str]
) -> Iterator[LayerWriter]:
    """Writer of the layer `path`, which appears when the block ends without an error.

    Parameters
    ----------
    crs : of the geometries.
    notes : JSON values: what the layer was made from.
    dictionary : columns with few distinct values.
    """
    with (
        store.writer(path) as target,
        pq.ParquetWriter(
            target,
            schema,
            compression="zstd",
            store_schema=False,  # so that readers in Arrow see the key `geo`, which is complete only at the end
            use_dictionary=list(dictionary),
            dictionary_pagesize_limit=64 << 20,
            write_statistics=[name for name in _leaves(schema) if name not in ("geometry", "caption")],
        ) as parquet,
    ):
        writer = LayerWriter(parquet, schema)
        yield writer
        writer.finish(crs, notes)


def read_notes(store: Store, path: str) -> dict[str, Any] | None:
    """What the layer `path` was made from, or None where there is no such layer or it does not say."""
    if not store.exists(path):
        return None
    with store.open(path) as file:
        metadata = pq.read_metadata(file).metadata or {}
    notes = json.loads(metadata.get(NOTES, b"null"))
    return notes if isinstance(notes, dict) else None


def box_table(objects: Objects, sheet: Sheet, *, rectangles: NDArray[np.float64] | None) -> pa.Table:
    """Rows of `boxes.parquet`.

    Parameters
    ----------
    rectangles : float64 (object, 4, 2), corners (x, y) of rotated rectangles in absolute pixels, clockwise on the screen;
        None for horizontal boxes.
    """
    count, resolution = len(objects), sheet.grid.resolution
    corners = _upright(objects.bounds) if rectangles is None else rectangles
    xy = corners * np.array([resolution, -resolution])
    angle, length, width = _shape_of(xy)
    low, high = xy.min(axis=1), xy.max(axis=1)
    # Clockwise on the screen is clockwise on the map; GeoParquet advises shells the other way round.
    shapes = shapely.polygons(xy[:, ::-1])
    columns = {
        "id": [f"{sheet.prompt.id}-{sheet.step.label}-r{row}c{col}" for col, row in objects.first.tolist()],
        **_sheet_columns(sheet, count),
        "score": objects.scores,
        "score_max": _scores(objects.score_max),
        "pixels": objects.pixels,
        "area_m2": objects.area_units * PixelAreas(sheet.grid).unit_m2,
        "footprints": objects.footprints,
        "touches_region_edge": objects.touches_region_edge,
        "oriented": np.full(count, rectangles is not None),
        "angle": angle,
        "length": length,
        "width": width,
        "geometry": shapely.to_wkb(shapes, byte_order=1),
        "bbox": _bbox_column(np.concatenate([low, high], axis=1)),
    }
    return _table(columns, BOX_SCHEMA)


def zone_table(columns: Mapping[str, Any], shapes: NDArray[np.object_]) -> tuple[pa.Table, list[str]]:
    """Rows of `zones.parquet` and the kinds of their geometries.

    Parameters
    ----------
    columns : everything but geometry and bbox; NaN and None are null.
    shapes : shapely geometry, or None, of each row.
    """
    missing = shapely.is_missing(shapes)
    kinds = [name for kind, name in ((3, "Polygon"), (6, "MultiPolygon")) if (shapely.get_type_id(shapes) == kind).any()]
    full = {
        **columns,
        "geometry": shapely.to_wkb(shapes, byte_order=1),
        "bbox": _bbox_column(shapely.bounds(shapes), mask=missing),
    }
    return _table(full, ZONE_SCHEMA), kinds


@contextmanager
def open_csv(store: Store, path: str) -> Iterator[csv.CSVWriter]:
    """Writer of the rows of zones without their geometry, as CSV in UTF-8."""
    flat = pa.schema([field for field in ZONE_SCHEMA if field.name not in ("geometry", "bbox")])
    with store.writer(path) as target, csv.CSVWriter(target, flat) as writer:
        yield writer


def _table(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    arrays = [
        value if isinstance(value := columns[field.name], pa.Array) else pa.array(value, field.type, from_pandas=field.nullable)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _sheet_columns(sheet: Sheet, count: int) -> dict[str, Any]:
    return {
        "prompt": pa.repeat(sheet.prompt.text, count),
        "prompt_id": pa.repeat(sheet.prompt.id, count),
        "step": pa.repeat(sheet.step.label, count),
        "time": pa.array(np.full(count, microseconds(sheet.step.start))).cast(_TIME),
    }


def _scores(stored: NDArray[np.uint8]) -> NDArray[np.float64]:
    from eo_batch.core.arrays import SCORE_STEPS

    return stored / float(SCORE_STEPS)


def _upright(bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Corners of horizontal boxes, float64 (n, 4, 2), clockwise on the screen from the upper left one."""
    x0, y0, x1, y1 = bounds.T.astype(np.float64)
    return np.stack([np.stack(corner, axis=1) for corner in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))], axis=1)


def _shape_of(xy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Angle of the longer side in degrees, counterclockwise from the x axis, 0 <= angle < 180; length; width, in CRS units."""
    one, other = xy[:, 1] - xy[:, 0], xy[:, 2] - xy[:, 1]
    first, second = np.hypot(*one.T), np.hypot(*other.T)
    along = np.where((first >= second)[:, None], one, other)
    angle = np.degrees(np.arctan2(along[:, 1], along[:, 0])) % 180.0
    return np.where(angle == 180.0, 0.0, angle), np.maximum(first, second), np.minimum(first, second)


def _bbox_column(bounds: NDArray[np.float64], *, mask: NDArray[np.bool_] | None = None) -> pa.StructArray:
    arrays = [pa.array(bounds[:, side], pa.float64(), from_pandas=True) for side in range(4)]
    return pa.StructArray.from_arrays(arrays, fields=list(_BBOX), mask=None if mask is None else pa.array(mask))


def _leaves(schema: pa.Schema) -> list[str]:
    """Names of the Parquet columns of a layer."""
    return [field.name for field in schema if field.name != "bbox"] + [f"bbox.{field.name}" for field in _BBOX]
