"""What a pilot foretells against what the whole costs: on made-up costs, where the truth is known, and on one real run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commandline import invoke, told
from numpy.typing import NDArray
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.outputs.store import Store
from eo_batch.run.cost.compare import compare, read_pilot, read_plan
from eo_batch.run.cost.estimate import Range, estimate
from eo_batch.run.cost.foretell import Terms, are_warm, foretell, kept_at_work
from eo_batch.run.cost.measured import ChunkWork, covered_s, measure, works
from eo_batch.run.cost.sample import choose_sample
from eo_batch.run.ledger import get_receipt, receipt_keys

STEPS, ROWS, COLS = 3, 20, 30


def chunk(seconds: float, *, began: float | None = None, worker: str = "w", windows: int = 4) -> ChunkWork:
    return ChunkWork("k", seconds, seconds / 2, windows, 0, 1000, 100, 3, worker, began)


def made_up(seed: int, *, spread: float, empty: float) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Planned work and true seconds of each chunk: heavy-tailed around the plan, some without any observation."""
    random = np.random.default_rng(seed)
    loads = random.choice([0, 4, 9, 9, 9, 16], size=(STEPS, ROWS, COLS)).astype(np.float32)
    tail = np.exp(spread * random.normal(size=loads.shape))
    seconds = loads * tail * (random.uniform(size=loads.shape) > empty) + 0.05 * loads + 0.01
    return loads, seconds


def total(loads: NDArray[np.float32], seconds: NDArray[np.float64], count: int) -> Range:
    sample = choose_sample(loads, count)
    figures = {"seconds": np.array([seconds[index] for index in sample.chunks])}
    return estimate(sample, figures, lambda totals: {"seconds": totals["seconds"]})["seconds"]


@pytest.mark.parametrize(("spread", "empty"), [(0.3, 0.0), (0.8, 0.0), (0.3, 0.5), (0.8, 0.5)])
def test_the_range_of_twenty_chunks_holds_the_truth_in_about_eight_of_ten_pilots(spread: float, empty: float) -> None:
    held = []
    for seed in range(100):
        loads, seconds = made_up(seed, spread=spread, empty=empty)
        found = total(loads, seconds, 20)
        held.append(found.low <= seconds.sum() <= found.high)
    assert 0.65 <= np.mean(held) <= 0.95


def test_the_middle_of_many_pilots_is_the_truth() -> None:
    ratios = []
    for seed in range(100):
        loads, seconds = made_up(seed, spread=0.8, empty=0.3)
        ratios.append(total(loads, seconds, 20).middle / seconds.sum())
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.06)


def test_more_chunks_give_a_narrower_range() -> None:
    loads, seconds = made_up(1, spread=0.5, empty=0.0)
    few, many = total(loads, seconds, 10), total(loads, seconds, 160)
    assert (many.high - many.low) < 0.5 * (few.high - few.low)


def test_costs_in_proportion_to_the_plan_are_told_without_doubt() -> None:
    loads, _ = made_up(2, spread=0.0, empty=0.0)
    found = total(loads, loads.astype(np.float64), 12)
    assert found.low == pytest.approx(found.high)
    assert found.middle == pytest.approx(float(loads.sum()))


def test_a_pilot_of_all_chunks_is_the_truth() -> None:
    loads, seconds = made_up(3, spread=1.0, empty=0.5)
    found = total(loads[:1, :5, :5], seconds[:1, :5, :5], 25)
    assert found.low == found.middle == found.high == pytest.approx(seconds[:1, :5, :5].sum())


def test_a_pilot_takes_no_chunk_twice_and_is_the_same_every_time() -> None:
    loads, _ = made_up(4, spread=0.0, empty=0.0)
    first, again = choose_sample(loads, 40), choose_sample(loads, 40)
    assert len(set(first.chunks)) == len(first.chunks) == 40
    assert first.chunks == again.chunks


def test_a_pilot_takes_each_step_and_each_quarter_of_the_region_and_chunks_without_scenes() -> None:
    loads, _ = made_up(5, spread=0.0, empty=0.0)
    sample = choose_sample(loads, 40)
    assert {(t, iy * 2 // ROWS, ix * 2 // COLS) for t, iy, ix in sample.chunks} == {
        (t, y, x) for t in range(STEPS) for y in range(2) for x in range(2)
    }
    assert sample.is_idle.sum() == 4
    assert all((loads[index] == 0) == idle for index, idle in zip(sample.chunks, sample.is_idle, strict=True))


def test_one_chunk_as_heavy_as_all_others_is_in_the_pilot_and_stands_for_itself() -> None:
    loads = np.ones((1, 10, 10), np.float32)
    loads[0, 7, 3] = 1000.0
    sample = choose_sample(loads, 10)
    assert sample.stands_for[sample.chunks.index((0, 7, 3))] == pytest.approx(1.0)
    assert sample.stands_for.sum() == pytest.approx(100, rel=0.05)


def test_chunks_that_failed_are_stood_for_by_the_others() -> None:
    sample = choose_sample(np.ones((1, 10, 10), np.float32), 10)
    left = sample.part(np.arange(10) < 8)
    assert left.stands_for.sum() == pytest.approx(100)


TERMS = Terms(
    chunks=100,
    at_once=4,
    scoring=4,
    kept_at_work=1.0,
    search_s=0.0,
    start_s=0.0,
    longest_s=1.0,
    window_share=1.0,
    price_per_s=0.0,
)


@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_hours_hold_those_of_workers_that_take_chunk_after_chunk(at_once: int) -> None:
    held = 0
    for seed in range(30):
        loads, seconds = made_up(seed, spread=0.5, empty=0.3)
        sample = choose_sample(loads, 20)
        took = [chunk(float(seconds[index])) for index in sample.chunks]
        terms = replace(TERMS, chunks=seconds.size, at_once=at_once, longest_s=max(work.seconds for work in took))
        free = np.zeros(at_once)
        for each in seconds.reshape(-1):  # the next chunk goes to whoever is free first
            free[free.argmin()] += each
        found = foretell(sample, took, terms)["computing_s"]
        held += found.low <= free.max() <= found.high
    assert held >= 0.6 * 30


def test_windows_that_neighbours_share_are_taken_off() -> None:
    sample = choose_sample(np.ones((1, 10, 10), np.float32), 10)
    took = [chunk(2.0) for _ in sample.chunks]
    found = foretell(sample, took, replace(TERMS, window_share=0.5))
    assert found["windows"].middle == pytest.approx(100 * 4 * 0.5)
    assert found["seconds"].middle == pytest.approx(100 * (2.0 - 1.0 * 0.5))


def test_money_is_of_all_workers_for_as_long_as_they_are_held() -> None:
    sample = choose_sample(np.ones((1, 10, 10), np.float32), 10)
    terms = replace(TERMS, start_s=10.0, search_s=500.0, price_per_s=0.5)
    found = foretell(sample, [chunk(2.0)] * 10, terms)
    assert found["money"].middle == pytest.approx(0.5 * (10.0 + found["computing_s"].middle))


def test_workers_that_wait_between_chunks_are_seen() -> None:
    always = [chunk(1.0, began=float(i)) for i in range(10)]
    half = [chunk(1.0, began=2.0 * i) for i in range(10)]
    assert kept_at_work(always, 1) == pytest.approx(1.0)
    assert kept_at_work(half, 1) == pytest.approx(0.5)
    assert kept_at_work(half, 6) == 1.0  # too few to tell


def test_the_first_chunks_of_each_worker_are_left_out_where_enough_remain() -> None:
    took = [chunk(1.0, began=float(i), worker="ab"[i % 2]) for i in range(8)]
    assert are_warm(took, 1).tolist() == [False, False] + [True] * 6
    assert are_warm(took, 4).all()


def test_time_in_which_two_work_counts_once() -> None:
    assert covered_s([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.2, 5.4)]) == pytest.approx(4.0)
    sums = measure([chunk(2.0, began=0.0, worker="a"), chunk(2.0, began=1.0, worker="b"), chunk(1.0, began=5.0, worker="a")])
    assert (sums.computing_s, sums.worker_s, sums.workers) == (pytest.approx(4.0), pytest.approx(8.0), 2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_toy(tmp_path_factory.mktemp("region") / "toy", size=300)
    path.write_text(toy_pipeline(size=300, chunk_px=96, extra="[cluster]\nprice_per_hour = 3.0\n"))
    return path


@pytest.fixture(scope="module")
def piloted(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A run that a pilot began, and what the pilot said; tests must not change it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, told("plan", pipeline, "--pilot", 12, "--out", out, "--cluster", "local", "--workers", 2)


@pytest.fixture(scope="module")
def finished(piloted: tuple[Path, dict[str, object]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that a pilot began, resumed to its end."""
    out = Path(shutil.copytree(piloted[0], tmp_path_factory.mktemp("finished") / "run"))
    status, _, err = invoke("resume", out, "--cluster", "serial", "--quiet")
    assert status == 0, err
    return out


def test_a_pilot_begins_the_run_and_says_what_the_rest_takes(piloted: tuple[Path, dict[str, object]]) -> None:
    out, said = piloted
    assert (said["chunks"], said["failed"], said["total"]) == (12, 0, read_plan(Store(out))["chunks"])
    assert len(list((out / "receipts").rglob("*.json"))) == 12
    assert not (out / "COMPLETE.json").exists()
    figures = said["figures"]
    assert isinstance(figures, dict)
    for name in ("total_s", "computing_s", "bytes_read", "bytes_written", "windows", "windows_per_s", "busy_percent", "money"):
        assert 0 < figures[name]["low"] <= figures[name]["middle"] <= figures[name]["high"], name


def test_a_pilot_is_part_of_the_run_and_nothing_is_computed_twice(
    piloted: tuple[Path, dict[str, object]], finished: Path, pipeline: Path, tmp_path: Path
) -> None:
    for receipt in (piloted[0] / "receipts").rglob("*.json"):
        assert (finished / receipt.relative_to(piloted[0])).read_bytes() == receipt.read_bytes()  # telemetry and all
    assert invoke("run", pipeline, "--out", tmp_path / "plain", "--cluster", "serial", "--quiet")[0] == 0
    assert file_digests(finished) == file_digests(tmp_path / "plain")


def test_bytes_of_the_whole_run_are_near_what_the_pilot_said(piloted: tuple[Path, dict[str, object]], finished: Path) -> None:
    foretold = read_pilot(Store(finished))["figures"]["bytes_read"]
    truth = measure(works(Store(finished))).bytes_read
    assert foretold["middle"] == pytest.approx(truth, rel=0.25)


def test_a_finished_run_is_held_against_its_plan_and_its_pilot(finished: Path) -> None:
    rows = {row.label: row for row in compare(Store(finished))}
    assert rows["chunks"].planned == rows["chunks"].measured == len(list((finished / "receipts").rglob("*.json")))
    for label in ("read", "written", "computing", "money"):
        row = rows[label]
        assert None not in (row.planned, row.piloted, row.measured)
    assert all(len(row.as_row()) == 4 for row in rows.values())


def test_bytes_written_are_those_of_the_files_that_receipts_name(finished: Path) -> None:
    store = Store(finished)
    files = [finished / path for key in receipt_keys(store) for path in get_receipt(store, key).files]
    assert measure(works(store)).bytes_written == sum(path.stat().st_size for path in files)


def test_a_run_without_plan_and_telemetry_is_compared_all_the_same(finished: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    (old / "pilot.json").write_text("[]")
    (old / "plan.json").unlink()
    for receipt in (old / "receipts").rglob("*.json"):
        document = json.loads(receipt.read_text())
        receipt.write_text(json.dumps({**document, "telemetry": {"seconds": "?", "bytes_read": None}}))
    rows = {row.label: row for row in compare(Store(old))}
    assert rows["chunks"].measured
    assert rows["computing"].as_row()[1:] == ("-", "-", "-")


def test_verify_minds_neither_plan_nor_pilot(finished: Path) -> None:
    assert {"plan.json", "pilot.json"} <= {path.name for path in finished.iterdir()}
    assert told("verify", finished)["ok"]


def test_a_pilot_without_a_folder_leaves_nothing_behind(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, err = invoke("plan", pipeline, "--pilot", 4, "--cluster", "serial", "--quiet")
    assert status == 0, err
    assert all(text in out for text in ("4 of", "80 %", "EUR"))
    assert list(tmp_path.iterdir()) == []


def test_a_pilot_for_workers_elsewhere_asks_for_a_place_they_see(pipeline: Path) -> None:
    status, _, err = invoke("plan", pipeline, "--pilot", 4, "--cluster", "tcp://127.0.0.1:1")
    assert status == 2
    assert "config-invalid" in err
    assert "--out" in err


def test_a_pilot_refuses_a_folder_that_holds_a_run(pipeline: Path, finished: Path) -> None:
    status, _, err = invoke("plan", pipeline, "--pilot", 4, "--out", finished, "--quiet")
    assert status == 2
    assert "already holds a run" in err
