"""How much of its edges a process keeps for the neighbours of a chunk, and how wide a strip of chunks that is enough for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.grid import Grid
from eo_batch.models.inference import made_up_windows, stands_alone
from eo_batch.models.segmenter import FLOAT_BYTES, Segmenter
from eo_batch.models.shared_windows import SharedWindows
from eo_batch.run.manifest import RunInputs
from eo_batch.run.order import Piece, pieces

SHARED_BYTES = 1_000_000_000
"""Most memory of a process for answers that its chunks share."""
SHARE_OF_LIMIT = 8
"""Where `limits.memory_gb` is given: at most one part in so many of it."""
IN_FLIGHT = 4
"""Chunks whose edges are kept beside those of a whole row: they are being computed, or lie where one row meets the next."""


def share_windows(inputs: RunInputs, segmenter: Segmenter, prompt_features: Any, *, prompts: int) -> SharedWindows:
    """What the chunks of a run share in this process; nothing where that could change a byte."""
    budget = edge_budget(inputs, prompts=prompts)
    if budget and not answers_alone(segmenter, prompt_features, inputs, prompts):
        budget = 0
    return SharedWindows(inputs.grid, budget=budget)


def answers_alone(segmenter: Segmenter, prompt_features: Any, inputs: RunInputs, prompts: int) -> bool:
    """Whether a window is answered alike in any company; asked once per process."""
    spec, window_px = inputs.request.spec, inputs.grid.window_px
    batch, bands = spec.model.fixed_batch, len(spec.source.bands)
    if batch == 1:
        return True
    key = (segmenter.info.digest, segmenter.info.device, batch, bands, window_px, prompts)
    with _probing:
        if key not in _known:

            def ask(images: NDArray[np.float32]) -> NDArray[np.float32]:
                return segmenter.decode(segmenter.encode_images(images), prompt_features)

            images = made_up_windows(segmenter, bands=bands, window_px=window_px, batch=batch)
            images[2:] = images[1]  # where equal windows are computed once, two are enough
            _known[key] = stands_alone(images, ask(images).copy(), ask)
        return _known[key]


def pieces_of(inputs: RunInputs, *, processes: int) -> Iterator[Piece]:
    """All chunks of a run by what one of so many processes computes in one go: in a piece no window is computed twice."""
    return pieces(len(inputs.steps), inputs.grid.chunks_yx, processes=processes, widest=_widest(inputs))


def edge_budget(inputs: RunInputs, *, prompts: int) -> int:
    """Bytes of edges that a process holds at most: those of a row of chunks, or as much of them as there is memory for."""
    grid = inputs.grid
    if grid.chunks_yx == (1, 1):
        return 0
    ny, nx = grid.chunks_yx
    return min(_most(inputs), min(nx + IN_FLIGHT, ny * nx) * _edge_bytes(grid, prompts))


def _widest(inputs: RunInputs) -> int:
    """Chunks that lie abreast in a strip so that all that one row leaves to the next can be kept; at least 1."""
    return max(1, _most(inputs) // _edge_bytes(inputs.grid, len(inputs.request.spec.prompts)) - IN_FLIGHT)


_known: dict[tuple[Any, ...], bool] = {}
_probing = threading.Lock()


def _most(inputs: RunInputs) -> int:
    limit = inputs.request.spec.limits.memory_gb
    return SHARED_BYTES if limit is None else min(SHARED_BYTES, int(limit * 1e9) // SHARE_OF_LIMIT)


def _edge_bytes(grid: Grid, prompts: int) -> int:
    """Bytes that a chunk leaves to the chunks below: of windows across its lower edge what lies there, those at corners whole."""
    beyond = range(grid.window_px - 1, 0, -grid.stride_px)  # how far windows across an edge reach, at most
    along = -(-grid.chunk_px // grid.stride_px)
    return FLOAT_BYTES * prompts * grid.window_px * (sum(beyond) * along + len(beyond) ** 2 * grid.window_px)
