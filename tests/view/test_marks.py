"""Boxes, labels and plates on a picture: what is drawn, what is left out, and that nothing leaves the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eo_batch.view.marks import MANY, Mark, Point, draw_marks, printable

BLUE = (47, 126, 216)
GREY = (120, 120, 120)
PAPER = (250, 250, 248)


def drawn(*marks: Mark, plates: tuple[tuple[Point, str], ...] = (), size: int = 800) -> np.ndarray:
    """int (y, x, 3) of a grey picture with these marks in blue."""
    picture = Image.new("RGB", (size, size), GREY)
    draw_marks(picture, marks, {"ship": BLUE}, plates=plates)
    return np.asarray(picture).astype(int)


def box(x: float, y: float, wide: float, high: float = 8, *, score: float = 0.5) -> Mark:
    return Mark(((x, y), (x + wide, y), (x + wide, y + high), (x, y + high)), "ship", score)


def count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((pixels == colour).all(axis=-1).sum())


def ink(pixels: np.ndarray) -> int:
    """Pixels of the white letters of labels; their edges are mixed with the blue beneath."""
    return int((pixels.min(axis=-1) > 150).sum())


def test_in_a_crowd_only_boxes_as_wide_as_their_label_have_one() -> None:
    narrow = [box(20 + 70 * (n % 10), 40 + 60 * (n // 10), 12) for n in range(MANY + 1)]
    assert ink(drawn(*narrow[:MANY])) > 0
    assert ink(drawn(*narrow)) == 0
    assert ink(drawn(*narrow, box(400, 700, 90))) > 0


def test_an_outline_has_a_dark_rim_unless_the_box_is_too_small_for_one() -> None:
    rim = tuple(value // 4 for value in BLUE)
    assert count(drawn(box(100, 100, 200, 200)), rim) > 400
    assert count(drawn(box(100, 100, 8)), rim) == 0
    assert count(drawn(box(100, 100, 8)), BLUE) > 20


@pytest.mark.parametrize("middle", [(400, 400), (0, 0), (799, 0), (0, 799), (799, 799), (-50, 400)])
def test_a_plate_is_whole_wherever_its_middle_is(middle: Point) -> None:
    assert count(drawn(plates=((middle, "1/22/0"),)), PAPER) == count(drawn(plates=(((300, 200), "1/22/0"),)), PAPER) > 100


def test_a_plate_that_would_cover_another_is_left_out_and_labels_keep_off() -> None:
    one, both = (drawn(plates=tuple(((300 + 4 * n, 300), "12/7") for n in range(many))) for many in (1, 2))
    assert np.array_equal(one, both)
    beneath = drawn(box(290, 310, 90), plates=(((300, 300), "12/7"),))
    alone = np.argwhere((one == PAPER).all(axis=-1))
    assert all(tuple(beneath[y, x]) in (PAPER, BLUE) or beneath[y, x].max() < 250 for y, x in alone)
    assert count(beneath, PAPER) >= 0.9 * len(alone)


def test_the_label_of_a_turned_box_touches_it() -> None:
    turned = Mark(((500, 100), (600, 300), (200, 500), (100, 300)), "ship", 0.9)
    pixels = drawn(turned)
    y, x = np.argwhere(pixels.min(axis=-1) > 150).min(axis=0)
    assert 500 <= x <= 510
    assert 80 <= y <= 100


def test_unprintable_characters_are_not_drawn() -> None:
    assert printable("a\x1b[31m\u202eb") == "a?[31m?b"
