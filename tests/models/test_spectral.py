"""The segmenter without weights: formulas against float64, words, bands, and its reference page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.segmenter import Segmenter, explain_prompts
from eo_batch.models.spectral import SpectralSegmenter, find_concept, load_spectral
from eo_batch.models.spectral_concepts import CONCEPTS, reference_page
from eo_batch.models.spectral_indices import INDICES

ROOT = Path(__file__).resolve().parents[2]
ALL = ("blue", "green", "red", "nir", "swir16", "swir22")
NAMES = tuple(concept.name for concept in CONCEPTS)

# Typical surface reflectance in the order of ALL, rounded from published spectra (USGS Spectral Library 7, ECOSTRESS).
SPECTRA = {
    "clear lake": (0.03, 0.03, 0.02, 0.01, 0.004, 0.002),
    "turbid river": (0.07, 0.10, 0.10, 0.06, 0.01, 0.005),
    "grass": (0.03, 0.07, 0.04, 0.45, 0.20, 0.09),
    "conifer forest": (0.02, 0.03, 0.02, 0.25, 0.10, 0.05),
    "loam": (0.08, 0.12, 0.16, 0.22, 0.30, 0.26),
    "concrete and roofs": (0.14, 0.16, 0.18, 0.20, 0.23, 0.21),
    "charred ground": (0.04, 0.05, 0.06, 0.08, 0.13, 0.16),
    "fresh snow": (0.92, 0.91, 0.90, 0.85, 0.12, 0.09),
    "thick cloud": (0.60, 0.60, 0.60, 0.62, 0.50, 0.40),
}
ANSWERS = {
    "clear lake": {"water"},
    "turbid river": {"water"},
    "grass": {"vegetation"},
    "conifer forest": {"vegetation"},
    "loam": {"bare soil", "built-up"},
    "concrete and roofs": {"built-up", "bare soil"},
    "charred ground": {"burnt ground", "built-up", "bare soil"},
    "fresh snow": {"snow", "cloud"},
    "thick cloud": {"cloud"},
}


def ask(images: np.ndarray, *prompts: str, bands: tuple[str, ...] = ALL) -> np.ndarray:
    segmenter = SpectralSegmenter(bands)
    features = segmenter.encode_prompts(PromptSet(tuple(Prompt(prompt) for prompt in prompts)))
    return segmenter.decode(segmenter.encode_images(images), features)


def pixel(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[None, :, None, None]


def test_it_is_a_segmenter():
    assert isinstance(SpectralSegmenter(ALL), Segmenter)


@pytest.mark.parametrize("surface", sorted(SPECTRA))
def test_typical_spectra_are_found_by_the_concepts_that_describe_them(surface):
    logits = ask(pixel(*SPECTRA[surface]), *NAMES)[0, :, 0, 0]
    assert {name for name, logit in zip(NAMES, logits, strict=True) if logit >= 0} == ANSWERS[surface]


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("NDWI", lambda b, g, r, n, s, t: (g - n) / (g + n)),
        ("MNDWI", lambda b, g, r, n, s, t: (g - s) / (g + s)),
        ("NDSI", lambda b, g, r, n, s, t: (g - s) / (g + s)),
        ("NDVI", lambda b, g, r, n, s, t: (n - r) / (n + r)),
        ("NDBI", lambda b, g, r, n, s, t: (s - n) / (s + n)),
        ("NBR", lambda b, g, r, n, s, t: (n - t) / (n + t)),
        ("BAI distance", lambda b, g, r, n, s, t: (1 / ((0.1 - r) ** 2 + (0.06 - n) ** 2)) ** -0.5),
        ("BSI", lambda b, g, r, n, s, t: ((s + r) - (n + b)) / ((s + r) + (n + b))),
        ("whiteness", lambda b, g, r, n, s, t: sum(abs(x - (b + g + r) / 3) for x in (b, g, r)) / ((b + g + r) / 3)),
        ("HOT", lambda b, g, r, n, s, t: b - 0.5 * r - 0.08),
    ],
)
def test_indices_equal_their_published_formulas_in_float64(name, formula):
    planes = np.random.default_rng(0).uniform(0.001, 1.2, (6, 200))
    given = {band: planes[place].astype(np.float32) for place, band in enumerate(ALL)}
    np.testing.assert_allclose(INDICES[name].compute(given.__getitem__), formula(*planes), atol=3e-6)


def test_every_index_is_used_and_checked():
    used = {condition.index for concept in CONCEPTS for rule in concept.rules for condition in rule.conditions}
    assert used == set(INDICES)


def test_score_is_a_half_at_the_threshold_and_logit_two_one_margin_beyond():
    logits = ask(np.concatenate([pixel(1.0, (1 + v) / (1 - v)) for v in (0.35, 0.5, 0.2)]), "vegetation", bands=("red", "nir"))
    np.testing.assert_allclose(logits.ravel(), [0, 2, -2], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (2, 6, 3, 4), elements=st.floats(-2, 20000, width=32)))
def test_any_finite_pixels_give_finite_logits_without_a_warning(images):
    with np.errstate(all="raise", under="ignore"):
        logits = ask(images, *NAMES)
    assert logits.dtype == np.float32
    assert logits.shape == (2, len(NAMES), 3, 4)
    assert np.isfinite(logits).all()


def test_zero_and_negative_reflectance_of_dark_water_stay_water():
    logits = ask(np.concatenate([pixel(0.01, 0.01, 0, 0, 0, 0), pixel(0.0, 0.002, -0.001, -0.004, -0.003, -0.01)]), "water")
    assert (logits > 0).all()


def test_answer_of_a_pixel_is_the_same_bits_alone_and_in_any_batch():
    images = np.random.default_rng(1).uniform(-0.1, 1, (5, 6, 16, 16)).astype(np.float32)
    together = ask(images, *NAMES)
    for place in range(5):
        assert np.array_equal(ask(images[place : place + 1], *NAMES)[0], together[place])
    corner = np.ascontiguousarray(images[2:3, :, 3:4, 7:8])
    assert np.array_equal(ask(corner, *NAMES)[0, :, 0, 0], together[2, :, 3, 7])


def test_answer_to_a_prompt_does_not_depend_on_the_other_prompts():
    images = np.random.default_rng(1).uniform(0, 1, (1, 6, 8, 8)).astype(np.float32)
    assert np.array_equal(ask(images, "snow", "water")[:, 1], ask(images, "water", "cloud")[:, 0])


def test_input_pixels_are_left_alone():
    images = np.full((1, 6, 4, 4), -1, np.float32)
    ask(images, *NAMES)
    assert (images == -1).all()


def test_order_of_the_bands_is_that_of_the_pipeline():
    images = np.random.default_rng(1).uniform(0, 1, (1, 6, 8, 8)).astype(np.float32)
    assert np.array_equal(ask(images[:, ::-1], *NAMES, bands=ALL[::-1]), ask(images, *NAMES))


def test_narrow_near_infrared_stands_in_for_the_wide_one():
    images = np.random.default_rng(1).uniform(0, 1, (1, 2, 8, 8)).astype(np.float32)
    assert np.array_equal(ask(images, "water", bands=("green", "nir08")), ask(images, "water", bands=("green", "nir")))


def test_wide_near_infrared_is_preferred_where_both_are_there():
    images = np.random.default_rng(1).uniform(0, 1, (1, 3, 8, 8)).astype(np.float32)
    both = ask(images, "water", bands=("green", "nir08", "nir"))
    assert np.array_equal(both, ask(images[:, [0, 2]], "water", bands=("green", "nir")))


def test_each_index_is_computed_once_for_all_prompts(monkeypatch):
    calls = []
    from eo_batch.models import spectral

    counted = {
        name: type(index)(
            index.name, index.formula, index.source, index.bands, lambda band, i=index: calls.append(i.name) or i.compute(band)
        )
        for name, index in INDICES.items()
    }
    monkeypatch.setattr(spectral, "INDICES", counted)
    ask(pixel(*SPECTRA["grass"]), *NAMES)
    assert len(calls) == len(set(calls)) == len(INDICES)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("water", "water"),
        ("Open Water", "water"),
        ("the lakes", "water"),
        ("rivers", "water"),
        ("burned area", "burnt ground"),
        ("Fire-Scars", "burnt ground"),
        ("built up", "built-up"),
        ("BUILT-UP AREAS", "built-up"),
        ("buildings", "built-up"),
        ("cities", "built-up"),
        ("beaches", "bare soil"),
        ("grass", "vegetation"),
        ("trees", "vegetation"),
        ("clouds", "cloud"),
        ("snow and ice", "snow"),
    ],
)
def test_words_find_their_concept(text, name):
    assert find_concept(text).name == name


def test_no_word_belongs_to_two_concepts():
    for concept in CONCEPTS:
        for word in (concept.name, *concept.synonyms, *concept.narrower):
            assert find_concept(word) is concept


@pytest.mark.parametrize(("text", "meant"), [("watr", "water"), ("vegetaton", "vegetation"), ("burnt grund", "burnt ground")])
def test_misspelt_prompt_gets_a_suggestion(text, meant):
    with pytest.raises(ConfigError, match=f'Did you mean "{meant}"') as caught:
        find_concept(text)
    assert caught.value.code == "prompt-invalid"


def test_unknown_prompt_lists_every_concept():
    with pytest.raises(ConfigError) as caught:
        find_concept("solar panel")
    assert all(name in caught.value.fix for name in NAMES)


def test_missing_bands_are_told_with_every_list_that_would_serve():
    with pytest.raises(ConfigError) as caught:
        ask(pixel(1, 1), "water", bands=("green", "red"))
    assert caught.value.code == "config-invalid"
    assert '["green", "nir", "swir16"] or ["green", "nir"]' in str(caught.value)


def test_water_uses_swir_where_it_is_there():
    bright_roof = {"green": 0.12, "nir": 0.10, "swir16": 0.25}
    assert ask(pixel(*bright_roof.values()), "water", bands=tuple(bright_roof)).item() < 0
    assert ask(pixel(0.12, 0.10), "water", bands=("green", "nir")).item() > 0


def test_explanation_tells_when_a_prompt_is_answered_with_more_than_was_asked():
    segmenter = SpectralSegmenter(("green", "nir"))
    forest, water = explain_prompts(SpectralSegmenter(ALL), PromptSet((Prompt("forest"), Prompt("open water"))))
    assert "with all vegetation" in forest
    assert "as water: NDWI above 0" in water
    assert "MNDWI" not in segmenter.explain(PromptSet((Prompt("water"),)))[0]


def test_it_has_no_options():
    with pytest.raises(ConfigError, match="config-unknown-key"):
        load_spectral(ModelSpec(options={"threshold": 0.3}), ALL)


def test_probe_finds_it_deterministic_and_position_independent():
    prompts = PromptSet(tuple(Prompt(name) for name in NAMES))
    assert probe_segmenter(SpectralSegmenter(ALL), prompts, ALL, window_px=64, batch=3).position_independent


def test_reference_page_is_the_table_in_the_code():
    assert (ROOT / "docs" / "reference" / "spectral.md").read_text(encoding="utf-8") == reference_page()
