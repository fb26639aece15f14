"""Prompts added to a finished run: the run becomes what one with all prompts is, and nothing finished is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from rundigest import OWN, file_digests, footprint_rows, mask_array, newest_digests
from toy import make_toy, toy_bbox, toy_pipeline

from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError, EoBatchError, IntegrityError, LockError, ResourceError, ResumeError, StoreError
from eo_batch.models.probe import WindowMean
from eo_batch.notebook import open_run
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.export import export_run
from eo_batch.outputs.store import Store
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later import extend
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.layers.products import make_products
from eo_batch.run.lease import acquire
from eo_batch.run.manifest import read_request
from eo_batch.run.request import Request, load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run
from eo_batch.sources.open_files import close_files

SIZE = 200
Prompts = tuple[tuple[str, float, float], ...]
ALL: Prompts = (("bright", 0.5, 0.0), ("dark", 0.4, 3000.0), ("solar panel", 0.6, 0.0))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=2, size=SIZE)
    return folder


def load(folder: Path, prompts: Prompts, name: str = "pipeline", edit: Callable[[str], str] = str, **settings: Any) -> Request:
    text = edit(toy_pipeline(**{"size": SIZE, "chunk_px": 96, "prompts": (), **settings}))
    path = folder / f"{name}.toml"
    path.write_text(text + "".join(_table(*prompt) for prompt in prompts))
    return load_pipeline(path)


def _table(text: str, threshold: float, min_area_m2: float) -> str:
    return f'\n[[prompts]]\ntext = "{text}"\nthreshold = {threshold}\nmin_area_m2 = {min_area_m2}\n'


def extended(out: Path, *more: Prompts, **settings: Any) -> Path:
    """The run in `out` after extensions by `more`, one after the other."""
    for prompts in more:
        texts, thresholds, areas = zip(*prompts, strict=True)
        summary = add_prompts(out, texts, threshold=thresholds, min_area_m2=areas, **{"executor": "serial", **settings})
        assert (summary.exit_status, summary.complete) == (0, True)
    return out


@pytest.fixture(scope="module")
def golden(toy: Path) -> Path:
    """One run with all prompts from the start."""
    assert start_run(load(toy, ALL), toy / "golden", executor="serial").exit_status == 0
    return toy / "golden"


@pytest.fixture(scope="module")
def base(toy: Path) -> Path:
    """A finished run with the first prompt."""
    assert start_run(load(toy, ALL[:1]), toy / "base", executor="serial").exit_status == 0
    return toy / "base"


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "run"))


@pytest.mark.parametrize("steps", [(ALL[1:],), (ALL[1:2], ALL[2:])], ids=["at once", "one after the other"])
def test_an_extended_run_is_the_run_with_all_prompts(run: Path, golden: Path, steps: tuple[Prompts, ...]) -> None:
    assert newest_digests(extended(run, *steps)) == file_digests(golden)
    status = run_status(run)
    assert (status.state, status.finished, status.adding) == ("complete", status.total, ())
    assert verify_run(run).ok


def test_threads_extend_as_one_after_the_other(run: Path, golden: Path) -> None:
    assert newest_digests(extended(run, ALL[1:], executor="local", workers=3)) == file_digests(golden)


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"model": "spectral", "composite": "median", "step": "all"}, (("water", 0.5, 0.0), ("lake", 0.3, 500.0))),
        ({"composite": "best", "step": "month", "edit": lambda text: text.replace("scores = true", "scores = false")}, ALL),
    ],
    ids=["spectral median", "best without scores"],
)
def test_other_settings_give_the_same_bytes_too(toy: Path, tmp_path: Path, settings: dict[str, Any], prompts: Prompts) -> None:
    start_run(load(toy, prompts, **settings), tmp_path / "one", executor="serial")
    start_run(load(toy, prompts[:1], **settings), tmp_path / "run", executor="serial")
    assert newest_digests(extended(tmp_path / "run", prompts[1:])) == file_digests(tmp_path / "one")


def test_neither_region_file_nor_catalog_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    make_toy(folder, dates=1, size=SIZE)
    west, south, east, north = toy_bbox(SIZE)
    ring = [[west, south], [east, south], [(west + east) / 2, north], [west, south]]
    (folder / "region.json").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))

    def outlined(text: str) -> str:
        return "\n".join('file = "region.json"' if line.startswith("bbox") else line for line in text.splitlines())

    start_run(load(folder, ALL[:2], edit=outlined), tmp_path / "one", executor="serial")
    start_run(load(folder, ALL[:1], edit=outlined), tmp_path / "run", executor="serial")
    (folder / "region.json").unlink()
    (folder / "catalog.json").unlink()
    assert newest_digests(extended(tmp_path / "run", ALL[1:2])) == file_digests(tmp_path / "one")


def test_no_finished_file_is_written_again(run: Path) -> None:
    rewritten = ("COMPLETE.json", "footprints.parquet", "stac/", "lease/")
    before = {path: _identity(path) for path in _files(run) if not path.relative_to(run).as_posix().startswith(rewritten)}
    extended(run, ALL[1:])
    headers = {"masks.zarr/zarr.json", *(f"masks.zarr/{name}" for name in _header_names(run))}
    changed = {path.relative_to(run).as_posix() for path, seen in before.items() if _identity(path) != seen}
    assert changed <= headers
    assert any(path.name == "y0000_x0000.json" for path in before)


def _files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file())


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _header_names(run: Path) -> list[str]:
    cube = run / "masks.zarr"
    return [
        path.relative_to(cube).as_posix()
        for path in _files(cube)
        if not path.relative_to(cube).as_posix().startswith(("mask/c/", "score/c/"))
    ]


def test_only_the_new_prompts_are_asked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Counting(WindowMean):
        def decode(self, image_features, prompt_features):
            asked.append(len(prompt_features))
            return super().decode(image_features, prompt_features)

    from eo_batch.run import answers

    monkeypatch.setattr(answers, "load_segmenter", lambda model, bands: Counting(tuple(bands)))
    extended(run, ALL[1:2])
    assert set(asked) == {1}


class Full(Disk):
    """A disk that fills up after so many files."""

    left = 10

    def _rename(self, source: Path, target: Path) -> None:
        if "lease" not in str(target):
            Full.left -= 1
            if Full.left < 0:
                raise OSError(28, "no space left")
        os.replace(source, target)


@pytest.fixture
def stopped(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose extension met a full disk in the middle."""
    Full.left = 10
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "_rename", Full._rename)
        with pytest.raises(StoreError, match="disk-full"):
            add_prompts(run, [text for text, *_ in ALL[1:]], threshold=[0.4, 0.6], min_area_m2=[3000, 0], executor="serial")
    return run


def test_until_it_is_published_readers_see_the_run_as_it_was(stopped: Path, base: Path, tmp_path: Path) -> None:
    shared = {name: sha for name, sha in file_digests(base).items() if name.split("/")[0] != "masks.zarr"}
    assert {name: sha for name, sha in file_digests(stopped).items() if name in shared} == shared
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = open_run(stopped)
    assert seen.prompts == ("bright",)
    assert np.array_equal(seen.masks["mask"].values, mask_array(base))
    assert len(seen.footprints()) == len(open_run(base).footprints())
    assert len(seen.items) == 4
    assert make_products(stopped).boxes.keys() == {"bright"}
    assert Path(export_run(stopped, tmp_path / "maps")[-1]).name == "footprints.gpkg"
    status = run_status(stopped)
    assert (status.state, status.adding) == ("stopped", ("dark", "solar panel"))
    assert 0 < status.finished < status.total
    assert ("adding", '"dark"') in status.rows()
    assert "adding      dark" in repr(seen)
    found = verify_run(stopped)
    assert (found.problems, found.complete, found.exit_status) == ((), False, 3)


def test_a_stopped_extension_goes_on_with_resume(stopped: Path, golden: Path) -> None:
    finished = run_status(stopped).finished
    events: list[Event] = []
    assert resume_run(stopped, executor="serial", listener=events.append).exit_status == 0
    assert sum(event.kind == "chunk" for event in events) == run_status(stopped).total - finished
    assert newest_digests(stopped) == file_digests(golden)


def test_a_polite_stop_drains_and_keeps_the_map(run: Path, golden: Path) -> None:
    marker = (run / "COMPLETE.json").read_bytes()
    said: list[str] = []

    def stop_after_one(event: Event) -> None:
        said.append(event.text)
        if event.kind == "chunk":
            signal.raise_signal(signal.SIGTERM)

    texts, thresholds, areas = zip(*ALL[1:], strict=True)
    summary = add_prompts(run, texts, threshold=thresholds, min_area_m2=areas, executor="serial", listener=stop_after_one)
    assert (summary.exit_status, summary.done) == (130, 1)
    assert f"eo-batch resume {run}" in said[-1]
    assert (run / "COMPLETE.json").read_bytes() == marker
    assert resume_run(run, executor="serial").exit_status == 0
    assert newest_digests(run) == file_digests(golden)


@pytest.mark.parametrize("text", ["road", "dark"], ids=["another prompt", "the same again"])
def test_a_stopped_extension_is_finished_before_another_begins(stopped: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"an extension of the run is not finished.*eo-batch resume"):
        add_prompts(stopped, text, executor="serial")


def test_after_it_everything_reads_all_prompts(run: Path, golden: Path, tmp_path: Path) -> None:
    extended(run, ALL[1:])
    seen = open_run(run)
    assert seen.prompts == ("bright", "dark", "solar panel")
    assert np.array_equal(seen.masks["mask"].values, mask_array(golden))
    assert np.array_equal(seen.masks.sel(prompt="dark")["score"].values, mask_array(golden, "score")[1])
    assert list(make_products(run).boxes) == list(seen.prompts)
    assert len(export_run(run, tmp_path / "maps")) == 3 * 2 + 1


@pytest.mark.parametrize(
    ("prompts", "settings", "text"),
    [
        (["  Bright ", "road"], {}, None),  # another text than "bright": case is kept
        (
            ["bright "],
            {},
            r'"bright": the run has this prompt already, from score 0.5.*eo-batch rethreshold RUN --prompt bright --threshold T',
        ),
        (["road", " road"], {}, "the same after normalisation"),
        ([], {}, "no prompt is given"),
        ([""], {}, "prompt 1 is empty"),
        (["road"], {"threshold": 1.5}, "threshold"),
        (["road"], {"min_area_m2": -1.0}, "min_area_m2"),
        (["road", "ship", "car"], {"threshold": [0.4, 0.5]}, "2 numbers for 3 prompts"),
        ([f"prompt {n}" for n in range(256)], {}, "256"),
    ],
)
def test_prompts_that_cannot_be_added_change_nothing(run: Path, prompts: list[str], settings: dict, text: str | None) -> None:
    before = file_digests(run)
    if text is None:
        assert add_prompts(run, prompts, executor="serial", **settings).exit_status == 0
        return
    with pytest.raises(ConfigError, match=text):
        add_prompts(run, prompts, executor="serial", **settings)
    assert file_digests(run) == before


def test_numbers_of_arrays_are_the_numbers_that_they_print_as(run: Path) -> None:
    for threshold in (np.float32(0.4), np.array([0.4], np.float32)):
        asked = extend.extended_request(read_request(Store(run)), "road", threshold=threshold)  # type: ignore[arg-type]
        assert asked.spec.prompts[-1].threshold == 0.4


def test_a_run_that_is_not_complete_is_not_extended(run: Path, tmp_path: Path) -> None:
    marker = json.loads((run / "COMPLETE.json").read_bytes())
    (run / "COMPLETE.json").write_bytes(canonical_json({**marker, "partial": True}))
    with pytest.raises(ConfigError, match=r"chunks of the run failed.*eo-batch resume"):
        add_prompts(run, "road")
    (run / "COMPLETE.json").unlink()
    with pytest.raises(ConfigError, match=r"the run is not finished.*eo-batch resume"):
        add_prompts(run, "road")
    with pytest.raises(ConfigError, match="there is no run in this folder"):
        add_prompts(tmp_path / "none", "road")
    assert not (tmp_path / "none").exists()


def test_a_run_of_an_older_format_is_read_and_not_extended(run: Path) -> None:
    _change_manifest(run, format=1)
    assert open_run(run).prompts == ("bright",)
    assert not run_status(run).failures
    for attempt in (lambda: add_prompts(run, "road"), lambda: resume_run(run)):
        with pytest.raises(ResumeError, match=r"format-older.*format 1"):
            attempt()


def test_other_weights_or_rules_are_refused(run: Path) -> None:
    _change_manifest(run, segmenter="0" * 64)
    with pytest.raises(ResumeError, match="weights-changed"):
        add_prompts(run, "road")
    _change_manifest(run, algorithm=1)
    with pytest.raises(ResumeError, match="code-changed"):
        add_prompts(run, "road")
    assert not (run / "extensions").exists()


def _change_manifest(run: Path, **facts: Any) -> None:
    body = {**json.loads((run / "manifest.json").read_bytes()), **facts}
    del body["digest"]
    whole = {**body, "digest": digest(body)}
    (run / "manifest.json").write_bytes(canonical_json(whole))
    marker = json.loads((run / "COMPLETE.json").read_bytes())
    (run / "COMPLETE.json").write_bytes(canonical_json({**marker, "run": whole["digest"]}))


class Sociable(WindowMean):
    """A segmenter whose answer to a prompt depends on the prompts asked with it."""

    def decode(self, image_features, prompt_features):
        return super().decode(image_features, prompt_features - prompt_features.mean())


def test_a_segmenter_that_minds_company_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extend, "load_segmenter", lambda model, bands: Sociable(tuple(bands)))
    with pytest.raises(IntegrityError, match="nondeterministic-output.*new run with all prompts"):
        add_prompts(run, "road")
    assert not (run / "extensions").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(run: Path) -> None:
    request = json.loads((run / "request.json").read_bytes())
    request["spec"]["limits"]["memory_gb"] = 0.01  # no part of the identity of a run
    (run / "request.json").write_bytes(canonical_json(request))
    with pytest.raises(ResourceError, match="plan-too-big"):
        add_prompts(run, "road")
    assert not (run / "extensions").exists()


def test_two_drivers_do_not_extend_one_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acquire(Store(run)), pytest.raises(LockError, match="run-locked"):
        add_prompts(run, "road")
    plan = extend.make_plan

    def slow_plan(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(extend, "make_plan", plan)
        add_prompts(run, "ship", executor="serial")
        return plan(*args, **kwargs)

    monkeypatch.setattr(extend, "make_plan", slow_plan)
    with pytest.raises(ConfigError, match="meanwhile"):
        add_prompts(run, "road")
    assert open_run(run).prompts == ("bright", "ship")
    assert not (run / "extensions" / "0002").exists()


def test_the_plan_is_that_of_the_new_prompts_and_warnings_are_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Warning_(WindowMean):
        def warnings(self, prompts: Any, *, sees_whole: bool = False) -> tuple[str, ...]:
            return tuple(f"mind {text}" for text in prompts.texts)

    monkeypatch.setattr(extend, "load_segmenter", lambda model, bands: Warning_(tuple(bands)))
    events: list[Event] = []
    add_prompts(run, ["road", "ship"], executor="serial", listener=events.append)
    assert [event.text for event in events if event.kind == "warning"] == ["mind road", "mind ship"]
    plan = next(event for event in events if event.kind == "plan")
    assert plan.data["prompts"] == 2
    assert plan.text.startswith("2 more prompts in ")
    assert list(dict.fromkeys(event.kind for event in events)) == ["warning", "plan", "start", "chunk", "merge", "publish"]


@pytest.mark.parametrize(
    "name",
    [
        "masks.zarr/mask/c/0/1/0/1",  # written before the extension
        "masks.zarr/score/c/2/0/1/0",
        "parts/t0001/y0000_x0001.parquet",
        "receipts/t0000/y0001_x0000.json",
        "extensions/0001/parts/t0000/y0000_x0000.parquet",
        "extensions/0001/receipts/t0000/y0001_x0001.json",
        "masks.zarr/prompt/zarr.json",
    ],
)
def test_damage_in_any_generation_is_named_and_repaired(extended_run: Path, tmp_path: Path, name: str) -> None:
    out = Path(shutil.copytree(extended_run, tmp_path / "damaged"))
    data = bytearray((out / name).read_bytes())
    data[len(data) // 2] ^= 1
    (out / name).write_bytes(data)
    found = verify_run(out)
    assert [problem.path for problem in found.problems][:1] == [name]
    assert found.exit_status == 5
    assert resume_run(out, repair=True, executor="serial").exit_status == 0
    assert file_digests(out) == file_digests(extended_run)


@pytest.fixture(scope="module")
def extended_run(base: Path, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = extended(Path(shutil.copytree(base, tmp_path_factory.mktemp("extended") / "run")), ALL[1:])
    assert newest_digests(out) == file_digests(golden)
    return out


def test_receipts_that_contradict_each_other_are_named(extended_run: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(extended_run, tmp_path / "run"))
    path = out / "extensions/0001/receipts/t0000/y0000_x0000.json"
    receipt = json.loads(path.read_bytes())
    receipt["facts"]["files"]["masks.zarr/mask/c/0/0/0/0"] = "0" * 64
    receipt["digest"] = digest(receipt["facts"])
    path.write_bytes(canonical_json(receipt))
    assert "names another masks.zarr/mask/c/0/0/0/0" in verify_run(out).problems[0].text
    assert resume_run(out, repair=True, executor="serial").exit_status == 0
    assert file_digests(out) == file_digests(extended_run)


def test_scenes_that_changed_since_are_never_mixed_with_those_of_before(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", dates=1, size=SIZE)
    edit: Callable[[str], str] = lambda text: text.replace("[source]", '[source]\nmissing_assets = "skip"')  # noqa: E731
    scene = tmp_path / "toy" / "b1_nir.tif"
    whole = scene.read_bytes()
    scene.unlink()
    out = tmp_path / "run"
    start_run(load(tmp_path / "toy", ALL[:1], edit=edit), out, executor="serial")
    before = file_digests(out)
    scene.write_bytes(whole)  # what was left out is there now
    close_files()
    assert add_prompts(out, "road", executor="serial").exit_status == 3
    codes = {failure.code for failure in run_status(out).failures}
    assert codes == {"asset-contract"}
    assert "not what they were when the first prompts were answered" in run_status(out).failures[0].text
    assert {name: sha for name, sha in file_digests(out).items() if name in before} == before
    scene.unlink()
    close_files()
    assert resume_run(out, executor="serial").exit_status == 0
    assert open_run(out).prompts == ("bright", "road")


def test_a_hole_that_moved_is_noticed_though_as_many_pixels_are_observed(tmp_path: Path) -> None:
    def move_hole(row: int, *, healed: int | None = None) -> None:
        close_files()
        for band in ("green", "nir"):
            with rasterio.open(tmp_path / "toy" / f"a1_{band}.tif", "r+") as scene:
                for place, value in ((row, 0), *(((healed, 2000),) if healed else ())):
                    scene.write(np.full((1, 1), value, np.uint16), 1, window=Window(90, place, 1, 1))

    make_toy(tmp_path / "toy", dates=1, size=SIZE)
    out = tmp_path / "run"
    move_hole(100)
    start_run(load(tmp_path / "toy", ALL[:1]), out, executor="serial")
    assert (mask_array(out) == 254).any()
    move_hole(101, healed=100)
    assert (add_prompts(out, "road", executor="serial").failed, run_status(out).failures[0].code) == (1, "asset-contract")
    assert "other pixels are observed" in run_status(out).failures[0].text


def test_a_chunk_that_fails_leaves_the_map_and_a_partial_one_must_be_allowed(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", dates=1, size=SIZE)
    out, scene = tmp_path / "run", tmp_path / "toy" / "b1_green.tif"
    start_run(load(tmp_path / "toy", ALL[:1]), out, executor="serial")
    marker, whole = (out / "COMPLETE.json").read_bytes(), scene.read_bytes()
    before = footprint_rows(out)
    scene.unlink()
    close_files()
    summary = add_prompts(out, "road", executor="serial")
    assert (summary.exit_status, summary.complete) == (3, False)
    assert (out / "COMPLETE.json").read_bytes() == marker
    assert resume_run(out, executor="serial", allow_failed=9).exit_status == 3
    partial = json.loads((out / "COMPLETE.json").read_bytes())
    assert (partial["partial"], list(partial["footprints"])) == (True, ["bright", "road"])
    assert [row for row in footprint_rows(out) if "bright" in row] == before != []  # nothing that was there is lost
    assert verify_run(out).ok
    with pytest.raises(ConfigError, match="chunks of the run failed"):
        add_prompts(out, "ship")
    scene.write_bytes(whole)
    assert resume_run(out, executor="serial").exit_status == 0
    start_run(load(tmp_path / "toy", (("bright", 0.5, 0.0), ("road", 0.5, 0.0))), tmp_path / "one", executor="serial")
    assert newest_digests(out) == file_digests(tmp_path / "one")


def test_what_an_extension_that_was_given_up_left_is_never_seen(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(stopped.glob("masks.zarr/mask/c/1/*/*/*"))
    shutil.rmtree(stopped / "extensions")
    assert verify_run(stopped).ok
    monkeypatch.setattr(WindowMean, "decode", lambda *args: np.full((4, 1, 64, 64), np.nan, np.float32))  # all chunks fail
    monkeypatch.setattr(extend, "probe_company", lambda *args, **kwargs: None)
    assert add_prompts(stopped, "road", executor="serial", allow_failed=99).failed == run_status(stopped).total
    assert (mask_array(stopped)[1] == 255).all()


def test_a_repair_whose_scenes_are_gone_says_which_chunks_fail(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", dates=1, size=SIZE)
    out = tmp_path / "run"
    start_run(load(tmp_path / "toy", ALL[:1]), out, executor="serial")
    extended(out, ALL[1:2])
    for scene in (tmp_path / "toy").glob("*.tif"):
        scene.rename(scene.with_suffix(".away"))
    close_files()
    (out / "masks.zarr/mask/c/0/0/0/0").write_bytes(b"damaged")
    summary = resume_run(out, repair=True, executor="serial")
    assert (summary.exit_status, summary.failed, summary.done) == (3, 1, summary.total - 1)
    assert [failure.code for failure in run_status(out).failures] == ["asset-not-found"]
    assert resume_run(out, executor="serial", allow_failed=1).complete
    for scene in (tmp_path / "toy").glob("*.away"):
        scene.rename(scene.with_suffix(".tif"))
    assert resume_run(out, executor="serial").exit_status == 0
    assert verify_run(out).ok


def test_the_pipeline_of_an_extended_run_is_known_again(toy: Path, extended_run: Path) -> None:
    cases: list[tuple[Prompts, type[EoBatchError], str]] = [
        (ALL, ConfigError, "already holds a run.*eo-batch resume"),
        ((*ALL, ("road", 0.5, 0.0)), ResumeError, "`eo-batch add-prompts RUN road`"),
        (
            (*ALL, ("it's a road", 0.5, 0.0), ("car", 0.1234567, 9.0)),
            ResumeError,
            """RUN 'it'"'"'s a road' car --threshold 0.5 --threshold 0.1234567 --min-area 0 --min-area 9`""",
        ),
        (ALL[:1], ResumeError, "more prompts since it was started.*eo-batch resume RUN, without a pipeline"),
        ((("bright", 0.7, 0.0), *ALL[1:]), ResumeError, "eo-batch rethreshold RUN"),
        ((("road", 0.7, 0.0),), ResumeError, "Start a new run"),
    ]
    for prompts, kind, text in cases:
        request = load(toy, prompts, "asked")
        with pytest.raises(kind, match=text):
            start_run(request, extended_run)
    assert resume_run(extended_run, request=load(toy, ALL)).complete
    with pytest.raises(ResumeError, match="prompts-changed"):
        resume_run(extended_run, request=load(toy, ALL[:1]))


def test_generations_own_the_names_that_the_guide_lists(extended_run: Path) -> None:
    assert {path.name for path in (extended_run / "extensions" / "0001").iterdir()} == set(OWN) - {"failures"}
