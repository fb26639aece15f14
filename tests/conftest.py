"""Fixtures that every room shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from servers.s3 import BUCKET, S3Server, s3_server

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real scenes and labels; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("EO_BATCH_SHARED", ROOT.parent / "shared")) / "data"
    if not (folder / "stac" / "catalog.json").is_file():
        pytest.skip(f"no real scenes: set EO_BATCH_SHARED to the folder that holds data/ (looked for {folder})")
    return folder


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An object store on loopback, with the bucket `maps`."""
    with s3_server() as server:
        yield server


@pytest.fixture
def prefix(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own in that store, which this process can reach."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid4().hex}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first: each is one long test, and no worker should end alone with one."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
