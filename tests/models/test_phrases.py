"""Phrases that mean a place in the picture, or one of several things; and those that only look like it."""

from __future__ import annotations

import pytest

from eo_batch.models.phrases import find_positions


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("the ship on the left", ("on the left",)),
        ("The airplane ON THE RIGHT", ("on the right",)),
        ("upper right", ("upper right",)),
        ("the northern lake", ("northern",)),
        ("westernmost island", ("westernmost",)),
        ("a tree in the middle", ("in the middle",)),
        ("the largest building", ("largest",)),
        ("the second vehicle from the top", ("second", "from the top")),
        ("the 3rd ship", ("3rd",)),
        ("nearest house", ("nearest",)),
        ("field at the bottom-left corner", ("at the bottom-left corner",)),
        ("dam on the right hand side", ("on the right hand side",)),
        ("a court located on the left side, next to a fence", ("on the left side",)),
        ("houses in the corner", ("in the corner",)),
        ("road at the edge of the image", ("at the edge",)),
        ("half of the picture", ("half of the picture",)),
        ("top left plane", ("top left",)),
        ("the leftmost plane", ("leftmost",)),
        ("central square", ("central",)),
        ("the only bridge", ("the only",)),
        ("the last carriage", ("last",)),
        ("runway in the south-west", ("in the south-west",)),
        ("the ship in the NE", ("in the ne",)),
        ("top of the image", ("top of the image",)),
        ("the left one", ("left one",)),
        ("ships in the foreground", ("in the foreground",)),
        ("the larger ship", ("the larger",)),
        ("the other plane", ("the other",)),
    ],
)
def test_a_place_in_the_picture_is_found(text: str, phrases: tuple[str, ...]) -> None:
    assert find_positions(text) == phrases


@pytest.mark.parametrize(
    "text",
    [
        "water",
        "rainforest",
        "forest harvest",
        "a right-of-way",
        "center pivot irrigation",
        "second-growth forest",
        "shopping center",
        "middle school",
        "topsoil",
        "a road next to the river",
        "the bridge over the river",
        "small ships beside a pier",
        "expressway-toll-station",
        "at least one car",
        "westbound traffic",
        "leftover snow",
        "left-hand traffic road",
        "left turn lane",
        "solar panel on top of a roof",
        "flat top roof",
        "upper deck",
        "first aid station",
        "second home",
        "fields in lower Saxony",
        "houses in South Africa",
        "the west bank",
        "nearest neighbour",
        "Centre Pompidou",
    ],
)
def test_other_words_are_left_alone(text: str) -> None:
    assert find_positions(text) == ()
