"""What a source of documents hands to `search`: untrusted JSON and where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Found:
    """One document as received.

    Parameters
    ----------
    document : parsed JSON, untrusted.
    base : URL or absolute path that relative hrefs start from.
    part : number of the request that gave it: the same item may come once for each part of a region.
    collection : id of the STAC Collection above it, or "".
    """

    document: Any
    base: str
    part: int = 0
    collection: str = ""
