"""Other thresholds from stored scores: the run that a pipeline with these thresholds makes, without a scene or a segmenter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rundigest import file_digests, mask_array, newest_digests
from toy import make_toy, toy_bbox, toy_pipeline

from eo_batch.core.digest import canonical_json, digest
from eo_batch.core.errors import ConfigError, EoBatchError, IntegrityError, ResumeError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models import registry
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.derived import DERIVED
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.later.rethreshold import Change, changed_prompts, next_version, rethreshold
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run

SIZE = 260
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rethreshold")
    make_toy(folder, size=SIZE)
    west, south, east, north = toy_bbox(SIZE)
    width, height = east - west, north - south

    def ring(*corners: tuple[float, float]) -> list[list[float]]:
        return [[west + x * width, south + y * height] for x, y in (*corners, corners[0])]

    slanted = [ring((0.02, 0.4), (0.3, 0.97), (0.02, 0.97)), ring((0.06, 0.7), (0.06, 0.9), (0.14, 0.9))]  # with a hole
    polygons = [slanted, [ring((0.6, 0.03), (0.97, 0.03), (0.8, 0.3))]]
    (folder / "region.geojson").write_text(json.dumps({"type": "MultiPolygon", "coordinates": polygons}))
    return folder


@pytest.fixture(scope="module")
def make(toy: Path) -> Make:
    """Folder of a run of the toy pipeline; each is made once."""
    made: dict[str, Path] = {}

    def run(
        *, scores: bool = True, thresholds: tuple[float, ...] = (0.5, 0.5), areas: tuple[float, ...] = (), **settings: str
    ) -> Path:
        text = toy_pipeline(size=SIZE, **settings)
        if settings.get("step") == "month":
            text = text.replace(text[text.index("bbox") : text.index("start")], 'file = "region.geojson"\n')
        head, *prompts = text.replace("scores = true", f"scores = {str(scores).lower()}").split("threshold = 0.5")
        for index, rest in enumerate(prompts):
            least = f"\nmin_area_m2 = {areas[index]}" if areas else ""
            head += f"threshold = {thresholds[index]}{least}{rest}"
        if head not in made:
            (toy / "pipeline.toml").write_text(head)
            out = toy / f"run{len(made)}"
            assert start_run(load_pipeline(toy / "pipeline.toml"), out, executor="serial").exit_status == 0
            made[head] = out
        return made[head]

    return run


@pytest.fixture
def base(make: Make, tmp_path: Path) -> Path:
    """A copy of the plain run, for tests that damage or move it."""
    return Path(shutil.copytree(make(), tmp_path / "base"))


def digests(run: Path) -> dict[str, str]:
    return {path: name for path, name in file_digests(run).items() if path != DERIVED}


def refused(error: type[EoBatchError], code: str, action: Callable[[], object]) -> str:
    """What an action is refused with."""
    with pytest.raises(error) as caught:
        action()
    assert caught.value.code == code
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        # two dates and two prompts; interiors cut off at the edges of the grid; threads
        ({}, ((0.5, 0.5), ()), ((0.4, 0.5), ())),
        # a median of scenes with slanted swath edges; polygons with a hole, and chunks that nothing is in; minimum areas
        ({"composite": "median", "step": "month"}, ((0.5, 0.5), (0.0, 0.0)), ((0.37, 0.62), (20_000.0, 0.0))),
        # a segmenter that answers otherwise; less is found than before, and small objects come back
        ({"model": "spectral", "prompts": ("water",)}, ((0.5,), (9_000.0,)), ((0.7,), (2_000.0,))),
    ],
)
def test_the_bytes_are_those_of_a_run_with_these_thresholds(
    make: Make, tmp_path: Path, settings: dict, before: tuple, after: tuple
) -> None:
    old = make(**settings, thresholds=before[0], areas=before[1])
    fresh = make(**settings, thresholds=after[0], areas=after[1])
    was = file_digests(old)
    names = settings.get("prompts", ("bright", "dark"))
    changes = {name: Change(after[0][i], after[1][i] if after[1] else None) for i, name in enumerate(names)}
    summary = rethreshold(old, changes, tmp_path / "new", executor="serial" if settings else "local", workers=2)
    assert summary.exit_status == 0
    assert digests(tmp_path / "new") == digests(fresh)
    assert digests(fresh) != digests(old)
    assert file_digests(old) == was
    assert verify_run(tmp_path / "new").ok
    assert run_status(tmp_path / "new").state == "complete"


def test_no_scene_is_opened_and_no_segmenter_is_loaded(
    make: Make, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh = make(), make(thresholds=(0.4, 0.5))
    monkeypatch.setattr(registry, "BUILT_IN", {})
    hidden = tmp_path / "hidden"
    toy.rename(hidden)
    try:
        refused(ConfigError, "config-invalid", lambda: start_run(load_pipeline(hidden / "pipeline.toml"), tmp_path / "none"))
        (hidden / old.name).rename(tmp_path / "base")
        rethreshold(tmp_path / "base", {"bright": 0.4}, tmp_path / "new", executor="serial")
        assert digests(tmp_path / "new") == digests(hidden / fresh.name)
        assert resume_run(tmp_path / "new").complete
        (tmp_path / "base").rename(hidden / old.name)
    finally:
        hidden.rename(toy)


def test_a_mask_is_one_from_the_stored_step_of_its_threshold(make: Make, tmp_path: Path) -> None:
    scores = mask_array(make(), "score")
    for threshold, least in ((0.4, 100), (0.401, 101)):
        out = tmp_path / f"{least}"
        rethreshold(make(), {"bright": threshold}, out, executor="serial")
        expected = np.where(scores[0] == 254, 254, (scores[0] >= least).astype(np.uint8))
        assert np.array_equal(mask_array(out)[0], expected)
        assert np.array_equal(mask_array(out)[1], mask_array(make())[1])
        assert np.array_equal(mask_array(out, "score"), scores)


def test_there_and_back_gives_the_first_run_again(make: Make, tmp_path: Path) -> None:
    first = make()
    there = Path(rethreshold(first, {"dark": Change(0.7, 500)}, tmp_path / "there", executor="serial").path)
    back = Path(rethreshold(there, {"dark": Change(0.5, 0)}, tmp_path / "back", executor="serial").path)
    assert digests(back) == digests(first)


def test_scores_are_shared_with_the_old_run_and_outlive_it(base: Path, tmp_path: Path) -> None:
    new = Path(rethreshold(base, {"bright": 0.4}, executor="serial").path)
    assert new == tmp_path / "base-v2"
    shared = {p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file() and p.stat().st_nlink > 1}
    stored = {p.relative_to(base).as_posix() for kind in ("masks.zarr/score/c", "contributed") for p in (base / kind).rglob("*")}
    assert shared == {path for path in stored if (base / path).is_file()} | {"items.parquet"}
    shutil.rmtree(base)
    assert verify_run(new).ok
    assert resume_run(new).complete
    assert Path(rethreshold(new, {"bright": 0.5}, executor="serial").path) == tmp_path / "base-v3"


def test_versions_lie_beside_the_run_under_the_next_free_number(tmp_path: Path) -> None:
    assert next_version(tmp_path / "water") == str(tmp_path / "water-v2")
    assert next_version(tmp_path / "water-v9") == str(tmp_path / "water-v10")
    (tmp_path / "water-v2").mkdir()
    (tmp_path / "water-v3").write_text("")
    assert next_version(tmp_path / "water") == str(tmp_path / "water-v4")


def test_an_extended_run_can_be_given_thresholds_of_its_own_and_of_added_prompts(make: Make, base: Path, tmp_path: Path) -> None:
    add_prompts(base, ["even"], executor="serial")
    add_prompts(base, ["odd"], threshold=0.6, executor="serial")
    new = Path(rethreshold(base, {"dark": 0.4, "even": 0.45}, tmp_path / "new", executor="serial").path)
    fresh = make(prompts=("bright", "dark", "even", "odd"), thresholds=(0.5, 0.4, 0.45, 0.6))
    assert digests(new) == digests(fresh)
    assert verify_run(new).ok


def test_the_published_prompts_are_taken_while_others_are_being_added(make: Make, base: Path, tmp_path: Path) -> None:
    add_prompts(base, ["even"], executor="serial")
    (base / "extensions/0001/receipts/t0000/y0000_x0000.json").unlink()
    shutil.copy(make() / "COMPLETE.json", base)  # as a driver leaves it that is killed before it publishes
    new = Path(rethreshold(base, {"bright": 0.4}, tmp_path / "new", executor="serial").path)
    assert digests(new) == digests(make(thresholds=(0.4, 0.5)))


def test_a_rethresholded_run_can_be_given_more_prompts(make: Make, base: Path, tmp_path: Path) -> None:
    new = Path(rethreshold(base, {"bright": 0.4}, tmp_path / "new", executor="serial").path)
    (base / "COMPLETE.json").unlink()  # its scores are not asked for new prompts
    add_prompts(new, ["even"], executor="serial")
    fresh = digests(make(prompts=("bright", "dark", "even"), thresholds=(0.4, 0.5, 0.5)))
    extended = {path: name for path, name in newest_digests(new).items() if path != DERIVED}
    assert extended == fresh
    for path in ("masks.zarr/mask/c/0/0/0/0", "masks.zarr/mask/c/2/1/0/0"):
        (new / path).write_bytes(b"damaged")
    assert resume_run(new, repair=True, executor="serial").complete
    assert {path: name for path, name in newest_digests(new).items() if path != DERIVED} == fresh


def test_a_prompt_that_is_not_in_the_run_is_refused_with_the_one_that_was_meant(make: Make) -> None:
    text = refused(ConfigError, "prompt-invalid", lambda: rethreshold(make(), {"Birght": 0.4}))
    assert 'Did you mean "bright"?' in text
    assert '"bright", "dark"' in text
    assert "add-prompts" in text


@pytest.mark.parametrize(
    "wrong", [0.0, 1.0, -0.2, 1.4, float("nan"), Change(), Change(min_area_m2=-1.0), Change(0.4, float("inf"))]
)
def test_numbers_that_are_no_thresholds_or_areas_are_refused(make: Make, wrong: float | Change) -> None:
    assert '"dark"' in refused(ConfigError, "prompt-invalid", lambda: rethreshold(make(), {"dark": wrong}))


def test_changes_that_change_nothing_are_refused(make: Make) -> None:
    for changes in ({}, {"bright": 0.5}, {"bright": Change(0.5, 0)}, {"bright": 0.4, " bright ": 0.3}):
        refused(ConfigError, "prompt-invalid", lambda changes=changes: rethreshold(make(), changes))


def test_a_number_of_an_array_is_the_number_that_it_prints_as() -> None:
    for number in (np.float32(0.4), np.float64(0.4), 0.4):
        assert changed_prompts(PromptSet((Prompt("bright"),)), {"bright": number}).prompts[0].threshold == 0.4


def test_a_threshold_of_the_same_stored_step_is_warned_of(make: Make, tmp_path: Path) -> None:
    heard: list[Event] = []
    rethreshold(make(), {"bright": 0.498}, tmp_path / "new", executor="serial", listener=heard.append)
    assert ["same stored step, 125 of 250" in event.text for event in heard if event.kind == "warning"] == [True]
    assert np.array_equal(mask_array(tmp_path / "new"), mask_array(make()))


def test_a_run_without_scores_is_refused_with_the_setting_that_keeps_them(make: Make) -> None:
    assert "output.scores = true" in refused(
        ConfigError, "config-invalid", lambda: rethreshold(make(scores=False), {"bright": 0.4})
    )


def test_an_unfinished_run_is_refused_with_the_command_that_finishes_it(base: Path, tmp_path: Path) -> None:
    (base / "COMPLETE.json").unlink()
    assert f"eo-batch resume {base}" in refused(ConfigError, "config-invalid", lambda: rethreshold(base, {"bright": 0.4}))
    refused(ConfigError, "config-invalid", lambda: rethreshold(tmp_path / "nothing", {"bright": 0.4}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_run_that_lacks_chunks_is_refused(base: Path) -> None:
    marker = json.loads((base / "COMPLETE.json").read_bytes())
    marker["partial"], marker["chunks"]["failed"] = True, 2
    (base / "COMPLETE.json").write_bytes(canonical_json(marker))
    assert "2 chunks of the run failed" in refused(ConfigError, "config-invalid", lambda: rethreshold(base, {"bright": 0.4}))


def test_a_run_of_an_older_format_is_refused(base: Path) -> None:
    manifest = json.loads((base / "manifest.json").read_bytes())
    del manifest["digest"]
    manifest["format"] = 1
    manifest["digest"] = digest(manifest)
    (base / "manifest.json").write_bytes(canonical_json(manifest))
    marker = json.loads((base / "COMPLETE.json").read_bytes())
    (base / "COMPLETE.json").write_bytes(canonical_json({**marker, "run": manifest["digest"]}))
    assert "format 1" in refused(ResumeError, "format-older", lambda: rethreshold(base, {"bright": 0.4}))


def test_a_folder_that_holds_something_is_refused_and_stays_as_it_is(make: Make, base: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"x")
    assert "holiday.jpg" in refused(ConfigError, "config-invalid", lambda: rethreshold(make(), {"bright": 0.4}, photos))
    assert [path.name for path in photos.iterdir()] == ["holiday.jpg"]
    was = file_digests(base)
    for out in (base, base / "inside", tmp_path, tmp_path / "base-v2"):
        if out.name == "base-v2":
            shutil.copytree(base, out)
        refused(ConfigError, "config-invalid", lambda out=out: rethreshold(base, {"bright": 0.4}, out))
    assert file_digests(base) == was == file_digests(tmp_path / "base-v2")


@pytest.fixture
def halfway(base: Path, tmp_path: Path) -> Path:
    """A new run of which one chunk is still missing."""
    new = Path(rethreshold(base, {"bright": 0.4}, tmp_path / "new", executor="serial").path)
    (new / "COMPLETE.json").unlink()
    (new / "receipts/t0000/y0000_x0000.json").unlink()
    return new


def test_a_new_run_is_finished_from_where_the_old_one_was_moved(make: Make, base: Path, halfway: Path, tmp_path: Path) -> None:
    base.rename(tmp_path / "archive")
    text = refused(ConfigError, "config-invalid", lambda: resume_run(halfway, executor="serial"))
    assert f"looked in {base}" in text
    assert str(halfway / DERIVED) in text
    said = json.loads((halfway / DERIVED).read_bytes())
    (halfway / DERIVED).write_text(json.dumps({**said, "from": "../archive"}))
    assert resume_run(halfway, executor="serial").complete
    assert digests(halfway) == digests(make(thresholds=(0.4, 0.5)))


def test_old_and_new_can_be_moved_together(make: Make, base: Path, halfway: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for run in (base, halfway):
        run.rename(tmp_path / "elsewhere" / run.name)
    assert resume_run(tmp_path / "elsewhere" / halfway.name, executor="serial").complete


def test_without_the_old_run_what_is_missing_is_computed_from_the_scenes(make: Make, base: Path, halfway: Path) -> None:
    shutil.rmtree(base)
    refused(ConfigError, "config-invalid", lambda: resume_run(halfway, executor="serial"))
    (halfway / DERIVED).unlink()
    assert resume_run(halfway, executor="serial").complete
    assert digests(halfway) == digests(make(thresholds=(0.4, 0.5)))


def test_another_run_in_the_place_of_the_old_one_is_refused(make: Make, base: Path, halfway: Path) -> None:
    shutil.rmtree(base)
    shutil.copytree(make(thresholds=(0.4, 0.5)), base)
    assert "is not the run" in refused(ConfigError, "config-invalid", lambda: resume_run(halfway, executor="serial"))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"from": 3, "run": "x"}', b'{"from": "../base"}', b'{"from": "", "run": "x"}'])
def test_a_damaged_note_of_where_the_scores_are_is_named(halfway: Path, content: bytes) -> None:
    (halfway / DERIVED).write_bytes(content)
    assert DERIVED in refused(IntegrityError, "receipt-mismatch", lambda: resume_run(halfway, executor="serial"))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("masks.zarr/score/c/1/0/0/1", "shard-mismatch"),
        ("contributed/t0001/y0000_x0000.parquet", "shard-mismatch"),
        ("receipts/t0001/y0001_x0001.json", "receipt-mismatch"),
        ("gone masks.zarr/score/c/0/1/1/1", "shard-missing"),
    ],
)
def test_damaged_scores_are_named_and_mended_in_the_old_run_first(
    make: Make, base: Path, tmp_path: Path, path: str, code: str
) -> None:
    gone, path = path.startswith("gone "), path.removeprefix("gone ")
    data = bytearray((base / path).read_bytes())
    data[len(data) // 2] ^= 1
    (base / path).unlink()
    if not gone:
        (base / path).write_bytes(data)
    new = tmp_path / "new"
    text = refused(IntegrityError, code, lambda: rethreshold(base, {"bright": 0.4}, new, executor="serial"))
    assert f"eo-batch verify {base}" in text
    assert path in text or "receipt" in path
    resume_run(base, repair=True, executor="serial")
    assert resume_run(new, executor="serial").complete
    assert digests(new) == digests(make(thresholds=(0.4, 0.5)))


def test_damage_in_the_new_run_is_mended_from_the_old_one(make: Make, base: Path, tmp_path: Path) -> None:
    new = Path(rethreshold(base, {"bright": 0.4}, tmp_path / "new", executor="serial").path)
    for path in ("masks.zarr/mask/c/0/0/0/0", "masks.zarr/score/c/0/0/0/1", "parts/t0001/y0001_x0000.parquet"):
        (new / path).unlink()
        (new / path).write_bytes(b"damaged")
    assert len(verify_run(new).problems) == 3
    resume_run(new, repair=True, executor="serial")
    assert digests(new) == digests(make(thresholds=(0.4, 0.5)))
