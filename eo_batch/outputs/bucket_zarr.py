"""Part of a bucket as zarr reads it, with errors that say no more than those of `bucket`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obstore.exceptions import BaseError
from obstore.store import S3Store
from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from eo_batch.outputs.bucket import Bucket


class BucketZarr(ObjectStore):
    """Read-only store of zarr over a client that shows one prefix of a bucket."""

    def __init__(self, bucket: Bucket, client: S3Store) -> None:
        super().__init__(client, read_only=True)
        self._bucket = bucket

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        """As `ObjectStore.get`."""
        try:
            return await super().get(key, *arguments, **options)
        except BaseError as error:
            raise self._bucket.explain(error, key) from None

    async def get_partial_values(self, *arguments: Any, **options: Any) -> Any:
        """As `ObjectStore.get_partial_values`."""
        try:
            return await super().get_partial_values(*arguments, **options)
        except BaseError as error:
            raise self._bucket.explain(error, "") from None
