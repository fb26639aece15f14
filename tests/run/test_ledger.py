"""Receipts commit chunks; twins agree, liars are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eo_batch.core.errors import IntegrityError
from eo_batch.core.records import ChunkFailure, ChunkReceipt
from eo_batch.outputs.store import Store
from eo_batch.run.ledger import failures, get_receipt, put_failure, put_receipt, receipt_keys, receipt_path

RECEIPT = ChunkReceipt("t0000/y0001_x0002", "done", {"a": "0" * 64}, ("c/i",), ("c/j",), 5, 9, 1, {"seconds": {"read": 1.0}})


def test_a_receipt_comes_back_as_it_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    found = get_receipt(store, RECEIPT.key)
    assert found == RECEIPT
    assert found.telemetry == RECEIPT.telemetry
    assert list(receipt_keys(store)) == [RECEIPT.key]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "<b>"},
        {"skipped": ({"a": 1},)},
        {"files": {"a": 1}},
        {"files": [1]},
        {"polygons": "7"},
        {"inside_px": -1},
        {"telemetry": [1]},
    ],
)
def test_a_receipt_whose_values_are_of_another_kind_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    store = Store(tmp_path)
    odd = replace(RECEIPT, **change)  # type: ignore[arg-type]
    store.put(receipt_path(odd.key), json.dumps({"facts": odd.facts, "digest": odd.digest, "telemetry": odd.telemetry}).encode())
    with pytest.raises(IntegrityError, match="receipt-mismatch"):
        get_receipt(store, odd.key)


@pytest.mark.parametrize(
    "note",
    [b"[" * 100_000, b"{}", b'{"key":7,"code":1,"text":2,"attempts":1}', b'{"key":"x","code":"c","text":"t","attempts":1}'],
)
def test_notes_of_failures_are_read_and_not_believed(tmp_path: Path, note: bytes) -> None:
    store = Store(tmp_path)
    store.put("failures/t0000/y0000_x0000.json", note)
    assert [(failure.key, failure.code) for failure in failures(store)] == [("t0000/y0000_x0000", "unexpected")]


def test_a_twin_with_other_telemetry_is_fine(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    put_receipt(store, replace(RECEIPT, telemetry={"seconds": {"read": 2.0}}))
    assert get_receipt(store, RECEIPT.key).telemetry == RECEIPT.telemetry


def test_a_twin_with_other_bytes_stops_everything_and_keeps_both(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    with pytest.raises(IntegrityError, match="nondeterministic-output: chunk t0000/y0001_x0002: .*differs in a"):
        put_receipt(store, replace(RECEIPT, files={"a": "1" * 64}))
    assert get_receipt(store, RECEIPT.key) == RECEIPT
    assert store.exists(receipt_path(RECEIPT.key) + ".other")
    assert list(receipt_keys(store)) == [RECEIPT.key]


@pytest.mark.parametrize("change", ["not json", "{}", "valid_px"])
def test_an_edited_receipt_is_found(tmp_path: Path, change: str) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    path = tmp_path / receipt_path(RECEIPT.key)
    text = path.read_text().replace('"valid_px":5', '"valid_px":6') if change == "valid_px" else change
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(IntegrityError, match="receipt-mismatch"):
        get_receipt(store, RECEIPT.key)


def test_a_receipt_of_another_chunk_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    other = tmp_path / receipt_path("t0000/y0000_x0000")
    other.write_bytes((tmp_path / receipt_path(RECEIPT.key)).read_bytes())
    with pytest.raises(IntegrityError, match="receipt-mismatch"):
        get_receipt(store, "t0000/y0000_x0000")


def test_a_receipt_overrules_an_earlier_failure(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failure = ChunkFailure(RECEIPT.key, "asset-corrupt", "text", 1)
    put_failure(store, failure)
    assert list(failures(store)) == [failure]
    put_receipt(store, RECEIPT)
    assert list(failures(store)) == []


def test_telemetry_is_in_the_file_but_not_in_the_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_receipt(store, RECEIPT)
    document = json.loads((tmp_path / receipt_path(RECEIPT.key)).read_bytes())
    assert "telemetry" not in document["facts"]
    assert document["digest"] == replace(RECEIPT, telemetry={}).digest


def test_a_damaged_note_of_a_failure_still_counts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put_failure(store, ChunkFailure(RECEIPT.key, "asset-corrupt", "text", 1))
    (tmp_path / f"failures/{RECEIPT.key}.json").write_bytes(b'{"key": 3}')
    (failure,) = failures(store)
    assert (failure.key, failure.code) == (RECEIPT.key, "unexpected")
