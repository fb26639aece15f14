"""Sentences about boxes: who is named, how many, where."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eo_batch.products.boxes import Box
from eo_batch.products.caption import caption, plural_of
from eo_batch.products.rules import CaptionRules

SHAPE = (90, 120)


def at(x: float, y: float) -> Box:
    return Box(x - 2, y - 1, x + 2, y + 1, 0.9)


def test_the_whole_and_each_region_are_told_with_counts() -> None:
    boxes = {"ship": [at(10, 10), at(20, 20), at(100, 80)], "dam": [at(100, 70)], "ferry": []}
    assert caption(boxes, SHAPE) == (
        "This image features 3 ships, dam. The upper left region has 2 ships. The lower right region has ship, dam."
    )


def test_upstream_leaves_counts_out_of_regions() -> None:
    boxes = {"ship": [at(10, 10), at(20, 20)]}
    text = caption(boxes, SHAPE, random=Random(0), rules=CaptionRules.upstream())
    assert text.startswith("This image features 2 ships.")
    assert "2" not in text.partition(".")[2]


def test_five_are_many() -> None:
    assert caption({"ship": [at(10, 10)] * 5}, SHAPE, regions=0) == "This image features many ships."
    assert caption({"ship": [at(10, 10)] * 4}, SHAPE, regions=0, subject="zone") == "This zone features 4 ships."
    assert "many" in caption({"ship": [at(10, 10)] * 2}, SHAPE, regions=0, rules=CaptionRules(many_from=2))


def test_nothing_found_is_said_in_one_sentence() -> None:
    assert caption({"ship": []}, SHAPE) == CaptionRules().empty
    assert caption({}, SHAPE, rules=CaptionRules(empty="Nothing.")) == "Nothing."


@pytest.mark.parametrize(("x", "y", "name"), [(10, 10, "upper left"), (60, 45, "center"), (60, 80, "lower center")])
def test_nine_regions_have_names(x: float, y: float, name: str) -> None:
    assert f"The {name} region has ship." in caption({"ship": [at(x, y)]}, SHAPE, regions=9)


def test_a_centre_on_a_line_belongs_to_the_region_beyond_it() -> None:
    assert "The lower right region has ship." in caption({"ship": [at(60, 45)]}, SHAPE)


def test_a_centre_on_the_far_border_belongs_to_the_last_region_or_is_refused() -> None:
    edge = {"ship": [Box(120, 85, 120, 95, 0.5)]}
    assert "The lower right region has ship." in caption(edge, SHAPE)
    with pytest.raises(ValueError, match="outside"):
        caption(edge, SHAPE, rules=CaptionRules.upstream())


def test_a_centre_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        caption({"ship": [at(130, 10)]}, SHAPE)


@pytest.mark.parametrize("regions", [1, 5, 16])
def test_other_numbers_of_regions_are_refused(regions: int) -> None:
    with pytest.raises(ValueError, match="regions"):
        caption({"ship": [at(10, 10)]}, SHAPE, regions=regions)


@given(st.lists(st.tuples(st.floats(0, 120), st.floats(0, 90)), min_size=1, max_size=12), st.sampled_from([4, 9]), st.integers())
@settings(max_examples=60, deadline=None)
def test_every_wording_tells_of_the_same_regions(centres: list[tuple[float, float]], regions: int, seed: int) -> None:
    boxes = {"ship": [Box(x, y, x, y, 0.9) for x, y in centres]}
    split = {4: 2, 9: 3}[regions]
    cells = {(min(int(y * split / 90), split - 1), min(int(x * split / 120), split - 1)) for x, y in centres}
    for random in (None, Random(seed)):
        text = caption(boxes, SHAPE, regions=regions, random=random)
        assert text.count(". ") == len(cells)
        assert text.count("ship") == 1 + len(cells)
    assert caption(boxes, SHAPE, random=Random(seed)) == caption(boxes, SHAPE, random=Random(seed))


@pytest.mark.parametrize("many", [2, 7])
def test_sentences_are_quoted_and_never_put_into_plural(many: int) -> None:
    text = "the ship on the left"
    boxes = {text: [at(10, 10)] * many, "water": [at(10, 10)] * many, "a red car.": [at(100, 80)]}
    number = {2: "2", 7: "many"}[many]
    assert caption(boxes, SHAPE) == (
        f'This image features "{text}" ({number} places), {number} areas of water, "a red car.". '
        f'The upper left region has "{text}" ({number} places), {number} areas of water. '
        'The lower right region has "a red car.".'
    )
    silent = CaptionRules(counts_in_regions=False)
    assert caption(boxes, SHAPE, rules=silent).endswith(
        f'The upper left region has "{text}", areas of water. The lower right region has "a red car.".'
    )
    upstream = caption(boxes, SHAPE, random=Random(0), rules=CaptionRules.upstream())
    assert f"{number} {text}s, {number} waters" in upstream


def test_a_prompt_that_counts_for_itself_is_quoted() -> None:
    assert caption({"2 ships": [at(10, 10)] * 3}, SHAPE, regions=0) == 'This image features "2 ships" (3 places).'


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("ship", "ships"),
        ("ferry", "ferries"),
        ("runway", "runways"),
        ("church", "churches"),
        ("bus", "buses"),
        ("glass house", "glass houses"),
        ("overpass", "overpasses"),
        ("solar panels", "solar panels"),
        ("aircraft", "aircraft"),
        ("water", "areas of water"),
        ("Bare soil", "areas of Bare soil"),
        ("forest", "forests"),
        ("ground track field", "ground track fields"),
        ("built-up", "built-up areas"),
        ("sheep", "sheep"),
    ],
)
def test_plurals_are_english_and_upstreams_an_s(one: str, several: str) -> None:
    assert plural_of(one) == several
    assert plural_of(one, CaptionRules.upstream()) == f"{one}s"
