"""Search without a server: static catalogs are walked, item collections and stac-geoparquet are read.

Only what is cheap to know is left out here (other collections, boxes and times apart from what is asked); `search` checks
every document again.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import requests

from eo_batch.core.errors import CatalogError, ConfigError, PolicyError
from eo_batch.core.hrefs import HrefPolicy, redact
from eo_batch.core.region import Region
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.access import guard_address
from eo_batch.sources.http import Http
from eo_batch.sources.items.document import absolute_href
from eo_batch.sources.items.parquet import items_from_table
from eo_batch.sources.search.found import Found

MAX_DOCUMENTS = 2_000_000
MAX_DEPTH = 64
MAX_FILE_BYTES = 2_000_000_000
READERS = 8


def read_static(spec: PipelineSpec, catalog: CatalogSpec, *, region: Region, http: Http | None = None) -> Iterator[Found]:
    """Documents of a static catalog, an item collection or a single item, in the order of the links.

    Raises
    ------
    CatalogError : `catalog-unreachable`: a file of the catalog cannot be read.
    PolicyError : a link leads out of the catalog.
    ConfigError : `config-invalid`: the root is no STAC document.
    """
    reader = _Documents(catalog, http)
    root = reader.read(catalog.url)
    kind = root.get("type") if isinstance(root, dict) else None
    if isinstance(root, list) or kind in ("Feature", "FeatureCollection"):
        features = root if isinstance(root, list) else root.get("features") if kind == "FeatureCollection" else [root]
        if not isinstance(features, list):
            raise ConfigError("config-invalid", "an item collection without a list of features", where=redact(catalog.url))
        _refuse_page(root, catalog)
        yield from (Found(feature, catalog.url) for feature in features)
        return
    if not isinstance(root, dict) or not isinstance(root.get("links"), list):
        fix = "Give the address of a catalog.json, of an item collection or of an API."
        raise ConfigError("config-invalid", "not a STAC catalog, item collection or item", where=redact(catalog.url), fix=fix)
    yield from _walk(root, reader, set(spec.source.collections))


def read_parquet(spec: PipelineSpec, catalog: CatalogSpec, *, region: Region, http: Http | None = None) -> Iterator[Found]:
    """Documents of a stac-geoparquet file whose box and time touch the region and the period.

    Raises
    ------
    CatalogError : `catalog-unreachable`: the file cannot be read.
    """
    try:
        if "://" in catalog.url:
            source: Any = io.BytesIO(_Documents(catalog, http).http.get_bytes(catalog.url))
        else:
            source = _confined(catalog.url, HrefPolicy.of(catalog))
        file = pq.ParquetFile(source)
        table = pq.read_table(
            file.reader if hasattr(source, "seek") else source, filters=_filter(file.schema_arrow, spec, region)
        )
    except (OSError, ValueError, pa.ArrowException, requests.RequestException) as error:
        raise _unreadable(catalog.url, error) from None
    for document in items_from_table(table):
        yield Found(document, catalog.url)


@dataclass
class _Documents:
    """Reads JSON documents of one catalog by address, within its policy."""

    catalog: CatalogSpec
    given: Http | None = None
    policy: HrefPolicy = field(init=False)
    http: Http = field(init=False)

    def __post_init__(self) -> None:
        self.policy = HrefPolicy.of(self.catalog)
        self.http = self.given or Http()
        self.http.guard = self._guard

    def _guard(self, url: str) -> None:
        guard_address(url, self.policy)

    def read(self, url: str) -> Any:
        try:
            if "://" in url:
                return self.http.get_json(url).document
            path = _confined(url, self.policy)
            if os.path.getsize(path) > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
            return json.loads(Path(path).read_bytes())
        except (OSError, ValueError, RecursionError, requests.RequestException) as error:
            raise _unreadable(url, error) from None


def _walk(root: dict[str, Any], reader: _Documents, wanted: set[str]) -> Iterator[Found]:
    """All items below `root`, catalogs before their children, each address read once."""
    start = reader.catalog.url
    local = "://" not in start
    seen = {start}
    stack: list[tuple[str, dict[str, Any] | None, str, int]] = [(start, root, "", 0)]
    with ThreadPoolExecutor(READERS) as pool:
        while stack:
            url, document, above, depth = stack.pop()
            document = reader.read(url) if document is None else document
            if not isinstance(document, dict) or depth > MAX_DEPTH:
                raise _unreadable(url, ValueError("not a catalog" if depth <= MAX_DEPTH else f"deeper than {MAX_DEPTH} levels"))
            collection = str(document.get("id", "")) if _is_collection(document) else above
            stated = document.get("links")
            if not isinstance(stated, list):
                raise _unreadable(url, ValueError("not a catalog: it has no list of links"))
            links = [link for link in stated if isinstance(link, dict) and isinstance(link.get("href"), str)]
            targets = [(str(link.get("rel")), absolute_href(link["href"], url, local=local)) for link in links]
            if not collection or collection in wanted:
                items = [target for rel, target in targets if rel == "item" and target not in seen]
                seen.update(items)
                for target, item in zip(items, pool.map(reader.read, items), strict=True):
                    yield Found(item, target, collection=collection)
            children = [target for rel, target in targets if rel == "child" and target not in seen]
            seen.update(children)
            if len(seen) > MAX_DOCUMENTS:
                raise CatalogError("catalog-paging", f"more than {MAX_DOCUMENTS:,} documents", where=reader.catalog.title)
            stack.extend((target, None, collection, depth + 1) for target in reversed(children))


def _refuse_page(root: Any, catalog: CatalogSpec) -> None:
    """A saved answer of an API that names a next page is not all there is."""
    links = root.get("links") if isinstance(root, dict) else None
    if isinstance(links, list) and any(isinstance(link, dict) and link.get("rel") == "next" for link in links):
        raise CatalogError(
            "catalog-paging",
            "the file is one page of a longer answer",
            where=redact(catalog.url),
            fix="Give the address of the API, or save all pages in one item collection without a next link.",
        )


def _is_collection(document: dict[str, Any]) -> bool:
    return document.get("type") == "Collection" or ("type" not in document and "extent" in document)


def _confined(path: str, policy: HrefPolicy) -> str:
    """Real path of a local document, inside of the root of its catalog."""
    real = os.path.realpath(policy.check(path))
    root = os.path.realpath(policy.root)
    if os.path.commonpath([real, root]) != root:
        raise PolicyError("path-escape", f'a link leads out of "{root}"', where=f'file "{path}"')
    return real


def _filter(schema: pa.Schema, spec: PipelineSpec, region: Region) -> pc.Expression | None:
    """What the columns can tell: collection, box and time; null stays in, so that nothing is lost."""
    expression = pc.scalar(True)
    names = set(schema.names)
    if "collection" in names:
        expression &= pc.field("collection").isin(spec.source.collections) | pc.field("collection").is_null()
    if "bbox" in names and pa.types.is_struct(schema.field("bbox").type):
        fields = {field.name for field in schema.field("bbox").type}
        if {"xmin", "ymin", "xmax", "ymax"} <= fields:
            expression &= _touches(region)
    if "datetime" in names and pa.types.is_timestamp(schema.field("datetime").type):
        kind = schema.field("datetime").type
        zone = None if kind.tz is None else region.start.tzinfo
        start, end = (pa.scalar(moment.replace(tzinfo=zone), kind) for moment in (region.start, region.end))
        expression &= ((pc.field("datetime") >= start) & (pc.field("datetime") < end)) | pc.field("datetime").is_null()
    return expression


def _touches(region: Region) -> pc.Expression:
    west, south, east, north = (pc.field("bbox", name) for name in ("xmin", "ymin", "xmax", "ymax"))
    any_part = pc.scalar(False)
    for part in region.parts:
        left, bottom, right, top = part.bounds
        across = (west <= right) & (east >= left)
        any_part |= (across | (west > east)) & (south <= top) & (north >= bottom)
    return any_part | west.is_null() | (pc.is_nan(west))


def _unreadable(url: str, error: Exception) -> CatalogError:
    why = redact(error) if not isinstance(error, json.JSONDecodeError) else "not JSON"
    if isinstance(error, FileNotFoundError):
        why = "no such file"
    if isinstance(error, RecursionError):
        why = "nested too deeply"
    return CatalogError(
        "catalog-unreachable",
        "the catalog cannot be read",
        where=redact(url),
        why=why[:300],
        fix="Check the catalog and the network.",
    )
