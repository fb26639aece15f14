"""Stored scores and masks, against exact arithmetic."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eo_batch.core.arrays import NO_OBSERVATION, SCORE_STEPS, decide, quantise_scores

EVERYWHERE = np.ones((1, 1), bool)


def edge(step: int) -> np.float32:
    """Logit from which round(250 * sigmoid) is at least `step`, from 40 digits: ln((step - 1/2) / (250 - step + 1/2))."""
    getcontext().prec = 40
    return np.float32(float((Decimal(2 * step - 1) / Decimal(2 * SCORE_STEPS - 2 * step + 1)).ln()))


def code_of(logit: float) -> int:
    return int(quantise_scores(np.full((1, 1, 1), logit, np.float32), EVERYWHERE).item())


@pytest.mark.parametrize("step", [1, 2, 3, 50, 124, 125, 126, 200, 248, 249, 250])
def test_code_rises_exactly_at_the_correctly_rounded_edge(step):
    assert code_of(edge(step)) == step
    assert code_of(np.nextafter(edge(step), np.float32(-np.inf))) == step - 1


def test_every_code_equals_a_search_over_exact_edges():
    edges = np.array([edge(step) for step in range(1, SCORE_STEPS + 1)])
    rng = np.random.default_rng(0)
    near = [np.nextafter(edges, np.float32(side)) for side in (-99, 99)]
    logits = np.concatenate([rng.normal(0, 4, 100_000).astype(np.float32), edges, *near])
    codes = quantise_scores(logits.reshape(1, 1, -1), np.ones((1, logits.size), bool)).ravel()
    assert np.array_equal(codes, np.searchsorted(edges, logits, side="right"))


@given(st.floats(-30, 30, width=32))
def test_code_is_within_half_a_step_of_the_sigmoid(logit):
    assert abs(code_of(logit) - SCORE_STEPS / (1 + np.exp(-float(logit)))) <= 0.5 + 1e-4


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=50))
def test_codes_never_fall_where_logits_rise(logits):
    line = np.sort(np.array(logits, np.float32)).reshape(1, 1, -1)
    codes = quantise_scores(line, np.ones((1, line.size), bool)).astype(int).ravel()
    assert (np.diff(codes) >= 0).all()
    assert codes.max() <= SCORE_STEPS


@pytest.mark.parametrize(("logit", "code"), [(np.inf, 250), (-np.inf, 0), (1e30, 250), (-1e30, 0), (0.0, 125), (-0.0, 125)])
def test_extreme_logits_have_the_extreme_codes(logit, code):
    assert code_of(logit) == code


def test_missing_pixels_are_marked_in_every_prompt_and_leave_others_alone():
    logits = np.zeros((3, 4, 5), np.float32)
    valid = np.random.default_rng(0).random((4, 5)) > 0.5
    logits[:, ~valid] = np.nan
    with np.errstate(all="raise"):
        codes = quantise_scores(logits, valid)
    assert (codes[:, valid] == 125).all()
    assert (codes[:, ~valid] == NO_OBSERVATION).all()


def test_code_does_not_depend_on_where_the_pixel_lies():
    logits = np.random.default_rng(0).normal(0, 3, (2, 300, 301)).astype(np.float32)
    valid = np.ones((300, 301), bool)
    whole = quantise_scores(logits, valid)
    assert np.array_equal(quantise_scores(logits[:, 17:250, 3:277], valid[17:250, 3:277]), whole[:, 17:250, 3:277])


@pytest.mark.parametrize("threshold", [0.002, 0.004, 0.1, 0.3, 0.5, 0.501, 0.996, 0.999])
def test_mask_is_stored_score_at_or_above_the_threshold(threshold):
    scores = np.arange(SCORE_STEPS + 1, dtype=np.uint8).reshape(1, 1, -1)
    masks = decide(scores, np.array([threshold]))
    expected = [Decimal(code) / SCORE_STEPS >= Decimal(str(threshold)) for code in range(SCORE_STEPS + 1)]
    assert masks.ravel().tolist() == [int(yes) for yes in expected]


def test_each_prompt_has_its_own_threshold_and_missing_stays_missing():
    scores = np.array([[[100, 200, NO_OBSERVATION]], [[100, 200, NO_OBSERVATION]]], np.uint8)
    masks = decide(scores, np.array([0.5, 0.3]))
    assert masks.tolist() == [[[0, 1, 254]], [[1, 1, 254]]]


def test_logit_zero_counts_as_found_at_threshold_one_half():
    scores = quantise_scores(np.array([[[0.0, -0.009]]], np.float32), np.ones((1, 2), bool))
    assert decide(scores, np.array([0.5])).ravel().tolist() == [1, 0]
