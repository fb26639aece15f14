"""Memory of a run before it starts: of one chunk, of a worker process, of this machine; and a refusal with what would fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.models.inference import inference_bytes
from eo_batch.models.segmenter import Segmenter
from eo_batch.run.cost.coverage import Coverage
from eo_batch.run.crew import Crew
from eo_batch.run.manifest import RunInputs
from eo_batch.run.shared_windows import edge_budget
from eo_batch.sources.stack import MEDIAN_BYTES

PROCESS_BYTES = 900_000_000
"""Memory of a process beside its chunks, measured at the end of a long run: libraries, compiled code, block cache."""
SAFE_SHARE = 0.8
"""Share of free memory and disk that a plan may use; of a worker's memory too: Dask stops giving it work at 80 %."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, and what they are held against.

    Parameters
    ----------
    per_chunk : of one chunk that is computed.
    shared : of a process, whatever its chunks: weights, and answers that its chunks share.
    chunk_px : that `per_chunk` is of.
    worker_limit : of one worker process, as the cluster says; None: it says nothing.
    here_limit : of all processes on this machine; None: the workers are elsewhere.
    """

    per_chunk: int
    shared: int
    chunk_px: int
    crew: Crew
    worker_limit: int | None
    here_limit: int | None

    @property
    def beside(self) -> int:
        """Bytes of a process without any chunk."""
        return PROCESS_BYTES + self.shared

    @property
    def per_process(self) -> int:
        """Bytes of a worker process with all its chunks at their peak."""
        return self.beside + self.crew.threads * self.per_chunk

    @property
    def here(self) -> int:
        """Bytes on this machine: of all workers that are here, and of the driver beside them."""
        if self.crew.is_driver:
            return self.per_process
        return self.beside + (self.crew.processes * self.per_process if self.crew.is_here else 0)

    def check(self, name: str) -> None:
        """Refuse what cannot fit.

        Raises
        ------
        ResourceError : `plan-too-big`, with the setting that would fit.
        """
        if self.worker_limit is not None and self.per_process > self.worker_limit * SAFE_SHARE:
            many = "a chunk needs" if self.crew.threads == 1 else f"{self.crew.threads} chunks at once need"
            what = f"{many} {gb(self.per_process)}, workers have {gb(self.worker_limit)}"
            raise ResourceError("plan-too-big", what, where=name, fix=self._worker_advice(self.worker_limit))
        if self.here_limit is not None and self.here > self.here_limit:
            whose = f"{self.crew.threads} workers" if self.crew.is_driver else f"{self.crew.processes} worker processes"
            what = f"{whose} need {gb(self.here)}, {gb(self.here_limit)} may be used"
            raise ResourceError("plan-too-big", what, where=name, fix=self._machine_advice(self.here_limit))

    def _worker_advice(self, limit: int) -> str:
        enough = math.ceil(10 * self.per_process / SAFE_SHARE / 1e9) / 10
        smaller = self._smaller_chunk((limit * SAFE_SHARE - self.beside) / self.crew.threads)
        choices = [f"chunk_px {smaller}"] if smaller else []
        if self.crew.threads > 1 and self.beside + self.per_chunk <= limit * SAFE_SHARE:
            choices.append("threads 1")
        return f"Use {' or '.join([*choices, f'memory_gb >= {enough:g}'])}."

    def _machine_advice(self, limit: int) -> str:
        if not self.crew.is_driver:
            fits = int((limit - self.beside) // self.per_process)
            if fits >= 1:
                return f"Use --cluster local:{fits}." if self.crew.is_known else f"Use --workers {fits}."
        left = limit - self.beside * (1 if self.crew.is_driver else 2)
        if self.crew.is_driver and self.per_chunk <= left:
            return f"Use --workers {left // self.per_chunk}."
        smaller = self._smaller_chunk(left)
        if smaller:
            return f"Set grid.chunk_px = {smaller} with one worker, or give the plan more memory (limits.memory_gb)."
        least = gb(self.per_chunk + self.beside)
        return f"Give the plan at least {least} (limits.memory_gb), or use fewer bands or a smaller window."

    def _smaller_chunk(self, left: float) -> int | None:
        """The largest usual chunk of which one fits into `left` bytes; its halo stays."""
        for chunk_px in (4096, 2048, 1024, 512, 256):
            share = ((chunk_px + 0.3 * self.chunk_px) / (1.3 * self.chunk_px)) ** 2
            if chunk_px < self.chunk_px and self.per_chunk * share <= left:
                return chunk_px
        return None


def memory_of(
    inputs: RunInputs, segmenter: Segmenter, covered: Coverage, *, prompts: int, cluster: ClusterSpec, crew: Crew
) -> Memory:
    """Memory that a run takes on a cluster."""
    asked = inputs.request.spec.limits.memory_gb
    is_asked_for = cluster.kind in ("slurm", "pbs", "kubernetes")
    worker_gb = cluster.asked_gb if is_asked_for else cluster.memory_gb
    free = int(asked * 1e9) if asked else int(psutil.virtual_memory().available * SAFE_SHARE)
    return Memory(
        per_chunk=_chunk_bytes(inputs, segmenter, covered, prompts=prompts),
        shared=segmenter.info.fixed_bytes + edge_budget(inputs, prompts=prompts),
        chunk_px=inputs.grid.chunk_px,
        crew=crew,
        worker_limit=None if worker_gb is None else int(worker_gb * 1e9),
        here_limit=free if crew.is_here else None,
    )


def _chunk_bytes(inputs: RunInputs, segmenter: Segmenter, covered: Coverage, *, prompts: int) -> int:
    """Estimate of the peak of one chunk task in bytes, the largest chunk of the run taken; weights, which are shared, apart."""
    spec, grid = inputs.request.spec, inputs.grid
    padded, deepest = covered.largest_px, covered.deepest
    interior = min(grid.chunk_px, grid.shape[0]) * min(grid.chunk_px, grid.shape[1])
    bands = len(spec.source.bands)
    scene = padded * (4 * bands + 2 + 3 * deepest)  # the composite, its validity, and who gave each pixel
    reading = padded * (4 * (bands + 1) + 8 + 4)  # one scene on its way in, float32, with its source block
    if spec.time.composite == "median":
        held = min(MEDIAN_BYTES, deepest * padded * 4 * (bands + 1))
        reading += held + held // bands
    keeps = spec.cache.features
    scoring = inference_bytes(
        segmenter.info, grid, bands=bands, prompts=prompts, batch=spec.model.fixed_batch, keeps_features=keeps
    )
    blending = interior * (2 * prompts + deepest) + scoring - segmenter.info.fixed_bytes
    return int(scene + max(reading, blending))


def gb(count: float) -> str:
    """Bytes for people: `1.2 GB`, `34.0 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
