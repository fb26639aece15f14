"""Which scenes: one complete, sorted, trustworthy list of STAC documents for a region, a period and collections.

Whatever the source (API, static catalog, item collection, stac-geoparquet), its answer is treated as a proposal: every
document is checked again here, so that a server which ignores a filter cannot add a scene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import cql2
from shapely import prepare

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import CatalogError, ConfigError
from eo_batch.core.region import Region
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.http import Http
from eo_batch.sources.items.document import Unusable, footprint_of, instant_of, normalise, range_of
from eo_batch.sources.search.api import read_api
from eo_batch.sources.search.found import Found
from eo_batch.sources.search.static import read_parquet, read_static

Progress = Callable[[int], None]
"""Called with the number of documents received so far."""
MAX_ITEMS = 1_000_000
MAX_NAMED = 20
_APART = ("in another collection", "outside of the region or the period")


@dataclass(frozen=True)
class SearchResult:
    """The answer to a search.

    Parameters
    ----------
    documents : STAC 1.1 dicts, hrefs absolute and unsigned, sorted by (datetime, collection, id), distinct.
    notes : sentences for people: what was dropped, joined or assumed; the same for every order of the answer.
    """

    documents: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()


def search_items(
    spec: PipelineSpec, catalog: CatalogSpec, *, region: Region, progress: Progress | None = None, http: Http | None = None
) -> SearchResult:
    """All items of `spec.source` that touch `region` in its half-open period.

    Parameters
    ----------
    catalog : as found by `find_catalog`.
    region : already padded by what model windows need around it.
    http : how requests are made; for tests.

    Raises
    ------
    CatalogError : `catalog-unreachable`, `catalog-paging`, `catalog-empty`, `item-invalid` (no usable item),
        `item-duplicate`.
    ConfigError : the CQL2 filter cannot be read, or the endpoint is no catalog.
    """
    expression = _expression(spec.source.filter)
    read = {"api": read_api, "static": read_static, "parquet": read_parquet}[catalog.kind]
    found: Iterable[Found] = read(spec, catalog, region=region, http=http)
    sift = _Sift(spec, region, expression)
    for count, one in enumerate(found, 1):
        if count > MAX_ITEMS:
            raise CatalogError(
                "catalog-paging", f"more than {MAX_ITEMS:,} items", where=catalog.title, fix="Ask for a smaller region."
            )
        sift.add(one, local=catalog.local)
        if progress is not None:
            progress(count)
    return sift.result(where=catalog.title)


class _Sift:
    """Checks documents one by one and counts why they were not kept."""

    def __init__(self, spec: PipelineSpec, region: Region, expression: cql2.Expr | None) -> None:
        self.spec, self.region, self.expression = spec, region, expression
        self.geometry = region.geometry
        prepare(self.geometry)
        self.kept: dict[tuple[str, str], tuple[dict[str, Any], set[int]]] = {}
        self.dropped: dict[str, str] = {}
        self.count: Counter[str] = Counter()
        self.received = 0

    def add(self, found: Found, *, local: bool) -> None:
        """Keep the document if it is usable and asked for."""
        self.received += 1
        source = self.spec.source
        try:
            document = normalise(
                found.document, base=found.base, local=local, collection=found.collection or self._only_collection()
            )
            if document["collection"] not in source.collections:
                self.count[_APART[0]] += 1
                return
            if not self._is_inside(document):
                self.count[_APART[1]] += 1
                return
        except Unusable as error:
            self.dropped[error.name] = error.reason
            return
        if self._is_wanted(document):
            self._keep(document, found.part)

    def _only_collection(self) -> str:
        collections = self.spec.source.collections
        return collections[0] if len(collections) == 1 else ""

    def _is_inside(self, document: Mapping[str, Any]) -> bool:
        """Touches the region, and its moment lies in the half-open period; a range must share some time with it."""
        begin, stop = self.region.start, self.region.end
        if document["properties"].get("datetime"):
            inside = begin <= instant_of(document) < stop
        else:
            start, end = range_of(document)
            inside = start < stop and end >= begin
        return inside and bool(self.geometry.intersects(footprint_of(document)))

    def _is_wanted(self, document: Mapping[str, Any]) -> bool:
        limit = self.spec.source.max_cloud_cover
        if limit is not None:
            cover = document["properties"].get("eo:cloud_cover")
            if not isinstance(cover, int | float):
                self.count["no cloud cover"] += 1
            elif cover > limit:
                self.count["too cloudy"] += 1
                return False
        if self.expression is None:
            return True
        try:
            matches = bool(self.expression.matches(dict(document)))
        except Exception:  # cql2 raises plain Exceptions where a property is missing or cannot be compared
            self.count["not comparable"] += 1
            return False
        self.count["filtered"] += not matches
        return matches

    def _keep(self, document: dict[str, Any], part: int) -> None:
        key = (document["collection"], document["id"])
        known = self.kept.get(key)
        if known is None:
            self.kept[key] = (document, {part})
            return
        other, parts = known
        self.count["duplicates"] += part in parts
        if canonical_json(document) != canonical_json(other):
            document = _newest(document, other)
        self.kept[key] = (document, parts | {part})

    def result(self, *, where: str) -> SearchResult:
        """The kept documents in order, or the reason why there are none."""
        documents = sorted((document for document, _ in self.kept.values()), key=sort_key)
        if not documents:
            raise self._empty(where)
        return SearchResult(tuple(documents), tuple(self._notes()))

    def _notes(self) -> list[str]:
        count, source = self.count, self.spec.source
        notes = []
        if count["duplicates"]:
            notes.append(f"{count['duplicates']} duplicate items removed")
        if count["no cloud cover"]:
            notes.append(f"{count['no cloud cover']} items do not state eo:cloud_cover and were kept")
        if count["too cloudy"]:
            notes.append(f"{count['too cloudy']} items have eo:cloud_cover above {source.max_cloud_cover:g}")
        if count["filtered"]:
            notes.append(f"{count['filtered']} items do not match the filter")
        if count["not comparable"]:
            notes.append(f"{count['not comparable']} items lack what the filter asks for and were left out")
        if self.dropped:
            notes.append(f"{len(self.dropped)} items are unusable and were left out: {self._reasons()}")
        return notes

    def _reasons(self) -> str:
        named = [f"{name} ({self.dropped[name]})" for name in sorted(self.dropped)]
        more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        return ", ".join(named[:MAX_NAMED]) + more

    def _empty(self, where: str) -> CatalogError:
        source, period = self.spec.source, self.region
        if self.dropped and not (self.count["too cloudy"] or self.count["filtered"] or self.count["not comparable"]):
            return CatalogError(
                "item-invalid", f"none of {len(self.dropped)} items can be used", where=where, why=self._reasons()
            )
        asked = f"{', '.join(source.collections)}, {period.start:%Y-%m-%d}/{period.end:%Y-%m-%d}"
        asked += f", cloud <= {source.max_cloud_cover:g} %" if source.max_cloud_cover is not None else ""
        asked += f', filter "{source.filter}"' if source.filter else ""
        apart = [f"{self.count[reason]} of them {reason}" for reason in _APART if self.count[reason]]
        why = "; ".join([f"{self.received} items were received", *apart, *self._notes()]) if self.received else ""
        fix = "Check collections, dates and region" + (", or allow more cloud." if self.count["too cloudy"] else ".")
        return CatalogError("catalog-empty", f"0 items for {asked}", where=where, why=why, fix=fix)


def sort_key(document: Mapping[str, Any]) -> tuple[datetime, str, str]:
    """(datetime, collection, id): the one order of items."""
    return instant_of(document), document["collection"], document["id"]


def _newest(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The copy with the later `updated`.

    Raises
    ------
    CatalogError : `item-duplicate` when none is newer.
    """
    times = [str(document["properties"].get("updated") or "") for document in (one, other)]
    if times[0] == times[1]:
        raise CatalogError(
            "item-duplicate",
            "the catalog holds two different copies and neither is newer",
            where=f"item {one['collection']}/{one['id']}",
            fix="Ask the keeper of the catalog, or leave the item out with a filter.",
        )
    return one if times[0] > times[1] else other


def _expression(text: str | None) -> cql2.Expr | None:
    if not text:
        return None
    try:
        expression = cql2.parse_text(text)
        expression.validate()
    except Exception as error:  # cql2 raises its own and plain exceptions for text it cannot read
        raise ConfigError(
            "config-invalid", "the filter is not CQL2 text", where="source.filter", why=str(error).splitlines()[0][:300]
        ) from None
    return expression
