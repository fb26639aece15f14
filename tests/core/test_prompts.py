"""Prompts: normalisation, ids and order."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet, normalise_text


@pytest.mark.parametrize(
    ("text", "clean"),
    [("  open\t\n water ", "open water"), ("cafe\u0301", "caf\u00e9"), ("\u6c34", "\u6c34"), ("a" * 200, "a" * 200)],
)
def test_text_is_composed_and_has_single_spaces(text, clean):
    assert normalise_text(text, number=1) == clean


@pytest.mark.parametrize(
    "text", ["", "   ", "\u00a0", "a" * 201, "wa\x00ter", "wa\u202eter", "wa\ud800ter", "\u200b", "bell\x07"]
)
def test_empty_long_or_invisible_text_is_refused_with_its_number(text):
    with pytest.raises(ConfigError, match="prompt 3") as caught:
        normalise_text(text, number=3)
    assert caught.value.code == "prompt-invalid"
    assert caught.value.exit_status == 2


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(text):
    try:
        clean = normalise_text(text, number=1)
    except ConfigError:
        return
    assert normalise_text(clean, number=1) == clean


@given(st.text(min_size=1, max_size=60, alphabet=st.characters(exclude_categories=["C"])))
def test_id_is_safe_in_a_path_and_made_from_the_text_alone(text):
    name = Prompt(text).id
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{6}", name)
    assert len(name) <= 31
    assert Prompt(text, threshold=0.9, min_area_m2=4).id == name


def test_id_of_water_never_changes():
    import hashlib

    assert Prompt("water").id == "water-" + hashlib.sha256(b"water").hexdigest()[:6]


def test_texts_that_differ_in_case_only_have_different_ids():
    assert Prompt("Water").id != Prompt("water").id


def test_order_is_kept():
    some = PromptSet((Prompt("b"), Prompt("a"), Prompt("c")))
    assert some.texts == ("b", "a", "c")
    assert [prompt.id for prompt in some] == list(some.ids)
    assert len(some) == 3


def test_same_prompt_twice_is_refused_with_both_numbers():
    with pytest.raises(ConfigError, match="prompts 1 and 3"):
        PromptSet((Prompt("water"), Prompt("crop"), Prompt("water", 0.7)))


def test_no_prompt_is_refused():
    with pytest.raises(ConfigError, match="no prompt"):
        PromptSet(())


def test_digest_sees_text_threshold_area_and_order():
    a, b = Prompt("a"), Prompt("b")
    variants = [(a, b), (b, a), (a,), (Prompt("a", 0.6), b), (Prompt("a", 0.5, 1.0), b)]
    assert len({PromptSet(prompts).digest for prompts in variants}) == len(variants)
    assert PromptSet((a, b)).digest == PromptSet((Prompt("a"), Prompt("b"))).digest
