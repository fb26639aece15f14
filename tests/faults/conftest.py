"""What tests of faults share: an untouched toy, its results, and a process that does not wait."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toy import make_toy, toy_pipeline
from wholerun import SIZE, invoke, results

from eo_batch.sources import http
from eo_batch.sources.asset_errors import Retry


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untouched toy; tests must not change it."""
    folder = tmp_path_factory.mktemp("clean") / "toy"
    make_toy(folder, dates=1, size=SIZE)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright",)))
    return folder


@pytest.fixture
def toy(clean: Path, tmp_path: Path) -> Path:
    """A copy of the toy to spoil."""
    return Path(shutil.copytree(clean, tmp_path / "toy"))


@pytest.fixture(scope="session")
def golden_run(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run over local files; tests must not change it."""
    out = tmp_path_factory.mktemp("golden") / "run"
    assert invoke("run", clean / "pipeline.toml", "--out", out, "--cluster", "serial", "--quiet")[0] == 0
    return out


@pytest.fixture(scope="session")
def golden(golden_run: Path) -> dict[str, str]:
    """Digests of the results of an undisturbed run."""
    return results(golden_run)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(Retry, "wait_s", lambda self, attempt, asked_s=0.0: 0.0)
