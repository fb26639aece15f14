"""The record of which items gave the pixels of a chunk: exact, small, the same bytes, and damage has a name."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from outputs.small_run import make_grid

from eo_batch.core.errors import IntegrityError
from eo_batch.outputs.contributed import CONTRIBUTED_SCHEMA, contributed_bytes, contributed_path, read_contributed


def planes(items: int, shape: tuple[int, int], seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((items, *shape)) < 0.4


def blobs(side: int, seed: int) -> NDArray[np.bool_]:
    """Clouds with edges as ragged as those of a 20 m cloud mask on 10 m pixels."""
    coarse = np.random.default_rng(seed).normal(size=(side // 64 + 1, side // 64 + 1))
    y, x = np.mgrid[0:side, 0:side] / 64
    i, j, fy, fx = y.astype(int), x.astype(int), y % 1, x % 1
    upper = coarse[i, j] * (1 - fx) + coarse[i, np.minimum(j + 1, side // 64)] * fx
    return upper * (1 - fy) + np.random.default_rng(seed + 1).normal(size=(side, side)) * 0.05 > -0.3


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (5, 17), (64, 63)])
@pytest.mark.parametrize("items", [(), (7,), (0, 3, 12), (9, 2, 5, 100_000)])
def test_what_is_read_is_what_was_written(items: tuple[int, ...], shape: tuple[int, int]) -> None:
    contributed = planes(len(items), shape)
    found, pixels = read_contributed(contributed_bytes(items, contributed), shape)
    assert found == tuple(sorted(items))
    assert pixels.dtype == np.bool_
    assert pixels.shape == (len(items), *shape)
    for item, plane in zip(items, contributed, strict=True):
        assert np.array_equal(pixels[found.index(item)], plane)


def test_the_bytes_do_not_depend_on_the_order_of_the_items_or_the_memory_layout() -> None:
    contributed = planes(3, (40, 50))
    data = contributed_bytes((4, 1, 9), contributed)
    assert contributed_bytes((9, 4, 1), contributed[[2, 0, 1]]) == data
    assert contributed_bytes((4, 1, 9), np.asfortranarray(contributed)) == data


def test_any_reader_of_parquet_finds_the_pixels() -> None:
    contributed = planes(2, (6, 11))
    rows = pq.read_table(io.BytesIO(contributed_bytes((3, 8), contributed))).to_pylist()
    assert [row["item"] for row in rows] == [3, 8]
    for row, plane in zip(rows, contributed, strict=True):
        bits = "".join(f"{byte:08b}" for byte in row["pixels"])
        assert [[bit == "1" for bit in bits[16 * y : 16 * y + 11]] for y in range(6)] == plane.tolist()


def test_a_whole_scene_costs_less_than_a_block_on_disk_and_a_cloudy_one_a_fraction_of_its_bits() -> None:
    side = 1024
    assert len(contributed_bytes((0,), np.ones((1, side, side), bool))) < 1000
    cloudy = contributed_bytes((0,), blobs(side, 3)[None])
    assert len(cloudy) < 0.5 * side * side / 8


def test_planes_that_do_not_fit_their_items_are_refused() -> None:
    for items in ((1,), (1, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="do not name planes"):
            contributed_bytes(items, planes(2, (4, 4)))


def table_of(items: list[Any], pixels: list[Any], schema: pa.Schema = CONTRIBUTED_SCHEMA) -> bytes:
    target = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays([pa.array(items, schema.types[0]), pa.array(pixels, schema.types[1])], schema=schema), target
    )
    return target.getvalue()


OTHER = pa.schema([pa.field("item", pa.int64(), nullable=False), pa.field("pixels", pa.binary(), nullable=False)])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", ""),
        (b"not parquet", ""),
        (table_of([1], [b"\0\0"], OTHER), "columns"),
        (table_of([1], [b"\0"]), "1 bytes are not 2 x 3 pixels"),
        (table_of([1], [b"\0" * 3]), "3 bytes"),
        (table_of([2, 1], [b"\0\0", b"\0\0"]), "rising"),
        (table_of([1, 1], [b"\0\0", b"\0\0"]), "rising"),
        (table_of([-1], [b"\0\0"]), "rising"),
    ],
)
def test_a_file_that_is_something_else_is_named(data: bytes, why: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        read_contributed(data, (2, 3), where="contributed/t0000/y0000_x0000.parquet")
    assert caught.value.code == "shard-mismatch"
    assert caught.value.where == "contributed/t0000/y0000_x0000.parquet"
    assert why in str(caught.value)


def test_damage_anywhere_is_an_error_or_changes_nothing_but_pixels() -> None:
    shape = (20, 20)
    data = contributed_bytes((1, 2), planes(2, shape))
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[random.integers(len(data))] ^= 1 << int(random.integers(8))
        try:
            items, pixels = read_contributed(bytes(damaged), shape)
        except IntegrityError:
            refused += 1
        else:
            assert pixels.shape == (len(items), *shape)
    assert refused > 100
    for length in range(0, len(data), 7):
        with pytest.raises(IntegrityError):
            read_contributed(data[:length], shape)


def test_the_file_of_a_chunk_lies_beside_its_part() -> None:
    chunk = make_grid((300, 300), 128).chunk(2, 1, 0)
    assert contributed_path(chunk) == "contributed/t0002/y0001_x0000.parquet"
