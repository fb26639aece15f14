"""What is asked for a prompt: class names get the template, sentences stay."""

from __future__ import annotations

import pytest

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import is_class_name
from eo_batch.models.templates import Wording

CLASSES = (
    "water",
    "solar panel",
    "Ground Track Field",
    "expressway-toll-station",
    "storagetank",
    "expressway service area",
    "houses",
)
SENTENCES = (
    "the ship",
    "a red car",
    "roofs with solar panels",
    "Chimney with smoke.",
    "ships and boats",
    "bridge over water",
    "one two three four five",
    "lakes, rivers",
    "field of wheat",
)


@pytest.mark.parametrize("text", CLASSES)
def test_class_names_are_asked_in_the_image(text: str) -> None:
    asked = Wording().ask(text)
    assert (asked.sentence, asked.is_class) == (f"{text} in the image", True)


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_are_asked_as_they_are(text: str) -> None:
    assert Wording().ask(text).sentence == text
    assert not is_class_name(text)


def test_the_caller_may_say_what_prompts_are() -> None:
    assert Wording("class").ask("the ship").sentence == "the ship in the image"
    assert Wording("sentence").ask("water").sentence == "water"


def test_a_template_is_filled_as_text_and_never_run() -> None:
    assert Wording("class", "All {} seen").ask("{0.__class__} %s").sentence == "All {0.__class__} %s seen"


@pytest.mark.parametrize("template", ["in the image", "{} and {}", "{0}", "x" * 300 + "{}"])
def test_a_template_needs_one_place_for_the_name(template: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.template"):
        Wording(template=template)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match='"sentence"'):
        Wording("words")  # type: ignore[arg-type]
