"""Whole runs that meet trouble: one clear error, nothing lost, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rundigest import file_digests, mask_array
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import AssetError, CatalogError, ConfigError, IntegrityError, LockError, ResourceError, ResumeError
from eo_batch.core.prompts import PromptSet
from eo_batch.models.probe import WindowMean
from eo_batch.outputs.store import Store
from eo_batch.run import answers, sitting
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.lease import acquire
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=260)
    return folder


@pytest.fixture(scope="module")
def golden(toy: Path) -> Path:
    out = toy / "golden"
    assert start_run(load(toy), out, executor="serial").exit_status == 0
    return out


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A finished run to damage."""
    return Path(shutil.copytree(golden, tmp_path / "copy"))


def load(toy: Path, name: str = "pipeline", **settings: object):
    path = toy / f"{name}.toml"
    path.write_text(toy_pipeline(size=260, **settings))  # type: ignore[arg-type]
    return load_pipeline(path)


def test_a_run_leaves_what_it_promises(golden: Path) -> None:
    for name in (
        "manifest.json",
        "items.parquet",
        "masks.zarr",
        "footprints.parquet",
        "stac/collection.json",
        "receipts",
        "COMPLETE.json",
    ):
        assert (golden / name).exists(), name
    status = run_status(golden)
    assert (status.state, status.finished, status.failures) == ("complete", status.total, ())
    assert verify_run(golden).ok


def test_events_tell_search_plan_chunks_and_publish(toy: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    start_run(load(toy), tmp_path / "run", executor="serial", listener=events.append)
    kinds = [event.kind for event in events]
    assert list(dict.fromkeys(kinds)) == ["search", "plan", "start", "chunk", "merge", "publish"]
    chunks = [event for event in events if event.kind == "chunk"]
    assert [event.done for event in chunks] == list(range(1, chunks[-1].total + 1))
    assert chunks[-1].km2 == pytest.approx(5.3, abs=0.3)


def test_an_empty_search_leaves_no_folder(toy: Path, tmp_path: Path) -> None:
    path = toy / "empty.toml"
    path.write_text(toy_pipeline(size=260).replace("2024-06-01", "2023-06-01").replace("2024-07-01", "2023-07-01"))
    with pytest.raises(CatalogError, match="catalog-empty"):
        start_run(load_pipeline(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_run_in_the_same_folder_is_refused(toy: Path, copy: Path) -> None:
    before = file_digests(copy)
    with pytest.raises(ConfigError, match="already holds a run.*eo-batch resume"):
        start_run(load(toy), copy)
    assert file_digests(copy) == before


def test_f01_a_second_driver_is_refused_while_the_first_works(toy: Path, copy: Path) -> None:
    with acquire(Store(copy)):
        with pytest.raises(LockError, match="run-locked"):
            start_run(load(toy), copy)
        with pytest.raises(LockError, match="run-locked"):
            resume_run(copy)


@pytest.mark.parametrize(
    ("settings", "code", "text"),
    [
        ({"prompts": ("bright", "dim")}, "prompts-changed", '"dim"'),
        ({"window_px": 80}, "spec-changed", "model.window_px: 64 became 80"),
        ({"chunk_px": 99}, "spec-changed", "grid.chunk_px: 128 became 99"),
    ],
)
def test_f05_resume_refuses_a_changed_pipeline(toy: Path, copy: Path, settings: dict, code: str, text: str) -> None:
    changed = load(toy, "changed", **settings)
    for attempt in (lambda: resume_run(copy, request=changed), lambda: start_run(changed, copy)):
        with pytest.raises(ResumeError, match=code) as error:
            attempt()
        assert text in str(error.value)
        assert error.value.exit_status == 8


def test_resume_of_a_finished_run_changes_nothing(copy: Path) -> None:
    before = file_digests(copy)
    assert resume_run(copy).exit_status == 0
    assert file_digests(copy) == before


def test_f07_resume_refuses_another_algorithm(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eo_batch.run.manifest.ALGORITHM", 99)
    with pytest.raises(ResumeError, match="code-changed.*99"):
        resume_run(copy)


def test_f09_an_edited_manifest_is_found(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["chunks"] = 3
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="receipt-mismatch"):
        resume_run(copy)
    assert [problem.code for problem in verify_run(copy).problems] == ["receipt-mismatch"]


def shards(run: Path) -> Iterator[Path]:
    return (path for path in sorted((run / "masks.zarr" / "mask" / "c").rglob("*")) if path.is_file())


@pytest.mark.parametrize("damage", ["delete", "zero", "flip", "swap", "receipt", "part", "footprints"])
def test_f10_verify_names_the_damage_and_repair_restores_the_bytes(golden: Path, copy: Path, damage: str) -> None:
    first, second, *_ = shards(copy)
    victim = first
    if damage == "delete":
        first.unlink()
    elif damage == "zero":
        first.write_bytes(b"")
    elif damage == "flip":
        data = bytearray(first.read_bytes())
        data[len(data) // 2] ^= 1
        first.write_bytes(data)
    elif damage == "swap":
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    elif damage == "receipt":
        victim = next(iter(sorted((copy / "receipts").rglob("*.json"))))
        victim.write_text(victim.read_text().replace('"valid_px":', '"valid_px":1'))
    elif damage == "part":
        victim = next(iter(sorted((copy / "parts").rglob("*.parquet"))))
        victim.write_bytes(b"PAR1")
    else:
        victim = copy / "footprints.parquet"
        victim.write_bytes(victim.read_bytes()[:-7])
    found = verify_run(copy)
    assert not found.ok
    assert victim.relative_to(copy).as_posix() in {problem.path for problem in found.problems}
    assert {problem.key for problem in found.problems if problem.key} <= {"t0000/y0000_x0000", "t0000/y0000_x0001"}
    assert resume_run(copy, repair=True, executor="serial").exit_status == 0
    assert verify_run(copy).ok
    assert file_digests(copy) == file_digests(golden)


def test_a_truncated_scene_fails_its_chunks_and_nothing_else(toy: Path, tmp_path: Path, golden: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "damaged", ignore=shutil.ignore_patterns("golden")))
    scene = folder / "b1_nir.tif"
    whole = scene.read_bytes()
    scene.write_bytes(whole[: len(whole) * 2 // 3])
    out = tmp_path / "run"
    summary = start_run(load_pipeline(folder / "pipeline.toml"), out, executor="serial")
    assert summary.exit_status == 3
    assert 0 < summary.failed < summary.total
    assert not (out / "COMPLETE.json").exists()
    status = run_status(out)
    assert {failure.code for failure in status.failures} == {"asset-corrupt"}
    assert all("nir" in failure.text and "b1" in failure.text for failure in status.failures)
    assert status.finished == summary.total - summary.failed
    masks = mask_array(out)
    assert (masks == 255).any()
    seen = masks != 255
    np.testing.assert_array_equal(masks[seen], mask_array(golden)[seen])
    scene.write_bytes(whole)
    assert resume_run(out, executor="serial").exit_status == 0
    np.testing.assert_array_equal(mask_array(out), mask_array(golden))


def test_allowed_failures_publish_a_map_that_says_it_is_partial(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "damaged", ignore=shutil.ignore_patterns("golden")))
    (folder / "b1_nir.tif").unlink()
    summary = start_run(load_pipeline(folder / "pipeline.toml"), tmp_path / "run", executor="serial", allow_failed=100)
    assert (summary.exit_status, summary.complete) == (3, True)
    marker = json.loads((tmp_path / "run" / "COMPLETE.json").read_bytes())
    assert marker["partial"] is True
    assert len(marker["failed"]) == summary.failed > 0


def test_a_published_partial_map_stays_until_there_is_something_new(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "damaged", ignore=shutil.ignore_patterns("golden")))
    scene = folder / "b1_nir.tif"
    whole = scene.read_bytes()
    scene.unlink()
    out = tmp_path / "run"
    start_run(load_pipeline(folder / "pipeline.toml"), out, executor="serial", allow_failed=100)
    marker = (out / "COMPLETE.json").read_bytes()
    assert resume_run(out, executor="serial").exit_status == 3
    assert (out / "COMPLETE.json").read_bytes() == marker
    scene.write_bytes(whole)
    assert resume_run(out, executor="serial").exit_status == 0
    assert json.loads((out / "COMPLETE.json").read_bytes())["partial"] is False
    assert verify_run(out).ok


def test_skipped_scenes_are_counted_and_said(toy: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "damaged", ignore=shutil.ignore_patterns("golden")))
    (folder / "b1_nir.tif").unlink()
    pipeline = folder / "pipeline.toml"
    pipeline.write_text(pipeline.read_text().replace("[source]", '[source]\nmissing_assets = "skip"'))
    events: list[Event] = []
    summary = start_run(load_pipeline(pipeline), tmp_path / "run", executor="serial", listener=events.append)
    assert (summary.exit_status, summary.failed) == (0, 0)
    marker = json.loads((tmp_path / "run" / "COMPLETE.json").read_bytes())
    assert marker["skipped_items"] == ["toy/b1"]
    assert any(event.kind == "warning" and "1 scenes were left out" in event.text for event in events)
    assert verify_run(tmp_path / "run").ok


class NotFinite(WindowMean):
    """A segmenter that breaks on the window at lattice row 0 of its input."""

    def decode(self, image_features, prompt_features):
        logits = super().decode(image_features, prompt_features)
        logits[0, 0, 3, 5] = np.nan
        return logits


def test_scores_that_are_not_finite_never_become_a_mask(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "load_segmenter", lambda model, bands: NotFinite(tuple(bands)))
    out = tmp_path / "run"
    summary = start_run(load(toy), out, executor="serial")
    assert summary.exit_status == 3
    assert summary.failed == summary.total
    assert {failure.code for failure in run_status(out).failures} == {"model-not-finite"}
    assert (mask_array(out) == 255).all()


def test_many_equal_failures_in_a_row_stop_the_run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "gone", ignore=shutil.ignore_patterns("golden")))
    request = load_pipeline(folder / "pipeline.toml")
    for scene in folder.glob("*.tif"):
        scene.unlink()
    monkeypatch.setattr(sitting, "STOP_AFTER_EQUAL", 3)
    with pytest.raises(AssetError, match="asset-not-found"):
        start_run(request, tmp_path / "run", executor="serial")
    assert len(run_status(tmp_path / "run").failures) == 3


def test_b01_a_plan_that_cannot_fit_is_refused_before_anything_is_written(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"plan-too-big.*chunk_px|plan-too-big.*memory_gb"):
        start_run(load(toy, "tight", extra="[limits]\nmemory_gb = 0.01"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_clear_error(toy: Path, tmp_path: Path) -> None:
    from eo_batch.core.errors import StoreError

    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(StoreError, match="store-denied"):
        start_run(load(toy), locked / "run")


def test_a_prompt_the_model_cannot_serve_is_refused_before_the_search(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt-invalid"):
        start_run(load(toy, "spectral", model="spectral", prompts=("unicorn",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_keep_their_order_in_the_cube(golden: Path) -> None:
    import xarray as xr

    assert isinstance(load(golden.parent).spec.prompt_set, PromptSet)
    with xr.open_zarr(golden / "masks.zarr") as cube:
        assert [str(p) for p in cube.prompt.values] == ["bright", "dark"]
