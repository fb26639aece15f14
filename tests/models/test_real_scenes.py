"""`spectral` on real scenes against labels that others made; read with plain rasterio.

The bounds lie below the figures measured (in the comments), so that they catch a broken formula and not a changed pixel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models.spectral import SpectralSegmenter

pytestmark = [pytest.mark.shared, pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")]


def read(path: Path, *names: str) -> np.ndarray:
    """Physical values of the named bands (all without names), NaN where there is no data."""
    with rasterio.open(path) as source:
        indexes = [source.descriptions.index(name) + 1 for name in names] or list(source.indexes)
        pixels = source.read(indexes, masked=True).astype(np.float64).filled(np.nan)
        scale = np.array([source.scales[i - 1] for i in indexes])[:, None, None]
        offset = np.array([source.offsets[i - 1] for i in indexes])[:, None, None]
    return pixels * scale + offset


def find(pixels: np.ndarray, bands: tuple[str, ...], prompt: str) -> np.ndarray:
    segmenter = SpectralSegmenter(bands)
    images = np.nan_to_num(pixels).astype(np.float32)[None]
    features = segmenter.encode_prompts(PromptSet((Prompt(prompt),)))
    return segmenter.decode(segmenter.encode_images(images), features)[0, 0] >= 0


def iou(mask: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    return float((mask & truth & where).sum() / ((mask | truth) & where).sum())


@pytest.mark.parametrize("date", ["20190607", "20200202"])  # measured 0.891 and 0.901
def test_water_of_boadella_agrees_with_the_hand_made_labels(shared, date):
    pixels = read(shared / "scenes" / f"s2-l2a-boadella-{date}" / "stack.tif", "B03", "B04", "B08", "B11")
    truth = read(shared / "labels" / f"s2-l2a-boadella-{date}" / "water.tif")[0] == 1
    assert iou(find(pixels, ("green", "red", "nir", "swir16"), "water"), truth, np.isfinite(pixels).all(axis=0)) > 0.87


def test_clouded_date_of_boadella_has_no_water_and_is_all_cloud(shared):
    pixels = read(shared / "scenes" / "s2-l2a-boadella-20200118" / "stack.tif", "B02", "B03", "B04", "B08", "B11")
    bands = ("blue", "green", "red", "nir", "swir16")
    assert find(pixels, bands, "water").mean() == 0
    assert find(pixels[:3], bands[:3], "cloud").mean() > 0.99


@pytest.fixture(scope="module")
def ireland(shared) -> tuple[np.ndarray, np.ndarray]:
    folder = shared / "scenes" / "s2-l2a-29unu-20221005"
    pixels = np.concatenate([read(folder / f"{band}_60m.tif") for band in ("B02", "B03", "B04", "B8A", "B11", "B12")])
    return pixels, read(folder / "SCL_60m.tif")[0]


@pytest.mark.parametrize(
    ("prompt", "classes", "ignored", "least"),
    [
        ("water", [6], [3, 8, 9, 10], 0.78),  # measured 0.807
        ("vegetation", [4], [3, 8, 9, 10], 0.92),  # measured 0.948
        ("cloud", [8, 9], [], 0.84),  # measured 0.865
    ],
)
def test_ireland_agrees_with_the_scene_classification(ireland, prompt, classes, ignored, least):
    pixels, scl = ireland
    where = np.isfinite(pixels).all(axis=0) & (scl > 0) & ~np.isin(scl, ignored)
    mask = find(pixels, ("blue", "green", "red", "nir08", "swir16", "swir22"), prompt)
    assert iou(mask, np.isin(scl, classes), where) > least


@pytest.mark.parametrize(
    ("chip", "least"),
    [("breckenridge-20240709", 0.8), ("canal-20240530", 0.74), ("clear-20240626", 0.73), ("bogus-20240708", 0.6)],
)  # measured 0.848, 0.786, 0.779, 0.659
def test_fresh_burns_of_california_agree_with_the_perimeters(shared, chip, least):
    folder = shared / "chips" / "ca-wildfires"
    pixels = read(folder / f"s2-fire-{chip}.tif")
    truth = read(folder / f"s2-fire-{chip}_burnt.tif")[0] == 1
    mask = find(pixels, ("blue", "green", "red", "nir", "swir22"), "burnt ground")
    assert iou(mask, truth, np.isfinite(pixels).all(axis=0)) > least
