"""Who answers the prompts for a chunk: masks and scores, and what they were made from.

`FreshAnswers` reads the scene and asks the segmenter. Whatever stands in its place must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import NO_OBSERVATION, decide, quantise_scores
from eo_batch.core.grid import Chunk
from eo_batch.core.prompts import PromptSet
from eo_batch.core.records import Scene
from eo_batch.models.inference import score_chunk
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter
from eo_batch.models.shared_windows import SharedWindows, Visit
from eo_batch.outputs.store import Store
from eo_batch.run.features import FeatureCache, open_features
from eo_batch.run.manifest import RunInputs
from eo_batch.run.shared_windows import answers_alone, share_windows
from eo_batch.run.stopwatch import Stopwatch
from eo_batch.sources.stack import SceneSource, open_source


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers for the interior of one chunk.

    Parameters
    ----------
    masks, scores : uint8 (prompt, y, x) as stored, in the order of the prompts that were asked.
    observed : bool (y, x): inside the region and validly observed. Elsewhere masks and scores are 254.
    items : positions in the item table of the items that gave pixels to the interior.
    contributed : bool (item, y, x), aligned with `items`: which item gave the pixel (several for a median).
    skipped : positions of the items that were left out because a file of theirs is not there.
    bytes_read : bytes of pixels decoded from assets, for telemetry.
    files : path in the run directory -> sha256 of what the answers have put there already, as it would be written.
    notes : what people should know that is no part of the answer.
    windows : how many were computed for this chunk, and how many came from its neighbours; for telemetry.
    """

    masks: NDArray[np.uint8]
    scores: NDArray[np.uint8]
    observed: NDArray[np.bool_]
    items: tuple[int, ...]
    contributed: NDArray[np.bool_]
    skipped: tuple[int, ...] = ()
    bytes_read: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    windows: Mapping[str, int] = field(default_factory=dict)


class Answers(Protocol):
    """Something that answers the prompts of a run, chunk by chunk. Pure: the same chunk, the same bytes."""

    @property
    def device(self) -> str:
        """What the segmenter computes on, "cpu" or "cuda"; "" where none is asked. For telemetry."""
        ...

    def answer(self, chunk: Chunk, inside: NDArray[np.bool_], clock: Stopwatch) -> Answered:
        """Answers for `chunk`; where nothing was observed, all of them are 254.

        Parameters
        ----------
        inside : bool (y, x) over the interior: pixel centre lies in the region.

        Raises
        ------
        AssetError, ModelError : this chunk cannot be made.
        """
        ...


@dataclass(frozen=True, eq=False)
class FreshAnswers:
    """Answers from the pixels of scenes and a segmenter.

    Parameters
    ----------
    shared : answers that chunks of this process share.
    features : where features of windows are kept; None: they are computed whenever they are needed.
    """

    inputs: RunInputs
    source: SceneSource
    segmenter: Segmenter
    prompts: PromptSet
    prompt_features: Any
    shared: SharedWindows
    features: FeatureCache | None = None

    @property
    def device(self) -> str:
        """See `Answers.device`."""
        return self.segmenter.info.device

    def answer(self, chunk: Chunk, inside: NDArray[np.bool_], clock: Stopwatch) -> Answered:
        """See `Answers.answer`."""
        with self.shared.visit(chunk) as visit:
            with clock("read"):
                scene = self._read(chunk, inside)
            if scene is None:
                nobody = np.zeros((0, *chunk.shape), bool)
                return Answered(*self._nothing(chunk), np.zeros(chunk.shape, bool), (), nobody)
            rows, cols = chunk.rows.within(chunk.padded_rows), chunk.cols.within(chunk.padded_cols)
            observed = scene.valid[rows, cols] & inside
            masks, scores = self._nothing(chunk)
            if observed.any():
                masks, scores = self._score(scene, observed, inside, visit, clock)
        return Answered(
            masks,
            scores,
            observed,
            scene.items,
            scene.contributed,
            scene.skipped,
            scene.bytes_read,
            notes=(*self.source.take_notes(), *(self.features.take_notes() if self.features else ())),
            windows={"computed": visit.computed, "shared": visit.taken},
        )

    def _read(self, chunk: Chunk, inside: NDArray[np.bool_]) -> Scene | None:
        step = self.inputs.steps[chunk.t]
        if not inside.any() or not self.source.candidates(chunk, step):
            return None
        return self.source.read_scene(chunk, step)

    def _score(
        self, scene: Scene, observed: NDArray[np.bool_], inside: NDArray[np.bool_], visit: Visit, clock: Stopwatch
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Masks and scores of a chunk that was observed, uint8 (prompt, y, x)."""
        with clock("score"):
            logits = score_chunk(
                self.segmenter,
                self.prompt_features,
                pixels=scene.pixels,
                valid=scene.valid,
                inside=inside,
                grid=self.inputs.grid,
                chunk=visit.chunk,
                prompts=len(self.prompts),
                batch=self.inputs.request.spec.model.fixed_batch,
                encode=self.features.encode if self.features else None,
                visit=visit,
            )
        with clock("decide"):
            scores = quantise_scores(logits, observed)
            return decide(scores, np.array([prompt.threshold for prompt in self.prompts])), scores

    def _nothing(self, chunk: Chunk) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Masks and scores where nothing was observed."""
        empty = np.full((len(self.prompts), *chunk.shape), NO_OBSERVATION, np.uint8)
        return empty, empty


def fresh_answers(
    inputs: RunInputs, prompts: PromptSet, segmenter: Segmenter | None = None, *, store: Store | None = None
) -> FreshAnswers:
    """Answers to `prompts` of a run: opens the source, loads the segmenter, encodes the prompts.

    Parameters
    ----------
    store : of the run, where features of windows are kept if the pipeline asks for it; None: nowhere.

    Raises
    ------
    ConfigError : `config-invalid`: features of this segmenter cannot be kept.
    """
    spec = inputs.request.spec
    segmenter = segmenter or load_segmenter(spec.model, spec.source.bands)
    features = None if store is None else open_features(store, segmenter, spec.cache)
    source = open_source(inputs.items, inputs.grid, spec, inputs.request.catalog)
    prompt_features = segmenter.encode_prompts(prompts)
    if features is not None and not answers_alone(segmenter, prompt_features, inputs, len(prompts)):
        features = None  # they would hang on what else had to be computed beside them
    shared = share_windows(inputs, segmenter, prompt_features, prompts=len(prompts))
    return FreshAnswers(inputs, source, segmenter, prompts, prompt_features, shared, features)
