"""Fixtures that every room shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real scenes and labels; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("EO_BATCH_SHARED", ROOT.parent / "shared")) / "data"
    if not (folder / "stac" / "catalog.json").is_file():
        pytest.skip(f"no real scenes: set EO_BATCH_SHARED to the folder that holds data/ (looked for {folder})")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first: each is one long test, and no worker should end alone with one."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
