"""Windows that neighbours share: the same bits as computed alone, each computed once, and never more held than the budget."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from eo_batch.core.errors import ModelError
from eo_batch.core.grid import Chunk, Grid, Span
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models.inference import score_chunk
from eo_batch.models.probe import WindowMean
from eo_batch.models.shared_windows import SharedWindows

PROMPTS = PromptSet((Prompt("water"), Prompt("building")))
ROWS, COLS = Span(-37, 173), Span(105, 330)
START, SIZE = -200, 800
PLENTY = 10**9


def grid_of(chunk_px: int) -> Grid:
    return Grid("EPSG:32631", 10.0, ROWS, COLS, chunk_px, 48, 36)


@dataclass(frozen=True)
class Counting(WindowMean):
    """Counts how often it is shown each window, told by its first pixel; fails where it is told to."""

    seen: Counter = field(default_factory=Counter)
    fails: set = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def encode_images(self, images):
        with self.lock:
            for name in {float(image[0, 0, 0]) for image in images}:
                self.seen[name] += 1
            if self.fails:
                self.fails.clear()
                raise ModelError("model-oom", "no room", where="here", fix="none")
        return super().encode_images(images)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(5).random((2, SIZE, SIZE), dtype=np.float32)


def score(pixels, segmenter, chunk: Chunk, grid: Grid, shared: SharedWindows | None, *, batch: int = 3) -> np.ndarray:
    rows = slice(chunk.padded_rows.start - START, chunk.padded_rows.stop - START)
    cols = slice(chunk.padded_cols.start - START, chunk.padded_cols.stop - START)
    visit = None if shared is None else shared.visit(chunk)
    inputs = {
        "pixels": pixels[:, rows, cols],
        "valid": np.ones(chunk.padded_shape, bool),
        "inside": np.ones(chunk.shape, bool),
    }
    places = {"grid": grid, "chunk": chunk, "prompts": len(PROMPTS), "batch": batch}
    features = segmenter.encode_prompts(PROMPTS)
    if visit is None:
        return score_chunk(segmenter, features, **inputs, **places)
    with visit:
        return score_chunk(segmenter, features, **inputs, **places, visit=visit)


def score_all(pixels, grid: Grid, *, segmenter=None, budget: int | None = PLENTY, threads: int = 1, order: int | None = None):
    """Logits of all chunks, and what they shared."""
    segmenter = segmenter or Counting(("green", "nir"))
    shared = None if budget is None else SharedWindows(grid, budget=budget)
    chunks = list(grid.chunks(0))
    if order is not None:
        random.Random(order).shuffle(chunks)
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda chunk: score(pixels, segmenter, chunk, grid, shared), chunks))
    out = np.empty((len(PROMPTS), *grid.shape), np.float32)
    for chunk, part in zip(chunks, parts, strict=True):
        out[:, chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)] = part
    return out, shared


@pytest.mark.parametrize("chunk_px", [20, 48, 70, 130, 300])
@pytest.mark.parametrize("threads", [1, 4])
def test_shared_windows_give_the_bits_of_windows_computed_alone(pixels, chunk_px, threads):
    alone, _ = score_all(pixels, grid_of(chunk_px), budget=None)
    together, _ = score_all(pixels, grid_of(chunk_px), threads=threads)
    assert together.tobytes() == alone.tobytes()


@pytest.mark.parametrize("chunk_px", [20, 48, 70, 130])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_window_is_computed_once(pixels, chunk_px, threads):
    segmenter = Counting(("green", "nir"))
    grid = grid_of(chunk_px)
    score_all(pixels, grid, segmenter=segmenter, threads=threads)
    assert len(segmenter.seen) == grid.window_counts[1]
    assert set(segmenter.seen.values()) == {1}


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_chunks_gives_the_same_bits_and_computes_no_window_twice(pixels, seed):
    segmenter = Counting(("green", "nir"))
    alone, _ = score_all(pixels, grid_of(48), budget=None)
    together, shared = score_all(pixels, grid_of(48), segmenter=segmenter, order=seed, threads=3)
    assert together.tobytes() == alone.tobytes()
    assert set(segmenter.seen.values()) == {1}
    assert shared.held == 0


def test_nothing_is_held_when_all_chunks_had_their_turn(pixels):
    _, shared = score_all(pixels, grid_of(70))
    assert shared.most_held > 0
    assert shared.held == 0


@pytest.mark.parametrize("budget", [1, 30_000, 100_000])
@pytest.mark.parametrize("threads", [1, 4])
def test_never_more_is_held_than_the_budget(pixels, budget, threads):
    alone, _ = score_all(pixels, grid_of(48), budget=None)
    together, shared = score_all(pixels, grid_of(48), budget=budget, threads=threads, order=1)
    assert shared.most_held <= budget
    assert together.tobytes() == alone.tobytes()


def test_a_small_budget_still_shares_what_it_can(pixels):
    alone, some, all_of_them = (Counting(("green", "nir")) for _ in range(3))
    for segmenter, budget in ((alone, None), (some, 100_000), (all_of_them, PLENTY)):
        score_all(pixels, grid_of(48), segmenter=segmenter, budget=budget)
    assert all_of_them.seen.total() < some.seen.total() < alone.seen.total()


def test_what_a_failing_neighbour_claimed_is_computed_by_who_waits_for_it(pixels):
    grid = grid_of(130)
    first, second = grid.chunk(0, 0, 0), grid.chunk(0, 0, 1)
    shared = SharedWindows(grid, budget=PLENTY)
    has_claimed, may_fail = threading.Event(), threading.Event()

    @dataclass(frozen=True)
    class Failing(WindowMean):
        def encode_images(self, images):
            has_claimed.set()
            assert may_fail.wait(60)
            raise ModelError("model-oom", "no room", where="here", fix="none")

    @dataclass(frozen=True)
    class Watching(WindowMean):
        def encode_images(self, images):
            may_fail.set()  # by now this chunk has met what the other claimed
            return super().encode_images(images)

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(score, pixels, Failing(("green", "nir")), first, grid, shared, batch=5)
        assert has_claimed.wait(60)
        found = score(pixels, Watching(("green", "nir")), second, grid, shared, batch=5)
        with pytest.raises(ModelError, match="no room"):
            lost.result()
    assert found.tobytes() == score(pixels, WindowMean(("green", "nir")), second, grid, None, batch=5).tobytes()


def test_a_chunk_that_fails_leaves_nothing_claimed(pixels):
    grid = grid_of(70)
    shared = SharedWindows(grid, budget=PLENTY)
    failing = Counting(("green", "nir"), fails={True})
    with pytest.raises(ModelError):
        score(pixels, failing, grid.chunk(0, 0, 0), grid, shared)
    for chunk in list(grid.chunks(0))[1:]:
        alone = score(pixels, WindowMean(("green", "nir")), chunk, grid, None)
        assert score(pixels, WindowMean(("green", "nir")), chunk, grid, shared).tobytes() == alone.tobytes()
    assert shared.held == 0


def test_an_answer_is_taken_only_where_the_window_holds_the_same_pixels(pixels):
    grid = grid_of(130)
    shared = SharedWindows(grid, budget=PLENTY)
    other = pixels + np.float32(0.25) * np.random.default_rng(1).random((SIZE, SIZE), dtype=np.float32)
    score(other, WindowMean(("green", "nir")), grid.chunk(0, 0, 0), grid, shared)
    second = grid.chunk(0, 0, 1)
    alone = score(pixels, WindowMean(("green", "nir")), second, grid, None)
    assert score(pixels, WindowMean(("green", "nir")), second, grid, shared).tobytes() == alone.tobytes()


def test_a_chunk_that_comes_a_second_time_gives_the_same_bits(pixels):
    grid = grid_of(70)
    _, shared = score_all(pixels, grid)
    for chunk in grid.chunks(0):
        alone = score(pixels, WindowMean(("green", "nir")), chunk, grid, None)
        assert score(pixels, WindowMean(("green", "nir")), chunk, grid, shared).tobytes() == alone.tobytes()
    assert shared.held <= shared.budget


def test_a_chunk_that_comes_again_does_not_wait_for_a_part_that_is_not_kept_for_it(pixels):
    grid = grid_of(130)
    shared = SharedWindows(grid, budget=PLENTY)
    first, again = grid.chunk(0, 0, 0), grid.chunk(0, 0, 1)
    with shared.visit(again):
        pass
    corner = max(grid.windows(first), key=lambda window: len(grid.chunks_touching(window)))
    image = pixels[:, :48, :48]
    with shared.visit(first) as visit, shared.visit(again) as other:
        assert len(grid.chunks_touching(corner)) == 4
        assert visit.claim(corner, image).is_mine
        assert other.claim(corner, image).is_mine


def test_time_steps_do_not_share(pixels):
    grid = grid_of(130)
    shared = SharedWindows(grid, budget=PLENTY)
    segmenter = Counting(("green", "nir"))
    for t in range(3):
        for iy, ix in np.ndindex(grid.chunks_yx):
            score(pixels, segmenter, grid.chunk(t, iy, ix), grid, shared)
    assert set(segmenter.seen.values()) == {3}
    assert shared.held == 0


def test_chunks_that_a_window_touches_are_those_whose_windows_it_is_among():
    for chunk_px in (20, 48, 70, 300):
        grid = grid_of(chunk_px)
        touched = {}
        for chunk in grid.chunks(0):
            for window in grid.windows(chunk):
                touched.setdefault((window.row, window.col), []).append((chunk.iy, chunk.ix))
        windows = {(window.row, window.col): window for chunk in grid.chunks(0) for window in grid.windows(chunk)}
        assert {place: grid.chunks_touching(window) for place, window in windows.items()} == touched
