"""Digests of values, and of lists too long to be held."""

from __future__ import annotations

import tracemalloc

import pytest

from eo_batch.core.digest import ListDigest, digest


@pytest.mark.parametrize("values", [[], ["a"], [["t0000/y0000_x0001", "ab"], {"b": 1, "a": None}, 2.5, "é"]])
def test_a_list_digest_is_the_digest_of_the_list(values: list[object]) -> None:
    growing = ListDigest()
    for value in values:
        growing.add(value)
    assert growing.hexdigest == digest(values)


def test_a_list_digest_holds_no_list() -> None:
    growing = ListDigest()
    tracemalloc.start()
    for number in range(5000):
        growing.add([f"t0000/y0000_x{number}", "0" * 64])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
