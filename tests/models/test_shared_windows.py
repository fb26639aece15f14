"""Windows that neighbours share: the same bits as computed alone, each computed once, and never more held than the budget."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_pixels_that_differ_are_told_apart_whatever_their_crc(pixels):
    grid = grid_of(130)
    first, second = grid.chunk(0, 0, 0), grid.chunk(0, 0, 1)
    window = next(window for window in grid.windows(first) if grid.chunks_touching(window) == [(0, 0), (0, 1)])
    image = np.ascontiguousarray(pixels[:, :48, :48])
    other = image.copy()
    polynomial = np.array([0x41, 0x06, 0x71, 0xDB, 0x01], np.uint8)
    other.view(np.uint8).reshape(-1)[1000:1005] ^= polynomial
    assert crc32(image) == crc32(other)
    shared = SharedWindows(grid, budget=PLENTY)
    with shared.visit(first) as visit, shared.visit(second) as beside:
        assert visit.claim(window, image).is_mine
        assert beside.claim(window, other).is_mine


def test_a_chunk_in_two_visits_at_once_takes_no_part_that_was_kept_for_others(pixels):
    grid = grid_of(40)
    first, twice = grid.chunk(0, 0, 0), grid.chunk(0, 0, 1)
    corner = next(window for window in grid.windows(first) if len(grid.chunks_touching(window)) == 4)
    image = pixels[:, :48, :48]
    shared = SharedWindows(grid, budget=PLENTY)
    with shared.visit(first) as visit, shared.visit(twice) as again:
        mine, theirs = visit.claim(corner, image), again.claim(corner, image)
        with shared.visit(twice):
            pass  # its other visit ends first
        mine.publish(np.zeros((1, 48, 48), np.float32))
        assert theirs.wait() is None


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


@dataclass(frozen=True)
class Fickle(WindowMean):
    """Fails at some of its calls, with errors of all kinds."""

    calls: Iterator[int] = field(default_factory=count)
    fails_at: frozenset = frozenset()

    def encode_images(self, images):
        number = next(self.calls)
        if number in self.fails_at:
            raise (MemoryError, KeyboardInterrupt, SystemExit, ValueError)[number % 4]
        return super().encode_images(images)


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from([(16, 12), (16, 8), (24, 6), (12, 12)]),
    chunk_px=st.integers(5, 60),
    start=st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    batch=st.integers(1, 6),
    budget=st.sampled_from([0, 3_000, 40_000, PLENTY]),
    threads=st.integers(1, 5),
    is_pixelwise=st.booleans(),
    fails_at=st.frozensets(st.integers(0, 40), max_size=6),
    random=st.randoms(use_true_random=False),
)
def test_whatever_comes_and_goes_a_chunk_gets_the_bits_that_it_computes_alone(
    window, chunk_px, start, size, batch, budget, threads, is_pixelwise, fails_at, random
):
    rows, cols = (Span(first, first + length) for first, length in zip(start, size, strict=True))
    grid = Grid("EPSG:32631", 10.0, rows, cols, chunk_px, *window)
    random_pixels = np.random.default_rng(random.randrange(1000))
    scenes = random_pixels.random((2, 2, 400, 400), dtype=np.float32)  # a file may be there for one chunk and not for another
    valid = random_pixels.random((2, 400, 400)) > random.choice([0.0, 0.3, 0.9])
    steady = WindowMean(("green", "nir"))
    object.__setattr__(steady, "info", replace(steady.info, pixelwise=is_pixelwise))
    fickle = Fickle(("green", "nir"), fails_at=fails_at)
    object.__setattr__(fickle, "info", steady.info)
    shared, features = SharedWindows(grid, budget=budget), steady.encode_prompts(PROMPTS)
    chunks = list(grid.chunks(0))[:60]
    turns = [(chunk, int(random.random() < 0.2)) for chunk in chunks + random.sample(chunks, len(chunks) // 3)]
    random.shuffle(turns)  # some chunks twice, maybe at once

    def answer(turn, segmenter, visit=None):
        chunk, scene = turn
        cut = tuple(slice(span.start + 150, span.stop + 150) for span in (chunk.padded_rows, chunk.padded_cols))
        inputs = {"pixels": scenes[(scene, slice(None), *cut)], "valid": valid[(scene, *cut)]}
        where = {"grid": grid, "chunk": chunk, "inside": np.ones(chunk.shape, bool)}
        return score_chunk(segmenter, features, **inputs, **where, prompts=len(PROMPTS), batch=batch, visit=visit).tobytes()

    def take_turn(turn):
        while True:
            try:
                with shared.visit(turn[0]) as visit:
                    return answer(turn, fickle, visit)
            except BaseException:  # and again: each call fails once
                assert fails_at

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(take_turn, turns))
    assert found == [answer(turn, steady) for turn in turns]
    assert shared.most_held <= budget
    assert not any(edge.users or edge.answer is None for edge in shared._edges.values())
