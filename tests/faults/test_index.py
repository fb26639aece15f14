"""The list of faults and the tests that make them happen agree. `python tests/faults/test_index.py` writes the last column."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from eo_batch.core.errors import CODES

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "docs" / "reference" / "faults.md"
ROW = re.compile(r"^\| ([A-H]\d\d) \| (.+?) \| (.+?) \| (.*?) ?\|$", flags=re.M)
REQUIRED = [
    f"{letter}{number:02d}"
    for letter, numbers in {
        "A": [*range(1, 10), 11, 12],
        "B": [1, 3, 4, 5, 6],
        "C": range(1, 12),
        "D": range(1, 7),
        "E": range(1, 5),
        "F": range(1, 11),
        "G": range(1, 10),
        "H": range(1, 4),
    }.items()
    for number in numbers
]
UNTESTED = {
    "worker-memory": "never raised: a worker that needs too much memory is ended by its nanny and told as worker-lost",
}
"""Codes that no test names, and why."""


@cache
def faults_with_tests() -> dict[str, Counter[str]]:
    """Id of a fault -> file of tests -> how many functions of it carry the id in their name."""
    found: dict[str, Counter[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (name := re.match(r"test_([a-h]\d\d)_", node.name)):
                found.setdefault(name[1].upper(), Counter())[path.relative_to(TESTS).as_posix()] += 1
    return found


def column(files: Counter[str]) -> str:
    """Last column of the table."""
    return ", ".join(f"`{name}` {count}" for name, count in sorted(files.items())) or "-"


@pytest.mark.parametrize("fault", REQUIRED)
def test_every_required_fault_is_made_to_happen(fault: str) -> None:
    assert faults_with_tests().get(fault)


def test_the_page_of_faults_lists_what_is_tested_and_why_the_rest_is_not() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    found = faults_with_tests()
    names = [row[0] for row in rows]
    assert names == sorted(set(names))
    assert set(found) <= set(names)
    for name, _experiment, here, tests in rows:
        assert tests == column(found.get(name, Counter())), f"{name}: run `python tests/faults/test_index.py`"
        assert name in found or here.startswith("Not made to happen"), name


@cache
def texts() -> dict[str, str]:
    """File of tests -> what it says; without those that go through all codes alike."""
    found = [path for path in TESTS.rglob("test_*.py") if path.name not in ("test_errors.py", "test_index.py")]
    return {path.name: path.read_text(encoding="utf-8") for path in found}


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_is_met_by_a_test(code: str) -> None:
    named = [name for name, text in texts().items() if code in text]
    assert bool(named) != (code in UNTESTED), f"{code}: {named}"


def write_column() -> None:
    """Bring the last column of the page up to date."""
    found = faults_with_tests()
    text = PAGE.read_text(encoding="utf-8")
    text = ROW.sub(lambda row: f"| {row[1]} | {row[2]} | {row[3]} | {column(found.get(row[1], Counter()))} |", text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_column()
