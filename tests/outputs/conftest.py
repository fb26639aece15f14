"""Fixtures of the tests of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from eo_batch.outputs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in an empty folder."""
    return Store(tmp_path / "run")
