"""Answers from scores that another run stored: no scene is read and no segmenter is asked.

A mask is decided from stored scores in any run (docs/decisions/0003-stored-scores-decide.md), so these answers are those that
the scenes and the segmenter gave, with other thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION, SCORE_STEPS, decide
from eo_batch.core.digest import sha256
from eo_batch.core.errors import IntegrityError
from eo_batch.core.grid import Chunk
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import ChunkReceipt
from eo_batch.outputs.contributed import contributed_path, read_contributed
from eo_batch.outputs.cube import SCORE, decode_shard, shard_path
from eo_batch.outputs.store import Store
from eo_batch.run.answers import Answered
from eo_batch.run.later.derived import open_base, read_derived
from eo_batch.run.ledger import get_receipt
from eo_batch.run.manifest import RunInputs
from eo_batch.run.stopwatch import Stopwatch


@dataclass(frozen=True, eq=False)
class StoredChunk:
    """What a finished run stored of the interior of one chunk.

    Parameters
    ----------
    scores : uint8 (prompt, y, x) as stored.
    observed : bool (y, x): inside the region and validly observed.
    receipt : of the chunk.
    """

    scores: NDArray[np.uint8]
    observed: NDArray[np.bool_]
    receipt: ChunkReceipt


@dataclass(frozen=True, eq=False)
class StoredScores:
    """Scores of a finished run, every byte held against its receipt."""

    store: Store
    inputs: RunInputs

    def read(self, chunk: Chunk, prompts: Sequence[int] | None = None) -> StoredChunk:
        """Scores for the interior of `chunk`.

        Parameters
        ----------
        prompts : positions of the prompts that are wanted, at least one; default: all, in order.

        Raises
        ------
        IntegrityError : `shard-missing`, `shard-mismatch` or `receipt-mismatch`, naming the file.
        """
        try:
            receipt = get_receipt(self.store, chunk.key)
        except FileNotFoundError:
            raise self._damage("shard-missing", chunk, "its receipt is gone") from None
        except IntegrityError as error:
            raise self._damage(error.code, chunk, error.what) from None
        height, width = chunk.shape
        wanted = range(len(self.inputs.request.spec.prompts)) if prompts is None else prompts
        scores = np.empty((len(wanted), height, width), np.uint8)
        for index, prompt in enumerate(wanted):
            path = shard_path(SCORE, prompt, chunk)
            data = self.file(path, chunk, receipt)
            try:
                scores[index] = decode_shard(data, self.inputs.grid)[:height, :width]
            except IntegrityError as error:
                raise self._damage(error.code, chunk, f"{path}: {error.what}") from None
        observed = scores[0] != NO_OBSERVATION
        for layer in scores:  # a pixel is observed for all prompts of a time or for none
            if np.any((layer > SCORE_STEPS) == observed) or np.any(layer[~observed] != NO_OBSERVATION):
                raise self._damage("shard-mismatch", chunk, "its scores are none, or are not of one chunk")
        if int(observed.sum()) != receipt.valid_px:
            raise self._damage("receipt-mismatch", chunk, "its scores and its receipt do not agree")
        return StoredChunk(scores, observed, receipt)

    def contributed(self, chunk: Chunk, receipt: ChunkReceipt) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
        """Positions of the items that gave pixels, and bool (item, y, x); errors as `read`."""
        path = contributed_path(chunk)
        try:
            items, pixels = read_contributed(self.file(path, chunk, receipt), chunk.shape, where=path)
        except IntegrityError as error:
            raise self._damage(error.code, chunk, error.why or error.what) from None
        if items != self.positions(receipt.items, chunk):
            raise self._damage("receipt-mismatch", chunk, f"{path} and its receipt name other items")
        return items, pixels

    def positions(self, keys: tuple[str, ...], chunk: Chunk) -> tuple[int, ...]:
        """Rising positions in the item table of items by their keys; errors as `read`."""
        if not self._position.keys() >= set(keys):
            raise self._damage("receipt-mismatch", chunk, "its receipt names items that the run does not have")
        return tuple(sorted(self._position[key] for key in keys))

    def file(self, path: str, chunk: Chunk, receipt: ChunkReceipt) -> bytes:
        """Bytes of a file of `chunk`, as they were written; errors as `read`."""
        expected = receipt.files.get(path)
        try:
            data = self.store.get(path)
        except FileNotFoundError:
            data = None
        if data is None or expected is None:
            raise self._damage("shard-missing", chunk, f"{path} is not there")
        if sha256(data) != expected:
            raise self._damage("shard-mismatch", chunk, f"{path} is not what was written")
        return data

    @cached_property
    def _position(self) -> Mapping[str, int]:
        return {item.key: position for position, item in enumerate(self.inputs.items.items)}

    def _damage(self, code: str, chunk: Chunk, why: str) -> IntegrityError:
        root = self.store.where
        return IntegrityError(
            code,
            f"the scores of chunk {chunk.key} are damaged",
            where=str(root),
            why=why,
            fix=f"See `eo-batch verify {root}`, mend it with `eo-batch resume {root} --repair`, then go on here.",
        )


@dataclass(frozen=True, eq=False)
class StoredAnswers:
    """Answers from the scores of another run, which become files of this one too.

    Parameters
    ----------
    store : of the run that is made.
    scores : of the run whose scores are used.
    prompts : with the thresholds of the run that is made.
    """

    store: Store
    scores: StoredScores
    prompts: PromptSet
    device = ""

    def answer(self, chunk: Chunk, inside: NDArray[np.bool_], clock: Stopwatch) -> Answered:
        """See `run.answers.Answers.answer`.

        Raises
        ------
        IntegrityError : the scores are damaged.
        StoreError : a file could not be taken over.
        """
        with clock("read"):
            kept = self.scores.read(chunk)
            receipt = kept.receipt
            items, contributed = self.scores.contributed(chunk, receipt)
            skipped = self.scores.positions(receipt.skipped, chunk)
        with clock("decide"):
            masks = decide(kept.scores, np.array([prompt.threshold for prompt in self.prompts]))
        with clock("adopt"):
            paths = [*(shard_path(SCORE, index, chunk) for index in range(len(self.prompts))), contributed_path(chunk)]
            for path in paths:
                self.store.adopt(path, self.scores.store)
        files = {path: receipt.files[path] for path in paths}
        return Answered(masks, kept.scores, kept.observed, items, contributed, skipped, files=files)


def stored_answers(store: Store, inputs: RunInputs) -> StoredAnswers | None:
    """Answers for a run that is made from the scores of another; None for a run that is made from scenes.

    Raises
    ------
    ConfigError : `config-invalid`: the other run is not where it was.
    """
    derived = read_derived(store)
    if derived is None:
        return None
    base = open_base(store, inputs.request, derived)
    return StoredAnswers(store, StoredScores(base, inputs), inputs.request.spec.prompt_set)
