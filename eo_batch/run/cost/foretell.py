"""From what the chunks of a pilot took to the hours and the price of the whole run.

With T seconds of work in all chunks, W chunks at once and a share u of the time in which a worker has one,

    computing = T / (W u) + tail
    total     = search + start + computing + merge
    money     = price x processes x (start + computing)

Chunks of a pilot lie apart and share no windows: of the seconds in which the segmenter computes, and of the windows, the share
is taken that the plan expects when neighbours share.

T is estimated (`estimate`). The tail is the end, when workers run out of chunks: as long as what is left of a chunk when one
looks at a random moment, E[y^2] / 2 E[y] (renewal theory; Feller, An Introduction to Probability Theory, vol. 2, XI.4), times
1 - 1/W. Its upper end has the longest chunk there: no order of handing out takes more (Graham 1969, doi:10.1137/0117039).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eo_batch.run.cost.estimate import Figures, Range, estimate
from eo_batch.run.cost.measured import ChunkWork
from eo_batch.run.cost.sample import Sample

MERGE_CHUNK_S = 0.004
"""Assumed seconds of merge and publish for each chunk."""
MERGE_POLYGON_S = 0.0002
"""The same for each polygon of a chunk."""
LEAST_WARM = 3
"""Chunks that must be left when the first ones of every worker are left out."""


@dataclass(frozen=True)
class Terms:
    """What is the same for all chunks.

    Parameters
    ----------
    chunks : of the whole run.
    at_once : chunks computed at once.
    scoring : chunks scored at once: fewer where a GPU scores.
    kept_at_work : share of the time in which a worker has a chunk while chunks are left.
    search_s, start_s : until the plan was made, and from then until workers had warmed up.
    longest_s : of the longest chunk of the pilot.
    window_share : windows that are computed, of those that chunks need.
    price_per_s : of all worker processes; 0: nobody said.
    """

    chunks: int
    at_once: int
    scoring: int
    kept_at_work: float
    search_s: float
    start_s: float
    longest_s: float
    window_share: float
    price_per_s: float

    @property
    def waiting(self) -> float:
        """Share of the workers that wait for the last one."""
        return 1.0 - 1.0 / self.at_once

    def follow(self, totals: Figures) -> Figures:
        """Figures of the run from sums over its chunks: seconds, squares (of the seconds), busy_s, windows, polygons, bytes."""
        saved = totals["busy_s"] * (1.0 - self.window_share)
        seconds = np.maximum(totals["seconds"] - saved, 1e-9)
        working = seconds / (self.at_once * self.kept_at_work)
        tail = self.waiting * totals["squares"] / (2 * seconds)
        computing = np.maximum(working + tail, self.longest_s)
        merge = self.chunks * MERGE_CHUNK_S + totals["polygons"] * MERGE_POLYGON_S
        figures = {
            "seconds": seconds,
            "computing_s": computing,
            "tail_s": tail,
            "merge_s": merge,
            "total_s": self.search_s + self.start_s + computing + merge,
            "windows": totals["windows"] * self.window_share,
            "windows_per_s": totals["windows"] * self.window_share / computing,
            "busy_percent": 100 * (totals["busy_s"] - saved) / (computing * self.scoring),
            "bytes_read": totals["bytes_read"],
            "bytes_written": totals["bytes_written"],
        }
        if self.price_per_s:
            figures["money"] = self.price_per_s * (self.start_s + computing)
        return figures


def foretell(sample: Sample, took: Sequence[ChunkWork], terms: Terms) -> dict[str, Range]:
    """Ranges of the figures of the whole run.

    Parameters
    ----------
    took : by each chunk of the sample.
    """
    columns: Mapping[str, Sequence[float]] = {
        "seconds": [work.seconds for work in took],
        "squares": [work.seconds**2 for work in took],
        "busy_s": [work.busy_s for work in took],
        "windows": [max(work.windows, 0) for work in took],
        "polygons": [work.polygons for work in took],
        "bytes_read": [work.bytes_read for work in took],
        "bytes_written": [work.bytes_written for work in took],
    }
    found = estimate(sample, {name: np.asarray(values, np.float64) for name, values in columns.items()}, terms.follow)
    longer = max(terms.waiting * terms.longest_s - found["tail_s"].middle, 0.0)
    found["computing_s"] = _up_by(found["computing_s"], longer)
    found["total_s"] = _up_by(found["total_s"], longer)
    if "money" in found:
        found["money"] = _up_by(found["money"], longer * terms.price_per_s)
    return found


def kept_at_work(took: Sequence[ChunkWork], at_once: int) -> float:
    """Share of the time in which a worker had a chunk, from when all had begun until the last chunk was taken.

    1.0 where there were too few chunks to see it: less than two for each that is computed at once.
    """
    spans = [(work.began, work.began + work.seconds) for work in took if work.began is not None]
    if len(spans) < 2 * at_once:
        return 1.0
    first = max(
        min(work.began for work in took if work.worker == worker and work.began is not None)
        for worker in {work.worker for work in took if work.began is not None}
    )
    last = max(begin for begin, _ in spans)
    if last <= first:
        return 1.0
    used = sum(max(min(end, last) - max(begin, first), 0.0) for begin, end in spans)
    return float(np.clip(used / (at_once * (last - first)), 0.05, 1.0))


def are_warm(took: Sequence[ChunkWork], threads: int) -> NDArray[np.bool_]:
    """Chunks that were not the first ones of a worker process, which also load and compile; all where too few would be left."""
    warm = np.ones(len(took), bool)
    seen: dict[str, int] = {}
    for index in sorted(range(len(took)), key=lambda index: took[index].began or 0.0):
        worker = took[index].worker
        seen[worker] = seen.get(worker, 0) + 1
        warm[index] = seen[worker] > threads
    enough = np.count_nonzero(warm) >= max(LEAST_WARM, len(took) / 2)
    return warm if enough else np.ones(len(took), bool)


def _up_by(found: Range, longer: float) -> Range:
    return Range(found.low, found.middle, found.high + longer)
