"""Part of a bucket as zarr reads it, with errors that say no more than those of `bucket`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from obstore.exceptions import BaseError
from obstore.store import S3Store
from zarr.storage import ObjectStore


class BucketZarr(ObjectStore):
    """Read-only store of zarr over a client that shows one prefix of a bucket.

    Parameters
    ----------
    explain : what is raised for an error of the store that concerns a key.
    """

    def __init__(self, client: S3Store, explain: Callable[[Exception, str], Exception]) -> None:
        super().__init__(client, read_only=True)
        self._explain = explain

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        """As `ObjectStore.get`."""
        try:
            return await super().get(key, *arguments, **options)
        except BaseError as error:
            raise self._explain(error, key) from None

    async def get_partial_values(self, *arguments: Any, **options: Any) -> Any:
        """As `ObjectStore.get_partial_values`."""
        try:
            return await super().get_partial_values(*arguments, **options)
        except BaseError as error:
            raise self._explain(error, "") from None
