"""Features of RemoteSAM that are kept: what comes back answers, to the bit, as what was computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tinysam import SIDE, load_tiny, make_tiny, prompts_of

from eo_batch.models.segmenter import feature_keeper

PROMPTS = prompts_of("bright field", "the ship on the left", "water")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class Ceiling:
    """In the place of outlines: leaves each window what its first pixel says."""

    model = SimpleNamespace(weight_bytes=0, call_bytes=0)

    def __init__(self) -> None:
        self.asked = 0

    def ceiling(self, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.asked += len(pictures)
        return np.stack([np.full(picture.shape[:2], picture[0, 0, 0] / 1000, np.float32) for picture in pictures])

    def as_dict(self) -> dict[str, str]:
        return {"kind": "test"}


def windows(count: int, *, side: int = SIDE) -> NDArray[np.float32]:
    return np.random.default_rng(count).uniform(0, 0.3, (count, 3, side, side)).astype(np.float32)


def through_memory(kept: list[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    """What a file would give back: the same numbers in memory of their own."""
    return [
        {name: np.frombuffer(part.tobytes(), part.dtype).reshape(part.shape) for name, part in window.items()} for window in kept
    ]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_kept_features_answer_as_computed_ones_in_every_precision(weights: Path, precision: str) -> None:
    segmenter = load_tiny(weights, precision=precision)
    prompts, computed = segmenter.encode_prompts(PROMPTS), segmenter.encode_images(windows(3))
    kept = through_memory(segmenter.dump_features(computed))
    expected = segmenter.decode(computed, prompts)
    assert segmenter.decode(segmenter.load_features(kept), prompts).tobytes() == expected.tobytes()


def test_kept_features_of_windows_from_several_batches_may_be_put_together_in_any_order(weights: Path) -> None:
    segmenter, images = load_tiny(weights, window_px=80), windows(4, side=80)
    prompts = segmenter.encode_prompts(PROMPTS)
    expected = segmenter.decode(segmenter.encode_images(images), prompts)
    kept = [window for some in (images[:1], images[1:]) for window in segmenter.dump_features(segmenter.encode_images(some))]
    order = [2, 0, 2, 3, 1, 0]
    together = segmenter.decode(segmenter.load_features([kept[place] for place in order]), prompts)
    assert together.shape == (6, 3, 80, 80)
    assert together.tobytes() == expected[order].tobytes()


def test_a_repeated_window_is_kept_twice_and_answered_once(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(2)[[0, 1, 1]]
    kept = segmenter.dump_features(segmenter.encode_images(images))
    assert len(kept) == 3
    assert {name: part.tobytes() for name, part in kept[1].items()} == {name: part.tobytes() for name, part in kept[2].items()}
    loaded = segmenter.load_features([kept[0], kept[1], kept[1]])
    assert (len(loaded.features), loaded.places) == (2, (0, 1, 1))


def test_outlines_of_a_window_are_kept_with_it(weights: Path) -> None:
    outlines = Ceiling()
    segmenter, images = replace(load_tiny(weights), outlines=outlines), windows(2)  # type: ignore[arg-type]
    prompts, computed = segmenter.encode_prompts(PROMPTS), segmenter.encode_images(images)
    expected, kept = segmenter.decode(computed, prompts), through_memory(segmenter.dump_features(computed))
    assert len(np.unique(expected.max(axis=(1, 2, 3)))) == 2
    assert segmenter.decode(segmenter.load_features(kept[::-1]), prompts).tobytes() == expected[::-1].tobytes()
    assert outlines.asked == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_size_it_names_is_the_size_of_what_it_keeps(weights: Path, precision: str) -> None:
    plain = load_tiny(weights, precision=precision)
    for segmenter in (plain, replace(plain, outlines=Ceiling())):  # type: ignore[arg-type]
        (kept,) = segmenter.dump_features(segmenter.encode_images(windows(1)))
        small = sum(part.nbytes for part in kept.values() if part.size < 10)
        assert feature_keeper(segmenter) is segmenter
        assert sum(part.nbytes for part in kept.values()) - small == segmenter.info.feature_bytes


def test_windows_that_are_computed_together_come_back_together(weights: Path) -> None:
    alone = load_tiny(weights)
    segmenter, images = replace(alone, engine=replace(alone.engine, together=True)), windows(3)[[0, 1, 1, 2]]
    prompts, computed = segmenter.encode_prompts(PROMPTS), segmenter.encode_images(images)
    expected, kept = segmenter.decode(computed, prompts), through_memory(segmenter.dump_features(computed))
    loaded = segmenter.load_features([kept[0], kept[1], kept[1], kept[3]])
    assert (len(loaded.features), loaded.places) == (1, (0, 1, 2, 3))
    assert segmenter.decode(loaded, prompts).tobytes() == expected.tobytes()
