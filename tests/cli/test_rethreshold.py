"""`eo-batch rethreshold`: numbers for prompts in their order, tables and JSON of sweeps, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import invoke, told
from toy import make_toy

from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("rethreshold")
    start_run(load_pipeline(make_toy(base / "toy", size=160)), base / "run", executor="serial")
    return base / "run"


def prompts_of(run: Path) -> list[tuple[str, float, float]]:
    spec = json.loads((run / "request.json").read_bytes())["spec"]
    return [(prompt["text"], prompt["threshold"], prompt["min_area_m2"]) for prompt in spec["prompts"]]


def test_numbers_belong_to_prompts_by_their_order(run: Path, tmp_path: Path) -> None:
    options = ("--prompt", "dark", "--threshold", 0.6, "--prompt", "bright", "--threshold", 0.4, "--min-area", 800)
    status, out, err = invoke("rethreshold", run, *options, "--cluster", "serial", "--out", tmp_path / "new")
    assert status == 0, err
    assert str(tmp_path / "new") in out
    assert "chunk 4 of 4" in err or "chunk 2 of 2" in err or "publish" in err
    assert prompts_of(tmp_path / "new") == [("bright", 0.4, 800.0), ("dark", 0.6, 800.0)]


def test_the_new_run_lies_beside_the_old_one_and_resume_knows_it(run: Path) -> None:
    status, out, err = invoke("rethreshold", run, "--prompt", "bright", "--min-area", 5000, "--cluster", "serial", "--json")
    assert status == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert events[-1]["run"] == str(run.with_name("run-v2"))
    assert {event["event"] for event in events} >= {"start", "chunk", "publish", "summary"}
    assert prompts_of(run.with_name("run-v2")) == [("bright", 0.5, 5000.0), ("dark", 0.5, 0.0)]
    assert told("verify", run.with_name("run-v2"))["ok"] is True
    assert invoke("resume", run.with_name("run-v2"))[0] == 0


def test_a_sweep_prints_a_table_and_makes_no_run(run: Path) -> None:
    before = sorted(run.parent.iterdir())
    status, out, err = invoke("rethreshold", run, "--prompt", "bright", "--sweep")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == '"bright", 2 time steps together'
    assert lines[1].split() == ["threshold", "pixels", "km2", "share"]
    assert [line.split()[0] for line in lines[3:]] == [f"0.{digit}" for digit in range(1, 10)]
    assert ["as the run is now" in line for line in lines[3:]] == [line.split()[0] == "0.5" for line in lines[3:]]
    assert sorted(run.parent.iterdir()) == before


def test_a_sweep_for_machines_has_every_prompt_and_time_step(run: Path) -> None:
    found = told("rethreshold", run, "--sweep")
    assert [each["prompt"] for each in found["prompts"]] == ["bright", "dark"]
    for each in found["prompts"]:
        assert [step["step"] for step in each["steps"]] == ["2024-06-01", "2024-06-02"]
        for index, row in enumerate(each["rows"]):
            assert set(row) == {"threshold", "pixels", "area_km2", "share"}
            assert row["pixels"] == sum(step["rows"][index]["pixels"] for step in each["steps"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "no prompt is named"),
        (("--threshold", 0.4), "no prompt is named"),
        (("--prompt", "bright"), "nothing is said that should change"),
        (("--prompt", "brigt", "--threshold", 0.4), 'Did you mean "bright"?'),
        (("--prompt", "bright", "--threshold", 1.5), "1.5 is no threshold"),
        (("--prompt", "bright", "--prompt", "bright", "--threshold", 0.4), "named twice"),
        (("--prompt", "bright", "--threshold", 0.4, "--threshold", 0.6), "2 numbers for 1 prompts"),
        (("--prompt", "bright", "--threshold", 0.5), "has these thresholds already"),
        (("--sweep", "--prompt", "bright", "--threshold", 0.5), "exclude each other"),
        (("--sweep", "--out", "new"), "exclude each other"),
        (("--sweep", "--prompt", "water"), 'no prompt "water"'),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(run: Path, options: tuple[object, ...], text: str) -> None:
    before = sorted(run.parent.iterdir())
    status, out, err = invoke("rethreshold", run, *options)
    assert status == 2
    assert out == ""
    assert text in err
    assert len(err.splitlines()) == 1
    assert sorted(run.parent.iterdir()) == before


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    for options in (("--sweep",), ("--prompt", "bright", "--threshold", 0.4)):
        status, _, err = invoke("rethreshold", tmp_path / "nothing", *options)
        assert status == 2
        assert "there is no run in this folder" in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_not_begun_is_not_said_to_be_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eo_batch.run.later.rethreshold.finished_run", interrupted)
    asked = ("rethreshold", run, "--prompt", "bright", "--threshold", 0.4)
    status, _, err = invoke(*asked, "--out", tmp_path / "new")
    assert (status, "nothing was made" in err) == (130, True)
    assert "resume NEW" not in invoke(*asked)[2]
