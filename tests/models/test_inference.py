"""Windowed inference: whole against chunked, against a brute-force blend in float64, and what happens to bad answers."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_batch.core.errors import IntegrityError, ModelError
from eo_batch.core.grid import Grid, Span, stride_of
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models.fill import mirror_fill
from eo_batch.models.inference import inference_bytes, probe_segmenter, score_chunk, window_weights
from eo_batch.models.probe import WindowMean
from eo_batch.models.segmenter import SegmenterInfo

PROMPTS = PromptSet((Prompt("water"), Prompt("building")))


@dataclass(frozen=True)
class World:
    """Pixels around the absolute origin, larger than any padded chunk that the tests make."""

    start: int
    pixels: np.ndarray
    valid: np.ndarray
    inside: np.ndarray

    def cut(self, rows: Span, cols: Span) -> tuple[slice, slice]:
        return slice(rows.start - self.start, rows.stop - self.start), slice(cols.start - self.start, cols.stop - self.start)


def make_world(seed: int = 0, *, missing: float = 0.3, size: int = 1100, start: int = -400) -> World:
    rng = np.random.default_rng(seed)
    pixels = rng.random((2, size, size), dtype=np.float32)
    valid = rng.random((size, size)) >= missing
    valid[size // 3 : size // 2, size // 2 : size // 2 + 90] = False
    inside = np.ones((size, size), bool)
    inside[:, : size // 2 - 40] &= rng.random((size, size // 2 - 40)) > 0.5
    pixels[:, ~valid] = np.nan
    return World(start, pixels, valid, inside)


ROWS, COLS = Span(-37, 173), Span(105, 330)


def grid_of(chunk_px: int, *, window_px: int = 48, stride_px: int = 36, rows: Span = ROWS, cols: Span = COLS) -> Grid:
    return Grid("EPSG:32631", 10.0, rows, cols, chunk_px, window_px, stride_px)


def score_all(world: World, grid: Grid, *, segmenter=None, batch: int = 4, order: int | None = None) -> np.ndarray:
    segmenter = segmenter or WindowMean(("green", "nir"), cost=2)
    features = segmenter.encode_prompts(PROMPTS)
    chunks = list(grid.chunks(0))
    if order is not None:
        random.Random(order).shuffle(chunks)
    out = np.full((2, *grid.shape), -99, np.float32)
    for chunk in chunks:
        padded, interior = world.cut(chunk.padded_rows, chunk.padded_cols), world.cut(chunk.rows, chunk.cols)
        out[:, chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)] = score_chunk(
            segmenter,
            features,
            pixels=world.pixels[:, *padded],
            valid=world.valid[padded],
            inside=world.inside[interior],
            grid=grid,
            chunk=chunk,
            prompts=2,
            batch=batch,
        )
    return out


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def whole(world) -> np.ndarray:
    return score_all(world, grid_of(300))


@pytest.mark.parametrize("chunk_px", [64, 65, 100, 149, 170, 224])
def test_chunk_size_cannot_change_a_bit(world, whole, chunk_px):
    assert score_all(world, grid_of(chunk_px)).tobytes() == whole.tobytes()


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_batch_size_cannot_change_a_bit_of_a_segmenter_that_ignores_its_batch(world, whole, batch):
    assert score_all(world, grid_of(100), batch=batch).tobytes() == whole.tobytes()


def test_order_of_chunks_cannot_change_a_bit(world, whole):
    assert score_all(world, grid_of(64), order=7).tobytes() == whole.tobytes()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    window_px=st.integers(16, 61),
    overlap=st.floats(0, 0.9),
    chunk_px=st.integers(17, 120),
    missing=st.sampled_from([0.0, 0.2, 0.97]),
    corner=st.tuples(st.integers(-90, 90), st.integers(-90, 90)),
)
def test_any_window_overlap_and_chunk_give_the_bits_of_one_chunk(seed, window_px, overlap, chunk_px, missing, corner):
    small = make_world(seed, missing=missing, size=480, start=-180)
    rows, cols = Span(corner[0], corner[0] + 83), Span(corner[1], corner[1] + 71)
    options = {"window_px": window_px, "stride_px": stride_of(window_px, overlap), "rows": rows, "cols": cols}
    segmenter = WindowMean(("green", "nir"), cost=1)
    one = score_all(small, grid_of(400, **options), segmenter=segmenter)
    many = score_all(small, grid_of(chunk_px, **options), segmenter=segmenter, batch=3)
    assert one.tobytes() == many.tobytes()


def test_the_probe_segmenter_would_show_a_seam_if_windows_were_anchored_at_the_chunk(world, whole):
    # The same pixels with the lattice shifted by a few pixels: if this gave equal logits, the tests above could not fail.
    moved = World(world.start + 5, world.pixels, world.valid, world.inside)
    shifted = score_all(moved, grid_of(300, rows=Span(-32, 178), cols=Span(110, 335)))
    assert np.isnan(shifted).tobytes() == np.isnan(whole).tobytes()
    assert np.nanmax(np.abs(shifted - whole)) > 0.05


@pytest.mark.parametrize(("window_px", "stride_px"), [(48, 36), (40, 40), (50, 5), (33, 20)])
def test_blend_equals_a_brute_force_blend_in_float64(window_px, stride_px):
    world = make_world(3, size=420, start=-150)
    grid = grid_of(64, window_px=window_px, stride_px=stride_px, rows=Span(-21, 70), cols=Span(3, 91))
    segmenter = WindowMean(("green", "nir"))
    object.__setattr__(segmenter, "info", replace(segmenter.info, pixelwise=True))  # missing pixels hold the window's mean
    features = segmenter.encode_prompts(PROMPTS)
    weighted, total = np.zeros((2, 420, 420)), np.zeros((420, 420))
    phase = np.abs((np.arange(window_px) + 0.5) / window_px * 2 - 1)
    ramp = 0.01 + 0.99 * (1 - phase) ** 2 * (3 - 2 * (1 - phase))
    for row in range(-150, 270 - window_px):
        for col in range(-150, 270 - window_px):
            if row % stride_px or col % stride_px:
                continue
            here = world.cut(Span(row, row + window_px), Span(col, col + window_px))
            valid = world.valid[here]
            if not valid.any():
                continue
            image = world.pixels[:, *here].astype(np.float64)
            mean = np.array([band[valid].mean() for band in image])
            image = np.where(valid, image, mean[:, None, None]).astype(np.float32)
            answer = segmenter.decode(segmenter.encode_images(image[None]), features)[0]
            weight = np.outer(ramp, ramp)
            weighted[:, *here] += weight * answer
            total[here] += weight
    here = world.cut(grid.rows, grid.cols)
    kept = world.valid[here] & world.inside[here]
    expected = np.where(kept, weighted[:, *here] / np.where(kept, total[here], 1), np.nan)
    np.testing.assert_allclose(score_all(world, grid, segmenter=segmenter), expected, atol=2e-6)


@pytest.mark.parametrize(("axis", "observed"), [(0, 30), (1, 25), (0, 47)])
def test_a_straight_edge_is_mirrored_as_numpy_pads(axis, observed):
    image = np.random.default_rng(1).random((3, 48, 48), dtype=np.float32)
    missing = np.zeros((48, 48), bool)
    seen = [slice(None)] * 3
    seen[axis + 1] = slice(0, observed)
    missing[tuple(slice(observed, None) if a == axis else slice(None) for a in range(2))] = True
    widths = [(0, 0)] * 3
    widths[axis + 1] = (0, 48 - observed)
    expected = np.pad(image[tuple(seen)], widths, mode="reflect")
    image[:, missing] = np.nan
    mirror_fill(image, missing)
    assert np.array_equal(image, expected)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), missing=st.floats(0.02, 0.99), height=st.integers(3, 14), width=st.integers(3, 14))
def test_every_filled_pixel_is_the_mirror_of_a_nearest_observed_one_or_that_one(seed, missing, height, width):
    rng = np.random.default_rng(seed)
    gone = rng.random((height, width)) < missing
    gone[rng.integers(height), rng.integers(width)] = False
    image = np.arange(2 * height * width, dtype=np.float32).reshape(2, height, width)
    filled = image.copy()
    filled[:, gone] = np.nan
    mirror_fill(filled, gone)
    assert np.array_equal(filled[:, ~gone], image[:, ~gone])
    observed = np.argwhere(~gone)
    for y, x in np.argwhere(gone):
        squared = ((observed - (y, x)) ** 2).sum(axis=1)
        allowed = []
        for qy, qx in observed[squared == squared.min()]:
            far_y, far_x = 2 * qy - y, 2 * qx - x
            mirrored = 0 <= far_y < height and 0 <= far_x < width and not gone[far_y, far_x]
            allowed.append(image[:, far_y, far_x] if mirrored else image[:, qy, qx])
        assert any(np.array_equal(filled[:, y, x], values) for values in allowed)


def test_a_segmenter_that_reads_neighbours_never_sees_a_flat_border():
    @dataclass(frozen=True)
    class Watching(WindowMean):
        seen: list = field(default_factory=list)

        def encode_images(self, images):
            self.seen.append(images.copy())
            return super().encode_images(images)

    half = make_world(2, missing=0.0)
    half.pixels[...] = np.random.default_rng(2).random(half.pixels.shape, dtype=np.float32)
    half.valid[...] = True
    half.valid[:, 190 - half.start :] = False
    segmenter = Watching(("green", "nir"))
    score_all(half, grid_of(300), segmenter=segmenter)
    assert min(np.ptp(window[0], axis=(0, 1)) for images in segmenter.seen for window in images) > 0.5
    assert min(np.ptp(window[0, :, column]) for images in segmenter.seen for window in images for column in (0, -1)) > 0.5


def test_nan_marks_exactly_what_is_not_observed_or_not_inside(world, whole):
    here = world.cut(grid_of(300).rows, grid_of(300).cols)
    assert np.array_equal(np.isnan(whole[0]), ~(world.valid[here] & world.inside[here]))


def test_pixels_outside_the_region_still_give_context(world, whole):
    blind = World(world.start, world.pixels, world.valid, world.inside.copy())
    rows, cols = blind.cut(Span(0, 60), Span(200, 260))
    blind.inside[rows, cols] = False
    cut = score_all(blind, grid_of(100))
    kept = ~np.isnan(cut)
    assert np.array_equal(cut[kept], whole[kept])
    assert kept.sum() < (~np.isnan(whole)).sum()


def test_values_under_missing_pixels_cannot_matter(world, whole):
    other = world.pixels.copy()
    other[:, ~world.valid] = 7e30
    assert score_all(World(world.start, other, world.valid, world.inside), grid_of(100)).tobytes() == whole.tobytes()


def test_a_chunk_without_an_observation_asks_no_segmenter():
    @dataclass(frozen=True)
    class Unwilling(WindowMean):
        def encode_images(self, images):
            raise AssertionError("asked")

    world = make_world()
    world.valid[:] = False
    assert np.isnan(score_all(world, grid_of(100), segmenter=Unwilling(("green", "nir")))).all()


@pytest.mark.parametrize(("window_px", "stride_px"), [(1, 1), (16, 16), (16, 12), (17, 5), (64, 6), (512, 384), (33, 32)])
def test_weights_over_every_pixel_are_positive_and_sum_to_one(window_px, stride_px):
    weights = window_weights(window_px, stride_px)
    total = np.zeros((stride_px, stride_px))
    for row in range(window_px):
        np.add.at(total[row % stride_px], np.arange(window_px) % stride_px, weights[row].astype(np.float64))
    assert weights.min() > 0
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert np.array_equal(weights, weights.T)


def test_weights_fall_towards_the_edges_of_a_window():
    line = window_weights(512, 384)[256]
    assert (np.diff(line[:128]) > 0).all()
    assert (line[128:384] == line[256]).all()


def test_without_overlap_the_logits_are_those_of_the_window_to_the_bit():
    world = make_world(5, missing=0.0, size=200, start=-60)
    grid = grid_of(64, window_px=32, stride_px=32, rows=Span(0, 32), cols=Span(32, 64))
    segmenter = WindowMean(("green", "nir"))
    here = world.cut(grid.rows, grid.cols)
    world.valid[here] = world.inside[here] = True
    pixels = np.nan_to_num(world.pixels[:, *here])
    answer = segmenter.decode(segmenter.encode_images(pixels[None]), segmenter.encode_prompts(PROMPTS))[0]
    filled = World(world.start, np.nan_to_num(world.pixels), world.valid, world.inside)
    assert np.array_equal(score_all(filled, grid, segmenter=segmenter), answer)


@dataclass(frozen=True)
class Broken(WindowMean):
    """Breaks its answers in one stated way."""

    fault: str = "nan"

    def decode(self, image_features, prompt_features):
        answers = super().decode(image_features, prompt_features).copy()
        if self.fault == "nan":
            answers[1, 0, 3, 4:6] = np.nan
        if self.fault == "inf":
            answers[1, 0, 3, 4] = np.inf
        if self.fault == "shape":
            return answers[:, :1]
        if self.fault == "dtype":
            return answers.astype(np.float64)
        if self.fault == "list":
            return answers.tolist()
        if self.fault == "memory":
            raise MemoryError
        return answers


@pytest.mark.parametrize(("fault", "count"), [("nan", "2 of"), ("inf", "1 of")])
def test_answers_that_are_not_finite_name_chunk_window_and_count(world, fault, count):
    with pytest.raises(ModelError) as caught:
        score_all(world, grid_of(300), segmenter=Broken(("green", "nir"), fault=fault))
    assert caught.value.code == "model-not-finite"
    second = grid_of(300).windows(grid_of(300).chunk(0, 0, 0))[1]
    assert f"chunk t0000/y0000_x0000, window ({second.row}, {second.col})" in str(caught.value)
    assert count in str(caught.value)


@pytest.mark.parametrize("fault", ["shape", "dtype", "list"])
def test_answers_of_another_shape_or_type_are_refused(world, fault):
    with pytest.raises(ModelError) as caught:
        score_all(world, grid_of(300), segmenter=Broken(("green", "nir"), fault=fault))
    assert caught.value.code == "model-shape"
    assert "(4, 2, 48, 48)" in str(caught.value)


def test_memory_that_runs_out_is_a_model_error_with_advice(world):
    with pytest.raises(ModelError, match=r"model\.batch") as caught:
        score_all(world, grid_of(300), segmenter=Broken(("green", "nir"), fault="memory"))
    assert (caught.value.code, caught.value.exit_status) == ("model-oom", 7)


def test_probe_passes_a_segmenter_that_ignores_its_batch():
    report = probe_segmenter(WindowMean(("green", "nir"), cost=1), PROMPTS, ("green", "nir"), window_px=32, batch=4)
    assert report.position_independent
    assert report.logit_range[0] < 0 < report.logit_range[1]


def test_probe_sees_an_answer_that_depends_on_batch_mates():
    @dataclass(frozen=True)
    class Sociable(WindowMean):
        def encode_images(self, images):
            return super().encode_images(images) + images.mean(dtype=np.float64).astype(np.float32)

    report = probe_segmenter(Sociable(("green", "nir")), PROMPTS, ("green", "nir"), window_px=32, batch=4)
    assert not report.position_independent


def test_probe_refuses_a_segmenter_that_answers_differently_the_second_time():
    @dataclass(frozen=True)
    class Moody(WindowMean):
        mood: list = field(default_factory=list)

        def encode_images(self, images):
            self.mood.append(1)
            return super().encode_images(images) + np.float32(1e-6 * len(self.mood))

    with pytest.raises(IntegrityError) as caught:
        probe_segmenter(Moody(("green", "nir")), PROMPTS, ("green", "nir"), window_px=32, batch=2)
    assert caught.value.code == "nondeterministic-output"


def test_probe_refuses_answers_that_are_not_finite():
    with pytest.raises(ModelError, match="model-not-finite"):
        probe_segmenter(Broken(("green", "nir")), PROMPTS, ("green", "nir"), window_px=32, batch=2)


def test_memory_estimate_grows_with_batch_and_covers_the_arrays_that_must_exist():
    info = SegmenterInfo(name="x", algorithm="x/1", digest="0", fixed_bytes=1000, pixel_bytes=8, prompt_pixel_bytes=4)
    grid = grid_of(256)
    small, large = (inference_bytes(info, grid, bands=4, prompts=3, batch=batch) for batch in (1, 8))
    assert small >= 3 * 256 * 256 * 4 + 48 * 48 * 4 * (4 + 3) + 1000
    assert large - small == 7 * 48 * 48 * (4 * 4 + 8 + 3 * (4 + 4))


@pytest.mark.parametrize(("prompts", "batch"), [(64, 1), (64, 4), (8, 16)])
def test_scoring_takes_no_more_memory_than_was_estimated(prompts, batch):
    grid, segmenter = (
        Grid("EPSG:32631", 10.0, Span(0, 512), Span(0, 512), 256, 128, 96),
        WindowMean(("green", "nir"), window_px=128),
    )
    chunk, asked = grid.chunk(0, 0, 0), PromptSet(tuple(Prompt(f"prompt {number}") for number in range(prompts)))
    features = segmenter.encode_prompts(asked)
    pixels, valid = np.ones((2, *chunk.padded_shape), np.float32), np.ones(chunk.padded_shape, bool)
    named = {"valid": valid, "inside": np.ones(chunk.shape, bool), "grid": grid, "chunk": chunk}
    tracemalloc.start()
    try:
        score_chunk(segmenter, features, pixels=pixels, prompts=prompts, batch=batch, **named)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= inference_bytes(segmenter.info, grid, bands=2, prompts=prompts, batch=batch)


def test_features_from_elsewhere_are_asked_for_batch_by_batch_and_give_the_same_bits(world):
    grid, segmenter, asked = grid_of(64), WindowMean(("green", "nir"), cost=2), []

    def encode(images: np.ndarray) -> np.ndarray:
        asked.append(images.shape)
        return segmenter.encode_images(images)

    chunk = next(grid.chunks(0))
    padded, interior = world.cut(chunk.padded_rows, chunk.padded_cols), world.cut(chunk.rows, chunk.cols)
    places = {"pixels": world.pixels[:, *padded], "valid": world.valid[padded], "inside": world.inside[interior]}
    features = segmenter.encode_prompts(PROMPTS)
    plain, hooked = (
        score_chunk(segmenter, features, **places, grid=grid, chunk=chunk, prompts=2, batch=3, encode=how)
        for how in (None, encode)
    )
    assert plain.tobytes() == hooked.tobytes()
    assert set(asked) == {(3, 2, 48, 48)}


@dataclass(frozen=True)
class Forgetful(WindowMean):
    """Gives back what it kept, but for the last bits."""

    def load_features(self, windows):
        return super().load_features(windows).astype(np.float16).astype(np.float32)


def test_probe_accepts_features_that_come_back_as_they_were():
    probe_segmenter(WindowMean(("green",)), PROMPTS, ("green",), window_px=16, batch=2, keeps_features=True)


def test_probe_refuses_a_segmenter_that_keeps_its_features_badly():
    probe_segmenter(Forgetful(("green",)), PROMPTS, ("green",), window_px=16, batch=2)
    with pytest.raises(IntegrityError, match="features that were kept gave other logits") as caught:
        probe_segmenter(Forgetful(("green",)), PROMPTS, ("green",), window_px=16, batch=2, keeps_features=True)
    assert caught.value.code == "nondeterministic-output"


def test_memory_counts_a_batch_of_kept_features():
    info, grid = replace(WindowMean(("green",)).info, feature_bytes=1000), grid_of(64)
    with_them, without = (
        inference_bytes(info, grid, bands=1, prompts=1, batch=4, keeps_features=keeps) for keeps in (True, False)
    )
    assert with_them - without == 5000
