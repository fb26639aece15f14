"""What the generation before made of a chunk: its files and polygons, to which an extension adds those of its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from eo_batch.core.digest import sha256
from eo_batch.core.errors import AssetError, IntegrityError
from eo_batch.core.grid import Chunk
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.footprints import part_path
from eo_batch.outputs.trace import PART_SCHEMA, read_part
from eo_batch.run.generations import Generation
from eo_batch.run.ledger import get_receipt
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

    def check_scene(self, chunk: Chunk, facts: Mapping[str, Any]) -> None:
        """Refuse to join answers about pixels that are not those of before.

        Parameters
        ----------
        facts : what the receipt of now will say of the scene.

        Raises
        ------
        AssetError : `asset-contract`: other items, or other pixels observed.
        """
        for name, now in facts.items():
            before = now if self.receipt is None else getattr(self.receipt, name)
            if before != now:
                raise AssetError(
                    "asset-contract",
                    "its scenes are not what they were when the first prompts were answered",
                    where=f"chunk {chunk.key}",
                    why=f"{name}: {before} became {now}",
                    fix="Bring the files back as they were and resume, or start a new run with all prompts.",
                )


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
    fix = f"Run `eo-batch resume {store.root} --repair`."
    try:
        receipt = get_receipt(store.earlier, chunk.key)
        data = store.earlier.get(path)
    except FileNotFoundError:
        what = "what the prompts of before gave is gone"
        raise IntegrityError("shard-missing", what, where=f"chunk {chunk.key}", fix=fix) from None
    if sha256(data) != receipt.files[path]:
        where = store.earlier.place(path)
        raise IntegrityError("shard-mismatch", "the polygons are not what was written", where=where, fix=fix)
    return Earlier(receipt.files, read_part(data, where=path), receipt)
