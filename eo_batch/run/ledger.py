"""Which chunks exist: receipts, written last and create-only, and failures, which a receipt overrules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import IntegrityError
from eo_batch.core.records import ChunkFailure, ChunkReceipt
from eo_batch.outputs.store import Store


def put_receipt(store: Store, receipt: ChunkReceipt) -> None:
    """Commit a chunk. An equal receipt that is already there is a twin's: fine.

    Raises
    ------
    IntegrityError : `nondeterministic-output`: a receipt with other facts is there; both are kept.
    """
    data = canonical_json({"facts": receipt.facts, "digest": receipt.digest, "telemetry": dict(receipt.telemetry)})
    if store.create(receipt_path(receipt.key), data):
        store.delete(_failure_path(receipt.key))
        return
    earlier = get_receipt(store, receipt.key)
    if earlier.digest != receipt.digest:
        changed = sorted(path for path in receipt.files if earlier.files.get(path) != receipt.files[path])
        store.put(receipt_path(receipt.key) + ".other", data)
        raise IntegrityError(
            "nondeterministic-output",
            "computing it again gave other bytes",
            where=f"chunk {receipt.key}",
            why=f"differs in {', '.join(changed) or 'its facts'}",
            fix="Keep both receipts for a report; make sure that code, weights and device are the same.",
        )


def get_receipt(store: Store, key: str) -> ChunkReceipt:
    """The receipt of a chunk.

    Raises
    ------
    IntegrityError : `receipt-mismatch`: it does not match its own digest.
    """
    try:
        document = json.loads(store.get(receipt_path(key)))
        facts = document["facts"]
        receipt = ChunkReceipt(
            facts["key"],
            facts["status"],
            facts["files"],
            tuple(facts["items"]),
            tuple(facts["skipped"]),
            facts["valid_px"],
            facts["inside_px"],
            facts["polygons"],
            document["telemetry"],
        )
        intact = receipt.digest == document["digest"] and receipt.key == key and _is_sound(receipt)
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise IntegrityError(
            "receipt-mismatch",
            "the receipt was changed or damaged",
            where=f"chunk {key}",
            fix="Run eo-batch resume RUN --repair.",
        )
    return receipt


def receipt_keys(store: Store) -> Iterator[str]:
    """Keys of all chunks that have a receipt, sorted."""
    for path in store.list("receipts"):
        if path.endswith(".json"):
            yield path.removeprefix("receipts/").removesuffix(".json")


def put_failure(store: Store, failure: ChunkFailure) -> None:
    """Record why a chunk could not be made; a later attempt replaces it."""
    store.put(_failure_path(failure.key), canonical_json(asdict(failure)))


def failures(store: Store) -> Iterator[ChunkFailure]:
    """Failures of chunks that have no receipt, sorted by key."""
    for path in store.list("failures"):
        key = path.removeprefix("failures/").removesuffix(".json")
        if path.endswith(".json") and not store.exists(receipt_path(key)):
            yield _failure(store, path, key)


def _failure(store: Store, path: str, key: str) -> ChunkFailure:
    try:
        failure = ChunkFailure(**json.loads(store.get(path)))
    except (ValueError, TypeError, RecursionError):
        failure = None
    if failure is None or failure.key != key or not (isinstance(failure.code, str) and isinstance(failure.text, str)):
        return ChunkFailure(key, "unexpected", "the note of this failure is damaged", 1)
    return failure


def _is_sound(receipt: ChunkReceipt) -> bool:
    """Its values are of the kinds they must be: a digest proves no more than that nothing was changed since."""
    if not isinstance(receipt.files, dict) or not isinstance(receipt.telemetry, dict):
        return False
    texts = (*receipt.items, *receipt.skipped, *receipt.files, *receipt.files.values())
    counts = (receipt.valid_px, receipt.inside_px, receipt.polygons)
    return (
        receipt.status in ("done", "empty")
        and all(isinstance(text, str) for text in texts)
        and all(type(count) is int and count >= 0 for count in counts)
    )


def receipt_path(key: str) -> str:
    """`receipts/t0000/y0000_x0000.json`."""
    return f"receipts/{key}.json"


def _failure_path(key: str) -> str:
    return f"failures/{key}.json"
