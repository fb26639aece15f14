"""The end of a run: join footprints over seams, describe the result, and write the marker that makes it exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from eo_batch.core.digest import ListDigest, canonical_json, sha256
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk
from eo_batch.outputs.cube import header_paths
from eo_batch.outputs.footprints import merge_parts, part_path
from eo_batch.outputs.stac import write_stac
from eo_batch.outputs.store import Store
from eo_batch.outputs.trace import part_bytes
from eo_batch.run.generations import Generation
from eo_batch.run.later.earlier import earlier_of
from eo_batch.run.lease import Lease
from eo_batch.run.ledger import failures, get_receipt, receipt_keys, receipt_path
from eo_batch.run.manifest import RunInputs, SegmenterIdentity, read_manifest
from eo_batch.run.told.events import Event, Listener
from eo_batch.version import __version__


def merge_and_publish(
    store: Generation, inputs: RunInputs, segmenter: SegmenterIdentity, *, failed: int, lease: Lease, listener: Listener
) -> dict[str, Any]:
    """Make `footprints.parquet`, `stac/` and, last, `COMPLETE.json`; the content of the marker.

    Where chunks of an extension failed, the polygons of the prompts before stay in the map.

    Raises
    ------
    IntegrityError : `receipt-mismatch`: receipts and plan do not agree.
    LockError : `lease-lost`: another driver took over meanwhile.
    """
    total = inputs.chunk_count
    listener(Event("merge", "joining footprints over seams", total, total))
    finished = set(receipt_keys(store))
    planned = sum(1 for _ in _chunks(inputs, finished))
    if planned != len(finished) or planned + failed != total:
        raise IntegrityError(
            "receipt-mismatch",
            f"{len(finished):,} receipts and {failed:,} failures do not make up the {total:,} planned chunks",
            where=store.where,
            fix="Run eo-batch verify RUN.",
        )
    spec = inputs.request.spec
    kept = finished | _keep_earlier(store, inputs) if failed else finished
    chunks = _chunks(inputs, kept)  # made one at a time: a list of a million would take most of a gigabyte
    merged = merge_parts(store, chunks=chunks, grid=inputs.grid, prompts=spec.prompt_set, steps=inputs.steps, items=inputs.items)
    listener(Event("publish", "writing STAC and the completion marker", total, total))
    write_stac(
        store,
        name=spec.name,
        grid=inputs.grid,
        region=inputs.request.region,
        prompts=spec.prompt_set,
        steps=inputs.steps,
        items=inputs.items,
        scores=spec.output.scores,
        licence=inputs.request.catalog.licence,
        model={"name": segmenter.name, "digest": segmenter.digest, "window_px": inputs.grid.window_px},
        software={"eo-batch": __version__},
    )
    marker = marker_of(store, inputs, failed=failed, rows=merged.rows)
    if marker["skipped_items"]:
        text = f"{len(marker['skipped_items']):,} scenes were left out somewhere because a file of theirs is not there"
        listener(Event("warning", text, total, total, data={"items": marker["skipped_items"]}))
    lease.check()
    store.put("COMPLETE.json", canonical_json(marker))
    return marker


def marker_of(store: Store, inputs: RunInputs, *, failed: int, rows: dict[str, int]) -> dict[str, Any]:
    """Content of `COMPLETE.json`: a function of the results alone, the same for every way to get there."""
    manifest = read_manifest(store)
    assert manifest is not None
    products = ["footprints.parquet", *store.list("stac"), *header_paths(store)]
    status = {"done": 0, "empty": 0}
    inside = valid = 0
    chain = ListDigest()
    skipped: set[str] = set()
    for key in receipt_keys(store):
        receipt = get_receipt(store, key)
        status[receipt.status] += 1
        inside += receipt.inside_px
        valid += receipt.valid_px
        skipped.update(receipt.skipped)
        chain.add([key, receipt.digest])
    return {
        "run": manifest["digest"],
        "receipts": chain.hexdigest,
        "files": {path: sha256(store.get(path)) for path in sorted(products)},
        "chunks": {"total": inputs.chunk_count, **status, "failed": failed},
        "partial": failed > 0,
        "failed": [[f.key, f.code] for f in failures(store)],
        "skipped_items": sorted(skipped),
        "inside_px": inside,
        "valid_px": valid,
        "footprints": rows,
    }


def read_marker(store: Store) -> dict[str, Any] | None:
    """The marker of a finished run, or None."""
    if not store.exists("COMPLETE.json"):
        return None
    try:
        marker = json.loads(store.get("COMPLETE.json"))
    except (ValueError, RecursionError):
        marker = None
    if not isinstance(marker, dict) or "files" not in marker:
        raise IntegrityError(
            "receipt-mismatch", "COMPLETE.json is damaged", where=store.where, fix="Run eo-batch resume RUN --repair."
        )
    return marker


def _keep_earlier(store: Generation, inputs: RunInputs) -> set[str]:
    """Put the parts of the generation before where this one failed; keys of those chunks."""
    if store.earlier is None:
        return set()
    keys = {failure.key for failure in failures(store) if store.earlier.exists(receipt_path(failure.key))}
    for chunk in _chunks(inputs, keys):
        store.put(part_path(chunk), part_bytes(earlier_of(store, chunk).part))
    return keys


def _chunks(inputs: RunInputs, finished: set[str]) -> Iterator[Chunk]:
    for step in inputs.steps:
        for chunk in inputs.grid.chunks(step.index):
            if chunk.key in finished:
                yield chunk
