"""The picture as RemoteSAM's authors prepare it: against Pillow, and against the original."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from eo_batch.models.remotesam.pictures import nearest_positions, prepare


def test_a_picture_of_another_size_is_resized_by_pillow() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    seen = prepare(picture, 64)
    resized = np.asarray(Image.fromarray(picture).resize((64, 64), Image.Resampling.BILINEAR), np.float64)
    expected = (resized / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert (seen.shape, seen.dtype) == ((3, 64, 64), np.float32)
    np.testing.assert_allclose(seen, expected.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize(("length", "side"), [(512, 896), (896, 896), (1200, 896), (7, 3)])
def test_answers_come_back_by_the_pixel_corner(length: int, side: int) -> None:
    assert nearest_positions(length, side).tolist() == [math.floor(i * side / length) for i in range(length)]


@pytest.mark.shared
def test_pictures_are_those_of_the_original_preprocessing(shared: Path) -> None:
    golden = np.load(shared.parent / "golden" / "remotesam" / "prep.npz")
    names = json.loads(str(golden["names"]))
    assert len(names) == 4
    for number, (name, height, width) in enumerate(names):
        seen = prepare(golden_picture(name, height, width), 896)
        assert np.array_equal(seen[:, ::8, ::8], golden[f"s8_{number}"])
        assert np.array_equal(seen[:, 200:224, 600:624], golden[f"crop_{number}"])


@pytest.mark.shared
def test_answers_come_back_as_the_original_resizes_masks(shared: Path) -> None:
    folder = shared.parent / "golden" / "remotesam"
    for case in json.loads((folder / "tasks.json").read_text())["cases"]:
        golden = np.load(folder / f"{case['name']}.npz")
        rows, columns = nearest_positions(case["H"], 896), nearest_positions(case["W"], 896)
        for number, name in enumerate(case["classes"]):
            mask = golden_field(case["blobs"][name]) > 0
            expected = np.unpackbits(golden[f"mask_{number}"], axis=1)[:, : case["W"]].astype(bool)
            assert np.array_equal(mask[np.ix_(rows, columns)], expected)


def golden_picture(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """A picture of the reference vectors, by the rule of their README."""
    x, y, band = np.arange(width)[None, :, None], np.arange(height)[:, None, None], np.arange(3)
    base = 127.5 + 70 * np.sin(2 * np.pi * ((band + 2) * x / width + (band + 1) * y / height))
    noise = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).integers(-40, 41, (height, width, 3))
    return np.clip(np.rint(base + noise), 0, 255).astype(np.uint8)


def golden_field(blobs: list[list[float]]) -> NDArray[np.float32]:
    """Foreground logits of the reference vectors' stand-in network, float32 (896, 896)."""
    y, x = np.mgrid[0:896, 0:896] + 0.5
    field = np.full((896, 896), -6.0)
    for cx, cy, rx, ry, phi, height in blobs:
        a = ((x - cx) * np.cos(phi) + (y - cy) * np.sin(phi)) / rx
        b = ((y - cy) * np.cos(phi) - (x - cx) * np.sin(phi)) / ry
        field = np.maximum(field, height * (1 - a * a - b * b))
    return field.astype(np.float32)
