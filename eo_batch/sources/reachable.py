"""Can assets be read from here: one header from each host, by the way that a run reads."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from eo_batch.core.grid import Grid
from eo_batch.core.records import BandAsset, Item
from eo_batch.core.spec import CatalogSpec
from eo_batch.sources.access import AssetAccess
from eo_batch.sources.asset_errors import Retry
from eo_batch.sources.open_files import close_files
from eo_batch.sources.raster import read_header
from eo_batch.sources.reader import AssetReader, BandRead


def one_of_each_host(items: Iterable[Item]) -> dict[str, tuple[str, BandAsset]]:
    """Host -> owner, for messages, and asset; files of this machine are of the host "files"."""
    found: dict[str, tuple[str, BandAsset]] = {}
    for item in items:
        for band, asset in item.bands.items():
            parts = urlsplit(asset.href)
            found.setdefault(parts.netloc.rpartition("@")[2] or "files", (f'band "{band}" of item {item.key}', asset))
    return found


def read_one_header(asset: BandAsset, owner: str, *, catalog: CatalogSpec, grid: Grid, retry: Retry) -> None:
    """Open an asset as a run does: policy, redirects, signing and credentials are those of a run.

    Raises
    ------
    AssetError, PolicyError : as a read of a run.
    """
    reader = AssetReader("worker-check", AssetAccess(catalog), grid, 1, retry)
    try:
        reader.attempt(BandRead(asset, owner), -1, lambda dataset: read_header(dataset, asset.index, owner))
    finally:
        close_files()
