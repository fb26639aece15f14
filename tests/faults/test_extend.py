"""An extension that is killed or meets a broken disk at any operation: the map of before stands, and resume ends it.

As `test_operations`, whose faults are used here; `EO_BATCH_FAULT_STEP` sets how many operations lie between two tries.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from faults.test_operations import KINDS, check_visible, suffer
from rundigest import file_digests, newest_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ConfigError
from eo_batch.notebook import open_run
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.request import load_pipeline

STEP = int(os.environ.get("EO_BATCH_FAULT_STEP", "97"))
SIZE = 160
PUBLISHED = ("COMPLETE.json", "footprints.parquet", "stac/")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a finished run, and `golden`, one run with both prompts."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    for name, prompts in (("base", ("bright",)), ("golden", ("bright", "dark"))):
        (folder / "pipeline.toml").write_text(toy_pipeline(size=SIZE, prompts=prompts))
        assert start_run(load_pipeline(folder / "pipeline.toml"), folder / name, executor="serial").exit_status == 0
    return folder


def work(out: Path) -> None:
    add_prompts(out, "dark", executor="serial")


@pytest.fixture(scope="module")
def operations(toy: Path) -> int:
    """Store operations of an undisturbed extension."""
    out = Path(shutil.copytree(toy / "base", toy / "counted"))
    count = suffer(lambda: work(out), kind="none", at=0)
    assert newest_digests(out) == file_digests(toy / "golden")
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_operation_of_an_extension_loses_nothing(toy: Path, operations: int, kind: str) -> None:
    base, golden = file_digests(toy / "base"), file_digests(toy / "golden")
    cycles = stood = 0
    for at in range(1 + 7 * KINDS.index(kind), operations + 1, STEP):
        out = Path(shutil.copytree(toy / "base", toy / f"{kind}-{at}"))
        suffer(lambda out=out: work(out), kind=kind, at=at)
        check_visible(out)
        stands = (out / "COMPLETE.json").exists() and open_run(out).prompts == ("bright",)
        old = {name: sha for name, sha in base.items() if stands or not name.startswith((*PUBLISHED, "masks.zarr/"))}
        old |= {
            name: sha
            for name, sha in base.items()
            if "/c/0/" in name and name.startswith(("masks.zarr/mask", "masks.zarr/score"))
        }
        now = file_digests(out)
        assert {name: now.get(name) for name in old} == old, f"{kind} at operation {at}"
        stood += stands
        try:
            resume_run(out, executor="serial")
            work(out)  # where the fault came before the extension was on disk
        except ConfigError as error:
            assert "has this prompt already" in str(error)  # noqa: PT017
        assert newest_digests(out) == golden, f"{kind} at operation {at}"
        cycles += 1
    assert cycles >= 2
    assert stood >= 1
    print(f"{kind}: {cycles} cycles over {operations} operations, the map of before stood in {stood}")
