"""What tests of faults share: an untouched toy, its results, and a process that does not wait."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline
from wholerun import SIZE, SLOW_CHUNKS, invoke, results

from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline
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


@pytest.fixture(scope="session")
def slow_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy of 25 chunks that each take long enough to be killed in; tests must not change it."""
    folder = tmp_path_factory.mktemp("slow")
    make_toy(folder, dates=1)
    (folder / "pipeline.toml").write_text(toy_pipeline(chunk_px=80).replace("[output]", "[model.options]\ncost = 120\n[output]"))
    return folder


@pytest.fixture(scope="session")
def slow_golden(slow_toy: Path) -> dict[str, str]:
    """Digests of an undisturbed run of the slow toy."""
    summary = start_run(load_pipeline(slow_toy / "pipeline.toml"), slow_toy / "golden")
    assert (summary.exit_status, summary.total) == (0, SLOW_CHUNKS)
    return file_digests(slow_toy / "golden")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without waiting."""
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(Retry, "wait_s", lambda self, attempt, asked_s=0.0: 0.0)


@pytest.fixture
def hostile_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package whose segmenter answers `sound` times as it should, and then something that cannot be used."""
    info = tmp_path / "packages" / "eo_hostile-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eo-hostile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[eo_batch.segmenters]\nhostile = hostile_segmenter:make\n")
    (info.parent / "hostile_segmenter.py").write_text(
        textwrap.dedent("""
        import numpy as np
        from eo_batch.models.probe import WindowMean

        class Hostile(WindowMean):
            def decode(self, images, prompts):
                calls.append(1)
                logits = np.array(super().decode(images, prompts))
                return logits if len(calls) <= sound else spoils[spoil](logits)

        def put(value):
            def change(logits):
                logits[0, 0, 3, 3] = value
                return logits
            return change

        spoils = {
            "nan": put(np.nan),
            "inf": put(np.inf),
            "all nan": lambda logits: np.full_like(logits, np.nan),
            "shape": lambda logits: logits[:, :, 1:],
            "prompts": lambda logits: logits[:, :-1] if logits.shape[1] > 1 else np.concatenate([logits, logits], axis=1),
            "list": lambda logits: logits.tolist(),
            "overflow": lambda logits: (logits * 1e4).astype(np.float16),
            "chance": lambda logits: logits + np.float32(len(calls)),
            "memory": lambda logits: (_ for _ in ()).throw(MemoryError()),
        }

        def make(model, bands):
            global calls, sound, spoil
            calls, sound, spoil = [], int(model.options["sound"]), model.options["spoil"]
            return Hostile(tuple(bands), cost=0)
        """)
    )
    monkeypatch.syspath_prepend(info.parent)
