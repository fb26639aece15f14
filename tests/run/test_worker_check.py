"""`eo-batch worker-check`: whatever a worker lacks is found and told, with the exit status of its kind."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from commandline import invoke, told
from servers.files import Fault, FileServer
from toy import make_toy
from wholerun import name_catalog

from eo_batch.core.clusters import ClusterSpec
from eo_batch.models.registry import load_segmenter
from eo_batch.run import worker_check
from eo_batch.run.driver import start_run
from eo_batch.run.executors import make_executor
from eo_batch.run.request import Request, load_pipeline
from eo_batch.run.worker_check import Expected, WorkerReport, check_workers, examine

SERIAL = ClusterSpec(kind="serial")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"), dates=1, size=200)


def wrong(reports: list[WorkerReport]) -> list[tuple[str, int]]:
    return [(check.name, check.status) for report in reports for check in report.checks if check.status]


def test_two_worker_processes_can_work_and_leave_nothing_behind(toy: Path, tmp_path: Path) -> None:
    found = told("worker-check", toy, "--cluster", "local:2", "--out", tmp_path / "run")
    assert found["exit_status"] == 0
    assert [worker["worker"] for worker in found["workers"]] == ["0", "1"]
    assert [check["name"] for check in found["workers"][0]["checks"]] == ["versions", "assets", "model", "gpu", "store"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_workers_without_our_software_are_told_from_workers_that_lack_something(toy: Path) -> None:
    def strange(expected: Expected) -> WorkerReport:
        raise ModuleNotFoundError("No module named 'eo_batch.run.worker_check'")

    with make_executor(SERIAL) as pool:
        (answer,) = pool.on_each_worker(strange, None, timeout_s=60).values()
    report = worker_check._report_of("node7", answer)
    assert (report.worker, report.status) == ("node7", 7)
    assert "Is eo-batch installed there" in report.checks[0].text


def expected_of(request: Request, **changes: object) -> Expected:
    digest = load_segmenter(request.spec.model, request.spec.source.bands).info.digest
    assets = worker_check.one_of_each_host(worker_check._items_of(request, ""))
    return replace(Expected(request.to_json(), assets, digest, wants_gpu=False, out=""), **changes)


@pytest.mark.parametrize(
    ("changes", "name", "status", "text"),
    [
        ({"versions": {"numpy": "0.1"}}, "versions", 7, r"numpy .* \(driver: 0\.1\).*Install the same versions"),
        ({"segmenter": "f00"}, "model", 5, r"another one here: .* \(driver: f00\)"),
        ({"wants_gpu": True}, "gpu", 7, "torch sees none"),
    ],
)
def test_what_differs_from_the_driver_is_told(
    toy: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], name: str, status: int, text: str
) -> None:
    monkeypatch.setattr(worker_check, "visible_gpus", lambda: ())
    report = examine(expected_of(load_pipeline(toy), **changes))
    (check,) = [check for check in report.checks if check.status]
    assert (check.name, check.status) == (name, status)
    assert re.search(text, check.text)


def test_assets_that_are_gone_are_inputs_that_cannot_be_reached(tmp_path: Path) -> None:
    pipeline = make_toy(tmp_path, dates=1, size=200)
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    status, out, _ = invoke("worker-check", pipeline, "--cluster", "serial")
    assert status == 4
    assert "asset-not-found" in out


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault("status", 403, repeat=True), "asset-forbidden"), (Fault("reset", repeat=True), "asset-unreachable")],
)
def test_a_host_that_refuses_is_told_from_one_that_is_down(tmp_path: Path, fault: Fault, code: str) -> None:
    make_toy(tmp_path, dates=1, size=200)
    with FileServer(tmp_path, choose=lambda path, stop: fault if path.endswith(".tif") else None) as server:
        name_catalog(tmp_path, server.url("catalog.json"))
        (report,) = check_workers(load_pipeline(tmp_path / "pipeline.toml"), SERIAL)
    (check,) = [check for check in report.checks if check.status]
    assert (check.name, check.status) == ("assets", 4)
    assert check.text.startswith(code)


def test_a_place_that_cannot_be_written_is_told(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert wrong(check_workers(load_pipeline(toy), SERIAL, out=str(tmp_path / "file" / "run"))) == [("store", 7)]


def test_a_place_that_workers_write_and_the_driver_does_not_see_is_told(toy: Path, tmp_path: Path) -> None:
    report = WorkerReport("0", "node7", (worker_check.Check("store", 0, "written"),), wrote="worker-check/x/y", was_first=True)
    expected = replace(expected_of(load_pipeline(toy)), out=str(tmp_path / "run"))
    (seen,) = worker_check._seen_from_here([report], expected)
    assert seen.status == 7
    assert "does not see" in seen.checks[-1].text


def test_a_run_that_has_begun_is_checked_by_its_frozen_items(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = load_pipeline(toy)
    start_run(request, tmp_path / "run", executor="serial")
    before = sorted(tmp_path.rglob("*.json"))

    def no_search(*_: object, **__: object) -> None:
        pytest.fail("the catalog was asked")

    monkeypatch.setattr(worker_check, "search_items", no_search)
    assert wrong(check_workers(request, SERIAL, out=str(tmp_path / "run"))) == []
    assert sorted(tmp_path.rglob("*.json")) == before
