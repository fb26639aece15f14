"""E: pixels and answers that cannot be used. Refused, or the chunk fails; they never become a mask."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import rasterio
import xarray as xr
from rundigest import mask_array
from toy import toy_bbox
from wholerun import BBOX, CHUNKS, SIZE, failed, finishes, hostile, refused, resume, run, spoil, spoil_item

from eo_batch.models.probe import WindowMean

WEST, SOUTH, EAST, NORTH = toy_bbox(SIZE)


NOT_FINITE = ("nan", "inf", "all nan")


@pytest.mark.usefixtures("hostile_segmenter")
@pytest.mark.parametrize("how", NOT_FINITE)
def test_e01_a_segmenter_whose_answers_are_not_finite_is_refused_before_the_run(toy: Path, how: str) -> None:
    hostile(toy, how, sound=0)
    refused(toy, 2, "model-not-finite: ", "Check the weights")


@pytest.mark.usefixtures("hostile_segmenter")
@pytest.mark.parametrize("how", NOT_FINITE)
def test_e01_scores_that_are_not_finite_fail_their_chunks_and_never_become_a_mask(toy: Path, how: str) -> None:
    hostile(toy, how, sound=6)
    status, _, err = run(toy)
    line = r"failure: chunk t0000/y(\d{4})_x(\d{4}) failed: model-not-finite: .* of 4,096 logits are "
    failed = re.findall(line, err)
    assert status == 3, err
    assert len(failed) == err.count("failure: chunk ")
    assert 1 <= len(failed) < CHUNKS
    for y, x in failed:
        assert not (toy / f"run/masks.zarr/mask/c/0/0/{int(y)}/{int(x)}").exists()
        assert not (toy / f"run/receipts/t0000/y{y}_x{x}.json").exists()


@pytest.mark.usefixtures("hostile_segmenter")
@pytest.mark.parametrize("how", ["shape", "prompts", "list", "overflow"])
def test_e02_answers_of_another_shape_are_refused_before_the_run(toy: Path, how: str) -> None:
    hostile(toy, how, sound=0)
    refused(toy, 2, "model-shape: ")


@pytest.mark.usefixtures("hostile_segmenter")
def test_e02_answers_that_change_their_shape_later_fail_their_chunks(toy: Path) -> None:
    hostile(toy, "shape", sound=6)
    status, _, err = run(toy)
    assert status == 3
    assert all("model-shape" in line for line in err.splitlines())


def test_e03_a_chunk_without_an_observation_is_empty_and_asks_no_segmenter(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    low = [[WEST, SOUTH], [WEST + 0.002, SOUTH], [WEST + 0.002, SOUTH + 0.002], [WEST, SOUTH]]
    high = [[EAST, NORTH], [EAST - 0.002, NORTH], [EAST, NORTH - 0.002], [EAST, NORTH]]
    (toy / "two.geojson").write_text(json.dumps({"type": "MultiPolygon", "coordinates": [[low], [high]]}))
    spoil(toy, BBOX, 'file = "two.geojson"')
    asked: list[int] = []
    decode = WindowMean.decode

    def counted(self: WindowMean, images: Any, prompts: Any) -> Any:
        asked.append(len(images))
        return decode(self, images, prompts)

    monkeypatch.setattr(WindowMean, "decode", counted)
    assert run(toy)[::2] == (0, "")
    found = [json.loads(path.read_bytes())["facts"] for path in sorted((toy / "run" / "receipts").rglob("*.json"))]
    empty = [facts["key"] for facts in found if facts["status"] == "empty"]
    assert empty
    masks = mask_array(toy / "run")
    assert (masks == 254).any()
    assert not (masks == 255).any()
    for key in empty:
        (toy / "run" / "receipts" / f"{key}.json").unlink()
    (toy / "run" / "COMPLETE.json").unlink()
    asked.clear()
    assert resume(toy)[0] == 0
    assert asked == [], "the segmenter was asked about a chunk without an observation"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "float32"}, "holds float32 numbers, but"),
        ({"dtype": "complex64"}, "holds complex64 values, expected real numbers"),
        ({"crs": None}, "has no coordinate reference system"),
    ],
)
def test_e04_a_later_file_that_breaks_the_contract_is_refused(
    toy: Path, golden: dict[str, str], change: dict[str, object], words: str
) -> None:
    kept = shutil.copy(toy / "b1_green.tif", toy / "kept.tif")
    with rasterio.open(kept) as source:
        profile, numbers = {**source.profile, **change}, source.read()
    with rasterio.open(toy / "b1_green.tif", "w", **profile) as target:
        target.write(numbers.astype(profile["dtype"]))
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as apart:  # this process would keep the spoilt file open
        outcome = apart.submit(run, toy).result()
    failed(outcome, toy, "asset-contract: ", "of item toy/", words)
    Path(kept).replace(toy / "b1_green.tif")
    finishes(toy, golden)


@pytest.mark.parametrize(("field", "value"), [("raster:scale", "abc"), ("raster:scale", 0), ("raster:offset", [1])])
def test_e04_a_scale_that_is_no_number_is_never_guessed(toy: Path, field: str, value: object) -> None:
    spoil_item(toy, lambda item: item["assets"]["green"]["bands"][0].update({field: value}))
    refused(toy, 4, 'item-invalid: band "green" of item toy/a1: ', f"{field} is {json.dumps(value)}")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('"bright"', '""', ["prompt-invalid: prompt 1 is empty"]),
        ('"bright"', f'"{"x" * 10000}"', ["prompt-invalid: prompt 1 has 10,000 characters (limit 200)"]),
        ('"bright"', '"\\u001b[31mred"', ["prompt-invalid: prompt 1 holds control characters"]),
        ('"bright"', '"a\\u202eb"', ["prompt-invalid: prompt 1 holds control characters"]),
        ("[[prompts]]", '[[prompts]]\ntext = " bright "\n[[prompts]]', ["prompt-invalid: ", "prompts 1 and 2 are the same"]),
    ],
)  # fmt: skip
def test_e05_a_prompt_that_cannot_be_asked_is_refused(toy: Path, old: str, new: str, parts: list[str]) -> None:
    spoil(toy, old, new)
    refused(toy, 2, *parts)


def test_e05_prompts_are_told_apart_after_normalisation_and_keep_their_order(toy: Path) -> None:
    spoil(toy, '"bright"', '"  solar   panel \\n"')
    spoil(toy, "[[prompts]]", '[[prompts]]\ntext = "\U0001f33b \u05d0\u05d1"\n[[prompts]]')
    assert run(toy)[0] == 0
    with xr.open_zarr(toy / "run" / "masks.zarr") as cube:
        assert [str(text) for text in cube.prompt.values] == ["\U0001f33b \u05d0\u05d1", "solar panel"]


@pytest.mark.usefixtures("hostile_segmenter")
def test_e09_a_segmenter_that_answers_by_chance_is_refused_before_the_run(toy: Path) -> None:
    hostile(toy, "chance", sound=0)
    refused(toy, 5, "nondeterministic-output: ")
