"""Generations of an extended run whose own files are damaged or gone: named, healed where they can be, never mistaken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ConfigError, IntegrityError
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.layers.products import make_products
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run

SIZE = 160
FIRST = "t0000/y0000_x0000"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was extended twice."""
    folder = tmp_path_factory.mktemp("extended")
    pipeline = make_toy(folder, dates=1, size=SIZE)
    pipeline.write_text(toy_pipeline(size=SIZE, prompts=("bright",)))
    start_run(load_pipeline(pipeline), folder / "run", executor="serial")
    for prompt in ("road", "ship"):
        add_prompts(folder / "run", prompt, executor="serial")
    return folder / "run"


@pytest.fixture
def run(extended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(extended, tmp_path / "run"))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("extensions/0001/manifest.json", half),
        ("extensions/0002/manifest.json", half),
        ("manifest.json", half),
        ("extensions/0001/manifest.json", Path.unlink),
        (f"extensions/0001/receipts/{FIRST}.json", Path.unlink),
        (f"receipts/{FIRST}.json", Path.unlink),
    ],
)
def test_files_of_generations_are_named_and_made_again(
    run: Path, extended: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(run / name)
    found = verify_run(run)
    assert (found.exit_status, name in {problem.path for problem in found.problems}) == (5, True)
    assert resume_run(run, repair=True, executor="serial").exit_status == 0
    assert verify_run(run).ok
    assert file_digests(run) == file_digests(extended)


@pytest.mark.parametrize("name", ["extensions/0001/request.json", "extensions/0002/request.json", "items.parquet"])
def test_what_cannot_be_made_again_is_named_and_nothing_is_touched(run: Path, name: str) -> None:
    half(run / name)
    before = file_digests(run)
    found = verify_run(run)
    assert (found.exit_status, [problem.path for problem in found.problems]) == (5, [name])
    with pytest.raises((ConfigError, IntegrityError), match=f"{run / name}.*Restore it from a copy"):
        resume_run(run, repair=True, executor="serial")
    assert file_digests(run) == before


def test_what_a_half_deleted_extension_left_is_never_taken_for_answers_to_other_prompts(run: Path) -> None:
    (run / "extensions/0002/request.json").unlink()
    assert [problem.path for problem in verify_run(run).problems] == ["extensions/0002/request.json"]
    for work in (lambda: resume_run(run, repair=True, executor="serial"), lambda: add_prompts(run, "car", executor="serial")):
        with pytest.raises(IntegrityError, match=f"extensions/0002/request.json is gone.*delete `{run}/extensions/0002`"):
            work()
    shutil.rmtree(run / "extensions/0002")
    assert resume_run(run, executor="serial").rows_per_prompt.keys() == {"bright", "road"}
    assert verify_run(run).ok


def test_an_extension_that_rests_on_a_deleted_one_is_not_continued(run: Path) -> None:
    shutil.rmtree(run / "extensions/0001")
    with pytest.raises(IntegrityError, match="extensions/0001/request.json is gone, but extensions/0002"):
        resume_run(run, executor="serial")


def test_a_run_whose_marker_names_a_lost_extension_is_not_called_complete(run: Path) -> None:
    shutil.rmtree(run / "extensions/0002")
    assert run_status(run).state == "stopped"
    with pytest.raises(IntegrityError, match=r"COMPLETE.json speaks of another run.*resume"):
        make_products(run)


def test_damage_that_an_extension_meets_is_mended_by_a_repair_that_goes_on_with_it(run: Path) -> None:
    (run / "masks.zarr/mask/c/0/0/0/0").write_bytes(b"damaged")
    with pytest.raises(IntegrityError, match=r"masks.zarr/mask/c/0/0/0/0.*resume .* --repair"):
        add_prompts(run, "car", executor="serial")
    assert resume_run(run, repair=True, executor="serial").rows_per_prompt.keys() == {"bright", "road", "ship", "car"}
    assert verify_run(run).ok


def test_products_of_the_map_before_are_told_of(run: Path) -> None:
    make_products(run)
    told: list[Event] = []
    add_prompts(run, "car", executor="serial", listener=told.append)
    assert [event.text for event in told if "products" in event.text] == [
        f"products/ holds the map as it was: `eo-batch products {run}` makes it anew"
    ]
