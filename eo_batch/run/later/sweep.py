"""What other thresholds would find: exact pixels and areas for any threshold, from one pass over the stored scores.

Each score that a pixel can have is counted once, with the true area of its pixels; the answer for a threshold is a sum from
its step upwards. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.arrays import SCORE_STEPS, least_step
from eo_batch.core.prompts import Prompt
from eo_batch.core.records import TimeStep
from eo_batch.outputs.areas import PixelAreas
from eo_batch.run.later.rethreshold import find_prompt, finished_run
from eo_batch.run.later.stored import StoredScores
from eo_batch.run.manifest import read_inputs

SWEPT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of a sweep; the one that the run has is added."""


@dataclass(frozen=True)
class SweepRow:
    """What one threshold would find.

    Parameters
    ----------
    threshold : score from which a pixel counts as found.
    pixels : found pixels.
    area_km2 : their true area on the ellipsoid, as in footprints.
    share : of the observed area, 0..1; None where nothing was observed.
    """

    threshold: float
    pixels: int
    area_km2: float
    share: float | None


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores of one prompt over a whole run, counted.

    Parameters
    ----------
    prompt : with the threshold that the run has.
    steps : the time steps.
    pixels : int64 (time, score 0..250): pixels inside the region with that stored score.
    units : int64 (time, score 0..250): their area in units of `unit_m2` (`outputs.areas.PixelAreas`).
    """

    prompt: Prompt
    steps: tuple[TimeStep, ...]
    pixels: NDArray[np.int64]
    units: NDArray[np.int64]
    unit_m2: float

    def rows(self, thresholds: Sequence[float] | None = None, *, t: int | None = None) -> list[SweepRow]:
        """One row per threshold, rising.

        Parameters
        ----------
        thresholds : each in (0, 1); default: `SWEPT` and the threshold of the run.
        t : a time step; None: all together.
        """
        chosen = slice(None) if t is None else slice(t, t + 1)
        pixels, units = self.pixels[chosen].sum(axis=0), self.units[chosen].sum(axis=0)
        whole = int(units.sum())
        rows = []
        for threshold in sorted({*SWEPT, self.prompt.threshold} if thresholds is None else set(thresholds)):
            found = slice(least_step(threshold), None)
            here = int(units[found].sum())
            share = here / whole if whole else None
            rows.append(SweepRow(threshold, int(pixels[found].sum()), here * self.unit_m2 / 1e6, share))
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The sweep as JSON values: all time steps together, and each of them."""
        return {
            "prompt": self.prompt.text,
            "prompt_id": self.prompt.id,
            "threshold": self.prompt.threshold,
            "rows": [vars(row) for row in self.rows()],
            "steps": [{"step": step.label, "rows": [vars(row) for row in self.rows(t=step.index)]} for step in self.steps],
        }


def sweep(run: Path | str, prompts: Sequence[str] = (), *, progress: Callable[[int, int], None] | None = None) -> list[Sweep]:
    """Counts of the stored scores of a finished run, one `Sweep` for each of `prompts` (texts or ids; default: all).

    Parameters
    ----------
    progress : called with (chunks done, in all).

    Raises
    ------
    ConfigError : an unknown prompt; the run has no scores or is not finished.
    IntegrityError : the scores are damaged.
    """
    base = finished_run(run)
    inputs = read_inputs(base)
    every = inputs.request.spec.prompt_set
    chosen = [find_prompt(every, name) for name in prompts] if prompts else list(range(len(every)))
    shape = (len(chosen), len(inputs.steps), SCORE_STEPS + 1)
    pixels, units = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    grid, areas, scores = inputs.grid, PixelAreas(inputs.grid), StoredScores(base, inputs)
    done, total = 0, inputs.chunk_count
    for place in grid.chunks(0):
        area = areas.of(place.rows, place.cols)
        for t in range(len(inputs.steps)):
            kept = scores.read(grid.chunk(t, place.iy, place.ix), chosen)
            _count(kept.scores, kept.observed, area, into=(pixels[:, t], units[:, t]))
            done += 1
            if progress is not None:
                progress(done, total)
    return [Sweep(every.prompts[index], inputs.steps, pixels[n], units[n], areas.unit_m2) for n, index in enumerate(chosen)]


def _count(
    scores: NDArray[np.uint8],
    observed: NDArray[np.bool_],
    area: NDArray[np.int64],
    *,
    into: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> None:
    """Add pixels and area units of each stored score to int64 (prompt, score). Exact: the units of a chunk are below 2^53."""
    weights = area[observed].astype(np.float64)
    for index, values in enumerate(scores[:, observed]):
        into[0][index] += np.bincount(values, minlength=SCORE_STEPS + 1)
        into[1][index] += np.bincount(values, weights, minlength=SCORE_STEPS + 1).astype(np.int64)
