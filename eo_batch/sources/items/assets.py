"""Where a band can be in an item: all assets that carry it, the best first."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_BANDS = 64
_NOT_PIXELS = frozenset({"thumbnail", "overview", "preview", "labels", "metadata", "tiles", "tilejson", "archive"})
_PICTURE = re.compile(r"(?i)(^|[^a-z])(visual|tci|true.?colou?r|rendered|preview|thumbnail|overview|browse|quicklook)")
_GSD_SUFFIX = re.compile(r"(?:^|[_:-])(\d+)m$")


@dataclass(frozen=True, order=True)
class Candidate:
    """One place of a band; the smallest in order of the fields is the best.

    Parameters
    ----------
    match : 0 the common name is the band, 1 the name is, 2 the name is in another case.
    media : 0 GeoTIFF, 1 unknown, 2 JPEG 2000.
    gsd : metres; infinite where not stated.
    shared : the asset holds other bands as well.
    key, index : asset and band number from 1.
    """

    match: int
    media: int
    gsd: float
    shared: bool
    key: str
    index: int

    @classmethod
    def plain(cls, key: str, index: int = 1) -> Candidate:
        """A place that somebody has named."""
        return cls(0, 0, 0.0, False, key, index)


def candidates(document: Mapping[str, Any], band: str, *, every_asset: bool = False) -> list[Candidate]:
    """Places of `band`, in no order.

    Pictures for the eye (true colour, previews) hold "red" too, stretched to 8 bit: they count only where an item has
    nothing else that names bands (aerial images often have the role "visual" beside "data").

    Parameters
    ----------
    every_asset : take pictures, labels and previews like any other asset.
    """
    named = [(key, asset, entries) for key, asset, entries in _described(document) if every_asset or is_raster(asset)]
    pixels = [entry for entry in named if every_asset or not is_picture(entry[0], entry[1])]
    found = []
    for key, asset, entries in pixels or named:
        media = _media(asset)
        for index, entry in enumerate(entries, 1):
            match = _match(entry, band)
            if match is not None:
                found.append(Candidate(match, media, _gsd(key, asset, entry, index), len(entries) > 1, key, index))
    return found


def names_of(document: Mapping[str, Any]) -> Iterator[str]:
    """Names by which bands of an item can be asked for."""
    described = set()
    for key, asset, entries in _described(document):
        if is_raster(asset):
            described.add(key)
            yield from (str(entry.get("eo:common_name") or entry.get("name")) for entry in entries if _names(entry))
    yield from (
        key
        for key, asset in document["assets"].items()
        if key not in described and is_raster(asset) and not is_picture(key, asset)
    )


def is_raster(asset: Mapping[str, Any]) -> bool:
    """True for what may hold pixels: by role, media type, and the ending of the file where there is no type."""
    roles = _roles(asset)
    if "data" not in roles and roles & _NOT_PIXELS:
        return False
    if {"labels", "metadata", "archive"} & roles:
        return False
    kind = str(asset.get("type") or "").split(";")[0].strip().lower()
    if kind:
        return kind in ("image/tiff", "image/x.geotiff", "image/geotiff", "image/jp2", "image/jpx") or "geotiff" in kind
    ending = urlsplit(asset["href"]).path.rpartition("/")[2].rpartition(".")[2].lower()
    return ending in ("tif", "tiff", "gtiff", "jp2", "j2k")


def is_picture(key: str, asset: Mapping[str, Any]) -> bool:
    """True for renderings made for the eye."""
    roles = _roles(asset)
    return (
        bool(_PICTURE.search(key)) or ("visual" in roles and not _PICTURE.search(key)) or bool(roles & {"overview", "thumbnail"})
    )


def _roles(asset: Mapping[str, Any]) -> set[str]:
    roles = asset.get("roles")
    return {role.lower() for role in roles if isinstance(role, str)} if isinstance(roles, list) else set()


def _described(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], list[dict[str, Any]]]]:
    """(key, asset, its band objects with STAC 1.1 names) of assets that describe their bands."""
    library = _library(document["properties"])
    for key in sorted(document["assets"]):
        asset = document["assets"][key]
        entries = [_entry(raw, library) for raw in _list(asset.get("bands"))]
        older = [_entry(raw, library) for raw in _list(asset.get("eo:bands"))]
        if older and (len(older) == len(entries) or not entries):
            entries = [{**old, **new} for old, new in zip(older, entries or [{}] * len(older), strict=True)]
        if entries:
            yield key, asset, entries


def _library(properties: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Band objects of the item itself, by position and by name: assets of older items only point to them."""
    out: dict[Any, dict[str, Any]] = {}
    for field in ("eo:bands", "bands"):
        for position, raw in enumerate(_list(properties.get(field))):
            if isinstance(raw, dict):
                entry = _entry(raw, {})
                out[position] = entry
                if isinstance(entry.get("name"), str):
                    out[entry["name"]] = entry
    return out


def _entry(raw: Any, library: Mapping[Any, dict[str, Any]]) -> dict[str, Any]:
    if isinstance(raw, dict):
        entry = {**library.get(raw.get("name"), {}), **raw} if isinstance(raw.get("name"), str) else dict(raw)
        if "eo:common_name" not in entry and "common_name" in entry:
            entry["eo:common_name"] = entry["common_name"]
        return entry
    if isinstance(raw, int | str) and not isinstance(raw, bool):
        return dict(library.get(raw, {"name": raw} if isinstance(raw, str) else {}))
    return {}


def _list(value: Any) -> list[Any]:
    return value[:MAX_BANDS] if isinstance(value, list) else []


def _names(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("eo:common_name"), str) or isinstance(entry.get("name"), str)


def _match(entry: Mapping[str, Any], band: str) -> int | None:
    common, name = entry.get("eo:common_name"), entry.get("name")
    if common == band:
        return 0
    if not isinstance(name, str):
        return None
    if name == band:
        return 1
    return 2 if common is None and name.casefold() == band.casefold() else None


def _media(asset: Mapping[str, Any]) -> int:
    kind = str(asset.get("type") or urlsplit(asset["href"]).path[-6:]).lower()
    if "jp2" in kind or "jpx" in kind or "j2k" in kind:
        return 2
    return 0 if "tif" in kind else 1


def _gsd(key: str, asset: Mapping[str, Any], entry: Mapping[str, Any], index: int) -> float:
    """Metres between pixels, from whatever states it."""
    raster = _list(asset.get("raster:bands"))
    stated = [
        entry.get("gsd"),
        raster[index - 1].get("spatial_resolution") if index <= len(raster) and isinstance(raster[index - 1], dict) else None,
    ]
    stated += [asset.get("gsd"), entry.get("raster:spatial_resolution"), asset.get("raster:spatial_resolution")]
    for number in stated:
        if isinstance(number, int | float) and number > 0:
            return float(number)
    for text in (key, *sorted(_roles(asset))):
        found = _GSD_SUFFIX.search(text)
        if found:
            return float(found.group(1))
    transform = asset.get("proj:transform")
    if isinstance(transform, list) and transform and isinstance(transform[0], int | float) and transform[0]:
        return abs(float(transform[0]))
    return math.inf
