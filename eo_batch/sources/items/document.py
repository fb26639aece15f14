"""One STAC document, made dependable: version 1.1, absolute unsigned hrefs, finite numbers, a time and a place.

Documents come in STAC 0.9 to 1.1 from strangers. What can be mended without guessing is mended here; what cannot makes
the item `Unusable`, with a reason for people.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import numpy as np
import shapely
from pystac.serialization import identify_stac_object, migrate_to_latest
from shapely.geometry import box, mapping, shape

from eo_batch.core.hrefs import without_secrets

MAX_BYTES = 5_000_000
MAX_DEPTH = 64
MAX_ID_CHARACTERS = 1024
KEPT_LINKS = frozenset({"self", "collection", "canonical", "license", "via", "derived_from", "cite-as"})

_GLOBE = box(-180.0, -90.0, 180.0, 90.0)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


class Unusable(Exception):
    """The document cannot serve as an item; `name` says which one, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


def normalise(document: Any, *, base: str, local: bool, collection: str = "") -> dict[str, Any]:
    """A copy of `document` as STAC 1.1 that is safe to store.

    Parameters
    ----------
    document : parsed JSON, untrusted.
    base : URL or absolute path that it was read from; relative hrefs start there.
    local : `base` is a path and hrefs may become paths.
    collection : used where the document names none.

    Raises
    ------
    Unusable : not an item, version below 0.9, too large, no time, no place.
    """
    name = printable(document.get("id")) if isinstance(document, Mapping) else "(not an object)"
    if not isinstance(document, Mapping) or document.get("type") != "Feature":
        raise Unusable(name, "not a STAC item")
    clean = _clean(document, name)
    if not isinstance(clean.get("id"), str) or not 0 < len(clean["id"]) <= MAX_ID_CHARACTERS:
        raise Unusable(name, "no id")
    if not isinstance(clean.get("properties"), dict) or not isinstance(clean.get("assets"), dict):
        raise Unusable(name, "no properties or assets")
    clean["assets"] = {
        key: asset for key, asset in clean["assets"].items() if isinstance(asset, dict) and isinstance(asset.get("href"), str)
    }
    clean["collection"] = clean.get("collection") or clean["properties"].get("collection") or collection
    if not isinstance(clean["collection"], str) or not clean["collection"]:
        raise Unusable(name, "no collection")
    version = str(clean.get("stac_version") or "1.0.0")
    if not re.match(r"(0\.9|1\.[01])(\.|$)", version):
        raise Unusable(name, f"STAC {printable(version)[:20]} is not 0.9 to 1.1")
    clean["stac_version"] = version
    links, extensions = clean.get("links"), clean.get("stac_extensions")
    clean["links"] = [link for link in links if _is_link(link)] if isinstance(links, list) else []
    clean["stac_extensions"] = [text for text in extensions if isinstance(text, str)] if isinstance(extensions, list) else []
    out = _migrate(clean, name)
    start, end = range_of(out)
    stated = {"datetime": instant_of(out), "start_datetime": start, "end_datetime": end}
    out["properties"] |= {key: time_text(stated[key]) for key in stated if out["properties"].get(key)}
    footprint_of(out)
    _absolute(out, base, local=local)
    return out


def instant_of(document: Mapping[str, Any]) -> datetime:
    """Time of an item, UTC: its datetime, or the middle of its range."""
    start, end = range_of(document)
    stated = document["properties"].get("datetime")
    return _time(stated, document) if stated else start + (end - start) / 2


def range_of(document: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """(start, end) of an item, UTC, equal where it states one instant.

    Raises
    ------
    Unusable : neither datetime nor both ends of a range, or a text that is no time.
    """
    properties = document["properties"]
    stated, ends = properties.get("datetime"), (properties.get("start_datetime"), properties.get("end_datetime"))
    if all(ends):
        start, end = _time(ends[0], document), _time(ends[1], document)
        if start > end:
            raise Unusable(printable(document["id"]), "its time range ends before it starts")
        return start, end
    if not stated:
        raise Unusable(printable(document["id"]), "no datetime")
    moment = _time(stated, document)
    return moment, moment


def time_text(moment: datetime) -> str:
    """The one text of a time: RFC 3339, UTC, as many digits as it needs."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def footprint_of(document: Mapping[str, Any]) -> Any:
    """Outline of an item in longitude -180..180 and latitude, as a shapely geometry; split where it crosses longitude 180.

    A geometry is taken to cross when its bbox says so (west > east), or when an edge jumps over more than 180 degrees while all
    vertices lie near longitude 180 (GeoJSON, RFC 7946 3.1.9, asks for a split there; many items are not).

    Raises
    ------
    Unusable : no geometry and no bbox, or numbers that are no coordinates.
    """
    name = printable(document["id"])
    bbox = _bbox(document.get("bbox"), name)
    geometry = document.get("geometry")
    if geometry is None:
        if bbox is None:
            raise Unusable(name, "null geometry and no bbox")
        west, south, east, north = bbox
        return box(*bbox) if west <= east else shapely.union_all([box(west, south, 180, north), box(-180, south, east, north)])
    try:
        outline = shapely.force_2d(shape(geometry))
        coordinates = shapely.get_coordinates(outline)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, shapely.errors.ShapelyError):
        raise Unusable(name, "its geometry cannot be read") from None
    if not len(coordinates) or not np.isfinite(coordinates).all() or np.abs(coordinates[:, 1]).max() > 90.001:
        raise Unusable(name, "its geometry has no usable coordinates")
    if np.abs(coordinates[:, 0]).max() > 540:
        raise Unusable(name, "its geometry has no usable coordinates")
    if _crosses(outline, coordinates, bbox):
        outline = shapely.transform(outline, lambda xy: np.where(xy[:, :1] < 0, xy + np.array([360.0, 0.0]), xy))
    return _on_globe(outline if outline.is_valid else shapely.make_valid(outline))


def bbox_of(document: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """(west, south, east, north) in degrees; west > east crosses longitude 180. The stated box, else that of the outline."""
    bbox = _bbox(document.get("bbox"), printable(document["id"]))
    if bbox is not None:
        return bbox
    outline = footprint_of(document)
    west, south, east, north = outline.bounds
    if west <= -180 and east >= 180 and not outline.intersects(shapely.LineString([(0, -90), (0, 90)])):
        parts = shapely.get_parts(outline)
        lefts = [part.bounds for part in parts if part.bounds[2] <= 0]
        rights = [part.bounds for part in parts if part.bounds[0] >= 0]
        if lefts and rights:
            return min(b[0] for b in rights), south, max(b[2] for b in lefts), north
    return west, south, east, north


def geometry_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """GeoJSON geometry of the outline, split at longitude 180."""
    return dict(mapping(footprint_of(document)))


def printable(value: Any) -> str:
    """`value` as text of at most 100 characters without control characters."""
    text = value if isinstance(value, str) else "(no id)" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text[:100])


def _clean(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A deep copy of JSON values only: text that is UTF-8, numbers that are finite ("nan", "inf", "-inf" otherwise)."""
    left = MAX_BYTES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        kind = type(value)
        left -= 8 + (len(value) if kind is str else 0)
        if left < 0 or depth > MAX_DEPTH:
            raise Unusable(name, "too large" if left < 0 else f"nested deeper than {MAX_DEPTH} levels")
        if kind is str:
            return value if value.isascii() else value.encode("utf-8", "replace").decode()
        if kind is dict:
            return {copy(str(key), depth): copy(inner, depth + 1) for key, inner in value.items()}
        if kind is list:
            return [copy(inner, depth + 1) for inner in value]
        if kind is float:
            return value if math.isfinite(value) else "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
        if value is None or kind is bool or kind is int:
            return value
        return copy(list(value) if isinstance(value, tuple | np.ndarray) else str(value), depth)

    out = copy(dict(document), 0)
    assert isinstance(out, dict)
    return out


def _migrate(document: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = migrate_to_latest(document, identify_stac_object(document))
    except Exception as error:  # pystac has no common base for documents that it cannot read
        raise Unusable(name, f"not a readable STAC item ({type(error).__name__})") from None
    out["stac_version"] = "1.1.0"
    return out


def _time(text: Any, document: Mapping[str, Any]) -> datetime:
    """Time of RFC 3339 text; without a zone it is UTC, as STAC demands."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        raise Unusable(printable(document["id"]), f'"{printable(text)[:40]}" is not a time') from None


def _bbox(bbox: Any, name: str) -> tuple[float, float, float, float] | None:
    if bbox is None:
        return None
    try:
        numbers = [float(number) for number in bbox]
    except (TypeError, ValueError):
        raise Unusable(name, "its bbox holds something else than numbers") from None
    if len(numbers) == 6:
        numbers = [*numbers[:2], *numbers[3:5]]
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers):
        raise Unusable(name, "its bbox is not four finite numbers")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _crosses(outline: Any, coordinates: Any, bbox: tuple[float, float, float, float] | None) -> bool:
    lons = coordinates[:, 0]
    if not (lons.min() < 0 < lons.max()) or outline.geom_type == "Point":
        return False
    steps = np.concatenate(
        [np.abs(np.diff(shapely.get_coordinates(part)[:, 0])) for part in shapely.get_parts(shapely.boundary(outline))]
        or [lons[:0]]
    )
    jumps = bool(((steps > 180) & (steps < 360)).any())
    if bbox is not None and bbox[0] > bbox[2]:
        return jumps
    return jumps and bool(np.abs(lons).min() > 90)


def _on_globe(outline: Any) -> Any:
    west, _, east, _ = outline.bounds
    if west >= -180.0 and east <= 180.0:
        return outline
    shifts = [shift for shift in (-720.0, -360.0, 0.0, 360.0, 720.0) if west + shift < 180 and east + shift > -180]
    return shapely.union_all(
        [shapely.transform(outline, lambda xy, s=shift: xy + np.array([s, 0.0])).intersection(_GLOBE) for shift in shifts]
    )


def _absolute(document: dict[str, Any], base: str, *, local: bool) -> None:
    """Make all hrefs of links and assets absolute and unsigned, in place; links that mean nothing outside of their catalog go."""
    for asset in document["assets"].values():
        asset["href"] = absolute_href(asset["href"], base, local=local)
        alternates = asset.get("alternate")
        for other in alternates.values() if isinstance(alternates, dict) else ():
            if isinstance(other, dict) and isinstance(other.get("href"), str):
                other["href"] = absolute_href(other["href"], base, local=local)
    links = document["links"]
    document["links"] = [
        {**link, "href": absolute_href(link["href"], base, local=local)} for link in links if link.get("rel") in KEPT_LINKS
    ]


def absolute_href(href: str, base: str, *, local: bool) -> str:
    """`href` as seen from `base`, absolute, without secrets; a path where `local`.

    What looks like no address at all (virtual file systems, drive letters, network shares) is left as it is, for the policy
    to refuse.
    """
    text = href.strip()
    if text.startswith(("/vsi", "\\\\", "//")) or _WINDOWS.match(text):
        return text
    if _SCHEME.match(text):
        if local and text.lower().startswith("file://"):
            return url2pathname(urlsplit(text).path)
        return without_secrets(text)
    if local:
        return os.path.normpath(
            os.path.join(os.path.dirname(base), unquote(text) if "%" in text and not _exists(base, text) else text)
        )
    return without_secrets(urljoin(base, text))


def _is_link(link: Any) -> bool:
    return isinstance(link, dict) and isinstance(link.get("href"), str) and isinstance(link.get("rel"), str)


def _exists(base: str, text: str) -> bool:
    return os.path.exists(os.path.join(os.path.dirname(base), text))
