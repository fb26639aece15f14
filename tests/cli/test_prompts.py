"""`eo-batch add-prompts`: texts and numbers in their order, the plan, progress, exit statuses, what is said on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commandline import invoke, told
from rundigest import file_digests
from toy import make_toy

from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    start_run(load_pipeline(make_toy(folder / "toy", size=160, dates=1)), folder / "run", executor="serial")
    return folder / "run"


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "run"))


def test_prompts_are_added_with_their_numbers(run: Path) -> None:
    numbers = ("--threshold", 0.4, "--threshold", 0.6, "--min-area", 900)
    status, out, err = invoke("add-prompts", run, "solar panel", "road", *numbers, "--cluster", "serial")
    assert status == 0, err
    assert "plan: 2 more prompts in 4 chunks, 2 scenes: " in err
    assert "chunk 4 of 4" in err
    assert 'footprints "solar panel"' in out
    spec = json.loads((run / "extensions/0001/request.json").read_bytes())["spec"]
    assert [(prompt["text"], prompt["threshold"], prompt["min_area_m2"]) for prompt in spec["prompts"]] == [
        ("bright", 0.5, 0.0),
        ("dark", 0.5, 0.0),
        ("solar panel", 0.4, 900.0),
        ("road", 0.6, 900.0),
    ]
    assert told("status", run)["state"] == "complete"
    assert told("verify", run)["ok"] is True
    assert invoke("resume", run, "--cluster", "serial")[0] == 0


def test_json_tells_the_plan_and_the_summary(run: Path) -> None:
    status, out, err = invoke("add-prompts", run, "road", "--cluster", "serial", "--json")
    assert status == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert [events[0]["event"], events[0]["data"]["prompts"]] == ["plan", 1]
    assert (events[-1]["event"], list(events[-1]["footprints"])) == ("summary", ["bright", "dark", "road"])


def test_a_plan_alone_writes_nothing(base: Path) -> None:
    before = file_digests(base)
    status, out, err = invoke("add-prompts", base, "road", "ship", "--plan", "--cluster", "serial")
    assert status == 0, err
    assert "plan of more prompts for toy" in out
    answer = told("add-prompts", base, "road", "ship", "--plan")
    assert (answer["prompts"], answer["chunks"]) == (2, 4)
    assert file_digests(base) == before


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("dark",), 2, "eo-batch rethreshold RUN --prompt dark --threshold T"),
        (("road", "--threshold", 2), 2, "threshold"),
        (("road", "ship", "car", "--min-area", 1, "--min-area", 2), 2, "2 numbers for 3 prompts"),
        ((), 2, "PROMPT"),
    ],
)
def test_what_cannot_be_added_is_one_clear_line(base: Path, arguments: tuple[object, ...], status: int, text: str) -> None:
    before = file_digests(base)
    answer = invoke("add-prompts", base, *arguments, "--quiet")
    assert answer[0] == status
    assert text in answer[2]
    assert "Traceback" not in answer[2]
    assert file_digests(base) == before


def test_no_run_is_said_so(tmp_path: Path) -> None:
    status, _, err = invoke("add-prompts", tmp_path / "none", "road")
    assert status == 2
    assert "there is no run in this folder" in err


def test_a_run_that_took_none_of_them_says_it_is_as_it_was(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eo_batch.run.later.extend.make_plan", interrupted)
    status, _, err = invoke("add-prompts", base, "road")
    assert status == 130
    assert "nothing was added; the run is as it was" in err
