"""What the rooms hand to each other: items and their bands, time steps, scenes, receipts, the manifest.

Plain frozen values. Nothing here reads a file, a clock or the network.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.grid import Chunk

FORMAT = 2
"""Layout of the run directory. A newer one is refused, an older one is read only."""
ALGORITHM = 2
"""Number of the rules that decide bytes (lattice, filling, blending, resampling, tracing). No run of another number resumes."""


@dataclass(frozen=True)
class BandAsset:
    """Where the pixels of one band of one item are, and what their numbers mean.

    Parameters
    ----------
    band : common name as the pipeline asks for it.
    href : unsigned address of the file.
    index : band number in the file, from 1.
    scale, offset : physical value = number * scale + offset; resolved for this item and band. Both NaN where the metadata
        state neither: then the tags of the file decide (1 and 0 where it has none).
    nodata : number that marks "no observation" (may be NaN), or None where the metadata state none: then the tag of the file.
    checksum : multihash of the file (`file:checksum`), or "".
    """

    band: str
    href: str
    index: int = 1
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    checksum: str = ""


@dataclass(frozen=True)
class CloudMask:
    """Asset whose pixel values say which observations to drop.

    kind "classes": values listed in `drop` are dropped (Sentinel-2 SCL); "bits": a pixel with any of the bit numbers
    in `drop` set is dropped (Landsat QA_PIXEL). Read with nearest neighbour, never scaled.
    """

    asset: BandAsset
    kind: Literal["classes", "bits"]
    drop: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One STAC item, resolved for a run.

    Parameters
    ----------
    collection, id : as in STAC.
    datetime, start, end : UTC; `datetime` is the middle of the range where STAC gives only a range.
    bbox : (west, south, east, north) in degrees; west > east crosses the antimeridian.
    geometry : GeoJSON geometry in longitude and latitude.
    bands : band -> BandAsset, in the order of the pipeline.
    cloud_mask : None where the item has none or the pipeline wants none.
    rank : expected share of valid pixels, for composite "best" (higher is better).
    """

    collection: str
    id: str
    datetime: dt.datetime
    start: dt.datetime
    end: dt.datetime
    bbox: tuple[float, float, float, float]
    geometry: Mapping[str, Any]
    bands: Mapping[str, BandAsset]
    cloud_mask: CloudMask | None = None
    rank: float = 0.0

    @property
    def key(self) -> str:
        """`collection/id`: unique in an item table. Never used as a path."""
        return f"{self.collection}/{self.id}"


@dataclass(frozen=True)
class ItemTable:
    """The frozen search result: items sorted by (datetime, collection, id), and the STAC documents they came from.

    `documents[i]` is the STAC 1.1 dict of `items[i]`, hrefs unsigned; the digest is over the documents.
    """

    items: tuple[Item, ...]
    documents: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def digest(self) -> str:
        """Digest of the documents, in order."""
        return digest(list(self.documents))


@dataclass(frozen=True)
class TimeStep:
    """One layer of the result along time: items that are composed into one scene.

    Parameters
    ----------
    index : position on the time axis.
    label : "2019-06-07", "2019-06", "2019" or "all".
    start, end : UTC, half-open for periods; for scenes the acquisition times of its items.
    items : positions in `ItemTable.items`, in the order in which the composite uses them.
    """

    index: int
    label: str
    start: dt.datetime
    end: dt.datetime
    items: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """Pixels of one chunk at one time step.

    Parameters
    ----------
    chunk : which; arrays cover its padded rows and columns.
    pixels : float32 (band, y, x), physical values (reflectance for optical bands); undefined where not `valid`.
    valid : bool (y, x): at least one usable observation of every band.
    items : positions in the item table of the items that gave at least one pixel to the *interior*.
    contributed : bool (item, y, x) over the interior, aligned with `items`: which item gave the pixel
        (several for a median).
    skipped : positions of the items that were left out because a file of theirs is not there (`missing_assets = "skip"`).
    bytes_read : bytes of pixels decoded from assets, for telemetry.
    """

    chunk: Chunk
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    items: tuple[int, ...]
    contributed: NDArray[np.bool_]
    skipped: tuple[int, ...] = ()
    bytes_read: int = 0


@dataclass(frozen=True)
class ChunkReceipt:
    """Proof that a chunk is finished; written last. Everything but `telemetry` is a function of the inputs.

    Parameters
    ----------
    key : chunk key.
    status : "done", or "empty" where no pixel of the interior was observed inside the region.
    files : path in the run directory -> sha256, of every shard and the part of this chunk.
    items : keys of the items that gave pixels to the interior, sorted.
    skipped : keys of the items that were left out because a file of theirs is not there, sorted.
    valid_px, inside_px : observed pixels inside the region; pixels inside the region.
    polygons : rows in the part.
    telemetry : seconds per stage, attempt, worker, host, peak memory: never part of a digest.
    """

    key: str
    status: Literal["done", "empty"]
    files: Mapping[str, str]
    items: tuple[str, ...]
    skipped: tuple[str, ...]
    valid_px: int
    inside_px: int
    polygons: int
    telemetry: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but telemetry, as JSON values."""
        out = asdict(self)
        del out["telemetry"]
        out["items"], out["skipped"] = list(self.items), list(self.skipped)
        return out

    @property
    def digest(self) -> str:
        """Digest of the facts."""
        return digest(self.facts)


@dataclass(frozen=True)
class ChunkFailure:
    """Why a chunk could not be made; replaced by a receipt when a later attempt succeeds."""

    key: str
    code: str
    text: str
    attempts: int
