"""A run is held against what it was started with: items, catalog, request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import IntegrityError, ResumeError
from eo_batch.core.spec import CatalogSpec
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.manifest import check_same_request
from eo_batch.run.request import Request, load_pipeline
from eo_batch.run.verify import verify_run


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=160)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=160, prompts=("bright",)))
    return folder


@pytest.fixture(scope="module")
def golden(toy: Path) -> Path:
    assert start_run(load_pipeline(toy / "pipeline.toml"), toy / "golden", executor="serial").exit_status == 0
    return toy / "golden"


@pytest.fixture
def lost(golden: Path, tmp_path: Path) -> Path:
    """A finished run without its frozen items."""
    run = Path(shutil.copytree(golden, tmp_path / "run"))
    (run / "items.parquet").unlink()
    return run


def test_verify_names_lost_items(lost: Path) -> None:
    found = verify_run(lost)
    assert [(problem.code, problem.path) for problem in found.problems] == [("shard-missing", "items.parquet")]
    assert found.exit_status == 5


def test_verify_of_a_run_that_died_before_its_items_is_unfinished(lost: Path) -> None:
    for name in ("manifest.json", "COMPLETE.json"):
        (lost / name).unlink()
    found = verify_run(lost)
    assert (found.problems, found.complete, found.exit_status) == ((), False, 3)


def test_lost_items_come_back_by_the_same_search(golden: Path, lost: Path) -> None:
    assert resume_run(lost, executor="serial").exit_status == 0
    assert file_digests(lost) == file_digests(golden)


def test_lost_items_are_not_replaced_by_others(toy: Path, golden: Path, lost: Path) -> None:
    catalog = toy / "catalog.json"
    before = catalog.read_text()
    before_run = file_digests(lost)
    document = json.loads(before)
    document["features"][0]["id"] = "another"
    catalog.write_text(json.dumps(document))
    try:
        with pytest.raises(IntegrityError, match="receipt-mismatch.*items"):
            resume_run(lost, executor="serial")
    finally:
        catalog.write_text(before)
    assert file_digests(lost) == before_run


def rescaled(request: Request) -> Request:
    document = request.catalog.model_dump(mode="json")
    document["collections"]["toy"] = {"offset": 0.5}
    return Request(request.spec, CatalogSpec.model_validate(document), request.region, request.catalog_found)


def test_a_catalog_that_changes_pixels_makes_another_request(toy: Path) -> None:
    request = load_pipeline(toy / "pipeline.toml")
    changed = rescaled(request)
    assert changed.digest != request.digest
    with pytest.raises(ResumeError, match=r"spec-changed: .*catalog.*toy"):
        check_same_request(request, changed)


def test_an_edited_catalog_in_a_stored_request_is_found(toy: Path, golden: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(golden, tmp_path / "run"))
    (run / "request.json").write_bytes(rescaled(load_pipeline(toy / "pipeline.toml")).to_json())
    with pytest.raises(IntegrityError, match="request.json: not the file"):
        resume_run(run, executor="serial")
