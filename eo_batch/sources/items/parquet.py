"""The frozen search result as stac-geoparquet, and stac-geoparquet of others as documents.

Arrow columns cannot hold every STAC document without loss (1 and 1.0, nulls, properties whose type differs between items),
so a file of ours carries each document once more as JSON text. Other tools read the columns, a run reads the text.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stac_geoparquet.arrow import parse_stac_items_to_arrow, stac_table_to_items, to_parquet

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import CatalogError
from eo_batch.core.records import ItemTable
from eo_batch.sources.items.document import bbox_of, geometry_of, instant_of, range_of, time_text

DOCUMENT = "eobatch:document"
"""Column with the document itself, as canonical JSON."""

_PLAIN = ("platform", "constellation", "proj:code", "s2:processing_baseline")
_NUMBERS = ("eo:cloud_cover", "gsd")


def items_to_parquet(table: ItemTable) -> bytes:
    """`items.parquet` of a run; the same bytes for the same table and library versions.

    Parameters
    ----------
    table : at least one item.
    """
    documents = list(table.documents)
    try:
        return _written([_for_columns(document) for document in documents], documents)
    except (pa.ArrowException, ValueError, TypeError, KeyError):
        # properties of another type in each item, or empty objects: columns for what every reader of STAC needs
        return _written([_slim(document) for document in documents], documents)


def items_from_parquet(data: bytes) -> tuple[dict[str, Any], ...]:
    """Documents of a stac-geoparquet file, ours (exactly as written) or another's (without null properties).

    Raises
    ------
    CatalogError : `catalog-unreachable`: not stac-geoparquet.
    """
    try:
        return tuple(items_from_table(pq.read_table(io.BytesIO(data))))
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
        raise CatalogError("catalog-unreachable", "not a stac-geoparquet file", why=str(error)[:200]) from None


def items_from_table(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Documents of the rows of a stac-geoparquet table."""
    if DOCUMENT in table.schema.names:
        for text in table.column(DOCUMENT).to_pylist():
            yield json.loads(text)
        return
    for document in stac_table_to_items(table):
        yield _without_nulls(document)


def _written(columns: Sequence[Mapping[str, Any]], documents: Sequence[Mapping[str, Any]]) -> bytes:
    arrow = parse_stac_items_to_arrow([dict(column) for column in columns]).read_all()
    text = pa.array([canonical_json(document).decode() for document in documents], pa.string())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.parquet"
        to_parquet(arrow.append_column(DOCUMENT, text), path, compression="zstd")
        return path.read_bytes()


def _for_columns(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with a geometry, a box and times that columns can hold."""
    properties = {key: value for key, value in document["properties"].items() if key not in document}
    properties["datetime"] = time_text(instant_of(document)) if properties.get("datetime") else None
    if properties.get("start_datetime") and properties.get("end_datetime"):
        properties["start_datetime"], properties["end_datetime"] = map(time_text, range_of(document))
    outline = document.get("geometry") or geometry_of(document)
    return {**document, "properties": properties, "geometry": outline, "bbox": list(bbox_of(document))}


def _slim(document: Mapping[str, Any]) -> dict[str, Any]:
    stated = document["properties"]
    start, end = range_of(document)
    properties: dict[str, Any] = {
        "datetime": time_text(instant_of(document)),
        "start_datetime": time_text(start),
        "end_datetime": time_text(end),
    }
    properties |= {key: stated[key] for key in _PLAIN if isinstance(stated.get(key), str)}
    properties |= {key: float(stated[key]) for key in _NUMBERS if isinstance(stated.get(key), int | float)}
    assets = {key: _slim_asset(asset) for key, asset in document["assets"].items()}
    top = {key: document[key] for key in ("type", "stac_version", "id", "collection")}
    place = {"geometry": geometry_of(document), "bbox": list(bbox_of(document))}
    return {**top, **place, "stac_extensions": [], "links": [], "properties": properties, "assets": assets}


def _slim_asset(asset: Mapping[str, Any]) -> dict[str, Any]:
    roles = asset.get("roles")
    out: dict[str, Any] = {key: asset[key] for key in ("href", "type", "title") if isinstance(asset.get(key), str)}
    out["roles"] = [role for role in roles if isinstance(role, str)] if isinstance(roles, list) else []
    return out


def _without_nulls(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without the nulls that columns add where another row has a value."""

    def dropped(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: dropped(inner) for key, inner in value.items() if inner is not None}
        return [dropped(inner) for inner in value] if isinstance(value, list) else value

    out = {key: dropped(value) for key, value in document.items()}
    out.setdefault("links", [])
    out.setdefault("assets", {})
    properties = dict(out.get("properties") or {})
    properties.setdefault("datetime", None)
    out["properties"] = properties
    return out
