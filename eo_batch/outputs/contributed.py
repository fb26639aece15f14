"""Which items gave the pixels of a chunk, kept so that footprints can be made again without reading a scene.

One bit for each item and pixel, packed row by row and compressed. The planes of items are kept apart: clouds of one item
have shapes of their own, so the edges of several cost their sum, and sets of items per pixel would cost as much or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk

CONTRIBUTED_SCHEMA = pa.schema(
    [
        pa.field("item", pa.int32(), nullable=False),
        pa.field("pixels", pa.large_binary(), nullable=False),
    ]
)
"""Columns of a contributed file: one row per item, by rising position in the run's item table.

`pixels` has one bit per pixel of the interior, 1 where the item gave it: row by row, each row filled up with zeros to whole
bytes, the first pixel in the highest bit (as `numpy.packbits(axis=1)`).
"""


def contributed_path(chunk: Chunk) -> str:
    """Path in the run directory of the contributed file of `chunk`: `contributed/t0003/y0012_x0044.parquet`."""
    return f"contributed/{chunk.key}.parquet"


def contributed_bytes(items: Sequence[int], contributed: NDArray[np.bool_]) -> bytes:
    """Contributed file of a chunk: the same bytes for the same items and pixels, in whatever order the items come.

    Parameters
    ----------
    items : distinct positions in the item table.
    contributed : bool (item, y, x) over the interior, aligned with `items`: which item gave the pixel.
    """
    if contributed.ndim != 3 or len(items) != len(contributed) or len(set(items)) != len(items):
        raise ValueError(f"{len(items)} items ({len(set(items))} distinct) do not name planes of shape {contributed.shape}")
    order = sorted(range(len(items)), key=lambda position: items[position])
    positions = pa.array([items[position] for position in order], pa.int32())
    planes = pa.array([np.packbits(contributed[position], axis=1).tobytes() for position in order], pa.large_binary())
    target = BytesIO()
    table = pa.Table.from_arrays([positions, planes], schema=CONTRIBUTED_SCHEMA)
    pq.write_table(table, target, compression="zstd", use_dictionary=False, write_statistics=False)
    return target.getvalue()


def read_contributed(
    data: bytes, shape: tuple[int, int], *, where: str = "contributed"
) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
    """Items and bool (item, y, x) of `contributed_bytes`, items in rising order.

    Parameters
    ----------
    shape : pixels (y, x) of the interior.

    Raises
    ------
    IntegrityError : `shard-mismatch`: not a contributed file of this shape, or damaged.
    """
    height, width = shape
    try:
        table = pq.read_table(pa.BufferReader(data), partitioning=None)
        if not table.schema.equals(CONTRIBUTED_SCHEMA):
            raise _mismatch(where, "columns are not those of a contributed file")
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _mismatch(where, (str(error).splitlines() or [type(error).__name__])[0][:200]) from None
    items = tuple(table["item"].to_pylist())
    if any(item < 0 for item in items) or any(second <= first for first, second in pairwise(items)):
        raise _mismatch(where, "items are not rising positions in an item table")
    row_bytes = -(-width // 8)
    contributed = np.empty((len(items), height, width), np.bool_)
    for plane, packed in zip(contributed.view(np.uint8), table["pixels"], strict=True):
        bits = np.frombuffer(packed.as_buffer(), np.uint8)
        if len(bits) != height * row_bytes:
            raise _mismatch(where, f"{len(bits):,} bytes are not {height} x {width} pixels")
        plane[:] = np.unpackbits(bits.reshape(height, row_bytes), axis=1, count=width)
    return items, contributed


def _mismatch(where: str, why: str) -> IntegrityError:
    what = "the record of which items gave the pixels cannot be read"
    return IntegrityError("shard-mismatch", what, where=where, why=why, fix="Run `eo-batch resume --repair`.")
