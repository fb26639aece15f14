"""Pictures of results: every pixel tells the truth, and every size of map becomes a readable page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray
from PIL import Image

from eo_batch.view.preview import render_preview, true_colour, write_preview

WATER = (47, 126, 216)


def _count(picture: Image.Image, colour: tuple[int, int, int], *, within: int = 40) -> int:
    pixels = np.asarray(picture).astype(int)
    return int((np.abs(pixels - colour).max(axis=-1) <= within).sum())


def _disc(size: int = 500, radius: int = 150) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return (x * x + y * y < radius * radius).astype(np.uint8)


def test_found_pixels_are_painted_and_no_others() -> None:
    mask = _disc()
    blank = render_preview({"water": np.zeros_like(mask)}, title="t")
    assert _count(render_preview({"water": mask}, title="t"), WATER) - _count(blank, WATER) == int(mask.sum())


def test_gaps_are_hatched_and_named() -> None:
    mask = np.zeros((500, 500), np.uint8)
    whole = render_preview({"water": mask}, title="t")
    for gap in (254, 255):
        holed = mask.copy()
        holed[100:300, 100:300] = gap
        picture = np.asarray(render_preview({"water": holed}, title="t"))
        stripes = (picture == 176).all(axis=-1).sum()
        assert stripes >= 200 * 200 // 4
    assert (np.asarray(whole) == 176).all(axis=-1).sum() == 0


def test_a_pixel_that_one_prompt_has_observed_is_no_gap() -> None:
    seen, unseen = np.zeros((500, 500), np.uint8), np.full((500, 500), 254, np.uint8)
    pixels = np.asarray(render_preview({"water": seen, "snow": unseen}, title="t"))[:500]
    assert (pixels == 176).all(axis=-1).sum() == 0


def test_the_background_shows_where_nothing_is_found() -> None:
    background = np.full((500, 500, 3), (10, 200, 30), np.uint8)
    picture = render_preview({"water": np.zeros((500, 500), np.uint8)}, title="t", background=background)
    assert _count(picture, (10, 200, 30), within=0) == 500 * 500


def test_every_prompt_has_its_own_colour() -> None:
    from eo_batch.view.preview import colours_of

    colours = colours_of(("water", "wind turbine", "snow", "solar panel", "car", "tree"))
    assert len(set(colours.values())) == 6


def test_small_maps_are_enlarged_and_large_ones_are_not() -> None:
    assert render_preview({"water": np.zeros((20, 30), np.uint8)}, title="t").width > 480
    assert 1000 < render_preview({"water": np.zeros((800, 1000), np.uint8)}, title="t").width < 1100


def test_many_prompts_wrap_into_lines() -> None:
    few = render_preview({f"prompt number {n}": _disc() for n in range(2)}, title="t")
    many = render_preview({f"prompt number {n}": _disc() for n in range(12)}, title="t")
    assert many.width == few.width
    assert many.height > few.height + 40


def test_a_map_without_resolution_has_no_scale_bar() -> None:
    mask = {"water": _disc()}
    assert render_preview(mask, title="t", resolution_m=10.0).height > render_preview(mask, title="t").height


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        render_preview({"water": np.zeros((5, 5), np.uint8), "snow": np.zeros((5, 6), np.uint8)}, title="t")
    with pytest.raises(ValueError, match="one shape"):
        render_preview({}, title="t")


def test_a_cube_is_written_decimated(tmp_path: Path) -> None:
    cube = xarray.DataArray(
        np.stack([_disc(1500, 400), np.zeros((1500, 1500), np.uint8)])[:, None],
        dims=("prompt", "time", "y", "x"),
        coords={"prompt": ["water", "snow"], "y": -10.0 * np.arange(1500), "x": 10.0 * np.arange(1500)},
    )
    path = write_preview(cube.to_dataset(name="mask"), tmp_path / "map.png", max_px=750)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert 750 < picture.width < 850
        blue = _count(picture.convert("RGB"), WATER)
    assert blue == pytest.approx(np.pi * 200**2, rel=0.02)


def test_true_colour_keeps_order_and_blackens_gaps() -> None:
    reflectance = np.zeros((3, 2, 2))
    reflectance[0], reflectance[1, 0, 0], reflectance[2, 1, 1] = 0.5, 0.1, np.nan
    picture = true_colour(reflectance)
    assert picture[0, 0, 0] == 255
    assert 0 < picture[0, 0, 1] < 255
    assert picture[1, 1, 2] == 0
