"""What the numbers of a band mean: scale, offset and nodata, resolved for one item and one band.

Stated in STAC 1.1 on the band or the asset (`raster:scale`), before that in `raster:bands`, else in the catalog file.
Where nobody states anything, NaN tells the reader to ask the tags of the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from eo_batch.core.spec import CollectionSpec

BOA_OFFSET = -0.1
"""Sentinel-2 from processing baseline 04.00 on: (number - 1000) / 10000 (SentiWiki, S2 Products, Level-2A)."""
OFFSET_BASELINE = 4.0


def scale_offset_of(
    document: Mapping[str, Any], asset: Mapping[str, Any], index: int, rules: CollectionSpec
) -> tuple[float, float]:
    """(scale, offset), both NaN where neither is stated.

    A stated scale without an offset has offset 0, a stated offset without a scale has scale 1, but for Sentinel-2 with
    `offset_from_baseline`: there the processing baseline gives the offset. `earthsearch:boa_offset_applied = true` means that the
    pixels are shifted already, and overrules a stated -0.1 (maintainers' answer in Element84/earth-search issue 9).

    Raises
    ------
    ValueError : what is stated is no number, or a scale of 0.
    """
    scale = _stated(asset, index, "scale")
    offset = _stated(asset, index, "offset")
    applied = _applied(document["properties"])
    if applied and (offset is None or math.isclose(offset, BOA_OFFSET)):
        offset = 0.0
    if offset is None:
        offset = rules.offset
    if scale is None:
        scale = rules.scale
    if offset is None and rules.offset_from_baseline and not applied:
        offset = BOA_OFFSET if (baseline_of(document) or 0.0) >= OFFSET_BASELINE else None
    if scale is None and offset is None:
        return math.nan, math.nan
    return 1.0 if scale is None else scale, 0.0 if offset is None else offset


def nodata_of(asset: Mapping[str, Any], index: int, rules: CollectionSpec) -> float | None:
    """Number that marks "no observation": band, asset, `raster:bands`, `file:nodata`, catalog file, in this order."""
    older = asset.get("file:nodata")
    values = [*_places(asset, index, "nodata", "nodata"), older[0] if isinstance(older, list) and older else older, rules.nodata]
    return next((number for number in map(_number, values) if number is not None), None)


def baseline_of(document: Mapping[str, Any]) -> float | None:
    """Sentinel-2 processing baseline as a number (5.09), from properties or from names that hold N0509; or None."""
    properties = document["properties"]
    for key in ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"):
        number = _number(properties.get(key))
        if number is not None:
            return number
    for text in (document.get("id"), properties.get("s2:product_uri"), properties.get("sentinel:product_id")):
        found = re.search(r"_N(\d\d)\.?(\d\d)(?:_|$)", text) if isinstance(text, str) else None
        if found:
            return int(found.group(1)) + int(found.group(2)) / 100
    return None


def _applied(properties: Mapping[str, Any]) -> bool:
    return any(properties.get(f"{prefix}:boa_offset_applied") is True for prefix in ("earthsearch", "sentinel"))


def _stated(asset: Mapping[str, Any], index: int, name: str) -> float | None:
    value = next((value for value in _places(asset, index, f"raster:{name}", name) if value is not None), None)
    if value is None:
        return None
    number = _number(value)
    if number is None or (name == "scale" and number == 0):
        raise ValueError(f"its raster:{name} is {json.dumps(value)[:60]}")
    return number if math.isfinite(number) else None


def _places(asset: Mapping[str, Any], index: int, name: str, older: str) -> list[Any]:
    """Values of one field in order of trust: band (1.1), `raster:bands` (1.0), asset (1.1, for all its bands)."""
    return [_at(asset.get("bands"), index).get(name), _at(asset.get("raster:bands"), index).get(older), asset.get(name)]


def _at(entries: Any, index: int) -> Mapping[str, Any]:
    entry = entries[index - 1] if isinstance(entries, list) and len(entries) >= index else None
    return entry if isinstance(entry, dict) else {}


def _number(value: Any) -> float | None:
    """Number of JSON, or of text such as "nan", "-9999"."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
