"""The page of an answer: every mask and box lies over what it means, at every size of image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from eo_batch.products.rules import Box, BoxRules, TaskRules
from eo_batch.run.images.segment import segment_image
from eo_batch.view.marks import png_bytes
from eo_batch.view.overlay import brightened, overlay_of, render_overlay

BLUE, ORANGE = (47, 126, 216), (232, 89, 12)
GREY = (120, 120, 120)


def ground(height: int = 600, width: int = 800) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def nothing(height: int = 600, width: int = 800) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def places_of(picture: Image.Image, colour: tuple[int, int, int], *, within: int = 8) -> np.ndarray:
    """(row, column) of all pixels of about this colour."""
    return np.argwhere(np.abs(np.asarray(picture).astype(int) - colour).max(axis=-1) <= within)


def corner_of(picture: Image.Image, shape: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the image's first pixel on the page."""
    grey = places_of(picture, GREY, within=0)
    assert len(grey) <= shape[0] * shape[1]
    return int(grey[:, 0].min()), int(grey[:, 1].min())


def test_a_box_is_drawn_around_its_object() -> None:
    page = render_overlay(ground(), {"ship": nothing()}, {"ship": [Box(100, 200, 300, 260, 0.9)]}, title="t")
    top, left = corner_of(page, (600, 800))
    drawn = places_of(page, BLUE)
    drawn = drawn[(drawn[:, 0] < top + 600) & (drawn[:, 0] > top + 205)]
    assert abs(drawn[:, 1].min() - left - 100) <= 2
    assert abs(drawn[:, 1].max() - left - 300) <= 2
    assert abs(drawn[:, 0].max() - top - 260) <= 2


def test_an_oriented_box_is_drawn_by_its_corners() -> None:
    corners = ((400, 100), (500, 200), (400, 300), (300, 200))
    box = Box(300, 100, 500, 300, 0.9, 100, corners)
    page = render_overlay(ground(), {"ship": nothing()}, {"ship": [box]}, title="t")
    top, left = corner_of(page, (600, 800))
    inside = np.asarray(page)[top + 110 : top + 140, left + 305 : left + 340]
    assert (inside == GREY).all()
    middle = np.asarray(page)[top + 245 : top + 256, left + 345 : left + 356].reshape(-1, 3)
    assert (np.abs(middle.astype(int) - BLUE).max(axis=1) < 8).any()


def test_every_object_is_labelled_while_there_is_room() -> None:
    boxes = [Box(60 + 180 * n, 100, 120 + 180 * n, 160, 0.5) for n in range(4)]
    one = render_overlay(ground(), {"ship": nothing()}, {"ship": boxes[:1]}, title="t")
    four = render_overlay(ground(), {"ship": nothing()}, {"ship": boxes}, title="t")
    white = (255, 255, 255)
    assert len(places_of(four, white, within=0)) >= 3 * len(places_of(one, white, within=0)) > 0


def test_labels_never_cover_each_other() -> None:
    crowd = [Box(300, 300, 310, 310, 0.9 - n / 100) for n in range(40)]
    page = render_overlay(ground(), {"ship": nothing()}, {"ship": crowd}, title="t")
    alone = render_overlay(ground(), {"ship": nothing()}, {"ship": crowd[:1]}, title="t")
    assert len(places_of(page, (255, 255, 255), within=0)) <= 3.5 * len(places_of(alone, (255, 255, 255), within=0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (37, 51), (3000, 5000), (16, 4000)])
def test_images_of_every_size_become_a_page(shape: tuple[int, int]) -> None:
    mask = nothing(*shape)
    mask[0, 0] = 1
    boxes = {"ship": [Box(0, 0, shape[1], shape[0], 0.5)], "a plane, far away": []}
    page = render_overlay(
        ground(*shape), {"ship": mask, "a plane, far away": mask}, boxes, title="t" * 300, caption="words " * 80
    )
    assert 360 <= page.width <= 1700
    assert page.height <= 2200


def test_a_large_image_keeps_its_masks_and_boxes_in_place() -> None:
    mask = nothing(2000, 3200)
    mask[500:1000, 800:1600] = 1
    page = render_overlay(ground(2000, 3200), {"ship": mask}, {"ship": []}, title="t")
    top, left = corner_of(page, (1000, 1600))
    pixels = np.asarray(page).astype(int)
    painted = np.abs(pixels - GREY).max(axis=-1) > 10
    rows, cols = np.nonzero(painted[top : top + 1000, left : left + 1600])
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (250, 499, 400, 799)


def test_what_was_not_observed_is_hatched_and_named() -> None:
    mask = nothing()
    mask[:300] = 254
    page = np.asarray(render_overlay(ground(), {"ship": mask}, {}, title="t"))
    assert (page == 176).all(axis=-1).sum() >= 300 * 800 // 4


def test_names_of_files_cannot_draw_what_they_like() -> None:
    hostile = "a\nb\x1b[31m\u202e"
    assert render_overlay(ground(), {"ship": nothing()}, {}, title=hostile, caption=hostile).width > 800


def test_dark_reflectance_is_shown_brighter_and_photos_are_not() -> None:
    rng = np.random.default_rng(0)
    dark = rng.integers(0, 60, (100, 100, 3)).astype(np.uint8)
    assert brightened(dark).max() == 255
    photo = rng.integers(0, 256, (100, 100, 3)).astype(np.uint8)
    np.testing.assert_array_equal(brightened(photo), photo)
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(brightened(black), black)


def test_an_answer_draws_itself_as_a_png() -> None:
    image = ground()
    image[100:200, 100:300] = 230
    rules = TaskRules(boxes=BoxRules(oriented=True))
    answer = segment_image(image, ["cloud", "snow"][:1], model="spectral", rules=rules)
    data = png_bytes(overlay_of(answer, caption=answer.caption()))
    with Image.open(io.BytesIO(data)) as page:
        assert page.format == "PNG"
        assert page.width > 800
    without = overlay_of(answer, shows_boxes=False)
    assert without.height < Image.open(io.BytesIO(data)).height


def test_shapes_that_differ_are_refused() -> None:
    for masks in ({}, {"ship": nothing(5, 5)}):
        with pytest.raises(ValueError, match="one shape"):
            render_overlay(ground(), masks, {}, title="t")
