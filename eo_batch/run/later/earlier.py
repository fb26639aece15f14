"""What the generation before made of a chunk: its files and polygons, to which an extension adds those of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION
from eo_batch.core.digest import sha256
from eo_batch.core.errors import AssetError, IntegrityError
from eo_batch.core.grid import Chunk, Grid
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.cube import MASK, decode_shard, shard_path
from eo_batch.outputs.footprints import part_path
from eo_batch.outputs.trace import PART_SCHEMA, read_part
from eo_batch.run.generations import Generation
from eo_batch.run.ledger import get_receipt, receipt_path
from eo_batch.run.manifest import RunInputs, read_request


@dataclass(frozen=True, eq=False)
class Earlier:
    """A finished chunk of the generation before; empty in the first generation.

    Parameters
    ----------
    files : path -> sha256 of its files; all but the part stay as they are.
    part : its polygons.
    receipt : its receipt, None in the first generation.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    part: pa.Table = field(default_factory=PART_SCHEMA.empty_table)
    receipt: ChunkReceipt | None = None


def added_prompts(store: Generation, inputs: RunInputs) -> PromptSet:
    """The prompts that this generation answers itself: all in the first one, else those that it adds."""
    prompts = inputs.request.spec.prompt_set
    if store.earlier is None:
        return prompts
    return PromptSet(prompts.prompts[len(read_request(store.earlier).spec.prompts) :])


def earlier_of(store: Generation, chunk: Chunk) -> Earlier:
    """What the generation before made of `chunk`.

    Raises
    ------
    IntegrityError : `receipt-mismatch`, `shard-missing` or `shard-mismatch`: it is not there, or damaged.
    """
    if store.earlier is None:
        return Earlier()
    path = part_path(chunk)
    try:
        receipt = get_receipt(store.earlier, chunk.key)
    except FileNotFoundError:
        raise _damage(store.earlier, "shard-missing", receipt_path(chunk.key)) from None
    return Earlier(receipt.files, read_part(_read(store.earlier, path, receipt), where=path), receipt)


def check_scene(
    store: Generation, earlier: Earlier, chunk: Chunk, *, facts: Mapping[str, Any], observed: NDArray[np.bool_], grid: Grid
) -> None:
    """Refuse to join answers about pixels that are not those of before.

    Parameters
    ----------
    facts : what the receipt of now will say of the scene.
    observed : bool (y, x) over the interior: inside the region and validly observed now.

    Raises
    ------
    AssetError : `asset-contract`: other items, or other pixels observed.
    IntegrityError : as `earlier_of`.
    """
    if earlier.receipt is None:
        return
    was = {name: getattr(earlier.receipt, name) for name in facts}
    why = next((f"{name}: {was[name]} became {now}" for name, now in facts.items() if was[name] != now), "")
    if not why:
        mask = decode_shard(_read(store, shard_path(MASK, 0, chunk), earlier.receipt), grid)
        before = mask[: chunk.shape[0], : chunk.shape[1]] != NO_OBSERVATION
        why = "" if np.array_equal(before, observed) else "other pixels are observed"
    if why:
        raise AssetError(
            "asset-contract",
            "its scenes are not what they were when the first prompts were answered",
            where=f"chunk {chunk.key}",
            why=why,
            fix="Bring the files back as they were and resume, or start a new run with all prompts.",
        )


def _read(store: Generation, path: str, receipt: ChunkReceipt) -> bytes:
    """A file that `receipt` names, as it was written."""
    try:
        data = store.get(path)
    except FileNotFoundError:
        raise _damage(store, "shard-missing", path) from None
    if sha256(data) != receipt.files[path]:
        raise _damage(store, "shard-mismatch", path)
    return data


def _damage(store: Generation, code: str, path: str) -> IntegrityError:
    fix = f"Run `eo-batch resume {store.where} --repair`."
    return IntegrityError(code, "what the prompts of before gave is gone or damaged", where=store.place(path), fix=fix)
