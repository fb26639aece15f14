"""The guide that compares models: its tables of options and its list of segmenters are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from eo_batch.models.grounded_sam2 import segmenter as grounded
from eo_batch.models.options import NetworkOptions
from eo_batch.models.registry import BUILT_IN
from eo_batch.models.sam3 import segmenter as sam3

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "open-models.md"


def section(title: str) -> str:
    return GUIDE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("title", "options"), [("SAM 3", sam3._Options), ("Grounding DINO with SAM 2", grounded._Options)])
def test_every_option_is_in_its_table_with_its_default(title: str, options: type[NetworkOptions]) -> None:
    said: dict[str, str] = {}
    for names, defaults in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section(title), re.MULTILINE):
        keys = re.findall(r"`(\w+)`", names)
        values = [value.strip("` ") for value in defaults.split(", ")]
        said |= dict(zip(keys, values, strict=True))
    right = {option.name: str(option.default).lower() for option in fields(options)}
    assert set(said) == set(right)
    for name, value in said.items():
        assert value.strip('"') == right[name].removesuffix(".0"), name


def test_all_models_are_compared() -> None:
    table = GUIDE.read_text().split("\n\n")[2]
    compared = set(re.findall(r"^\| \[`([\w-]+)`\]", table, re.MULTILINE))
    assert compared == set(BUILT_IN) - {"window-mean"}  # which is for tests
