"""The segmenter for tests and benchmarks."""

from __future__ import annotations

import numpy as np
import pytest

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.probe import WindowMean, load_window_mean, smooth
from eo_batch.models.segmenter import Segmenter, explain_prompts


def test_it_is_a_segmenter():
    assert isinstance(WindowMean(("green",)), Segmenter)


def test_smoothing_equals_the_average_written_by_hand():
    plane = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    expected = plane.astype(np.float64)
    for _ in range(3):
        wide = np.pad(expected, 1, mode="edge")
        expected = 0.5 * wide[1:-1, 1:-1] + 0.125 * (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:])
    np.testing.assert_allclose(smooth(plane, passes=3), expected, atol=1e-6)


def test_smoothing_leaves_its_input_alone():
    plane = np.random.default_rng(0).random((7, 9), dtype=np.float32)
    before = plane.copy()
    assert np.array_equal(smooth(plane, passes=0), before)
    smooth(plane, passes=5)
    assert np.array_equal(plane, before)


def test_answer_depends_on_the_rest_of_the_window():
    segmenter = WindowMean(("green",))
    images = np.zeros((2, 1, 16, 16), np.float32)
    images[1, 0, 15, 15] = 1.0
    first, second = segmenter.encode_images(images)
    assert (first[:10] != second[:10]).all()


def test_prompts_shift_the_answer_by_their_text_and_not_by_their_place():
    segmenter = WindowMean(("green",))
    one = segmenter.encode_prompts(PromptSet((Prompt("a"), Prompt("b"))))
    other = segmenter.encode_prompts(PromptSet((Prompt("b"), Prompt("a"))))
    assert np.array_equal(one, other[::-1])
    assert one[0] != one[1]


def test_settings_are_part_of_its_identity():
    digests = {WindowMean(("a", "b"), band, cost).info.digest for band in (0, 1) for cost in (0, 5)}
    assert len(digests) == 4


def test_options_choose_band_and_cost():
    segmenter = load_window_mean(ModelSpec(name="window-mean", options={"band": "nir", "cost": 7}), ("green", "nir"))
    assert (segmenter.band, segmenter.cost) == (1, 7)


@pytest.mark.parametrize("options", [{"band": "red"}, {"cost": -1}, {"cost": 1.5}, {"cost": True}, {"price": 1}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError, match=r"model\.options"):
        load_window_mean(ModelSpec(name="window-mean", options=options), ("green", "nir"))


def test_it_explains_nothing():
    assert explain_prompts(WindowMean(("green",)), PromptSet((Prompt("a"),))) == ()
