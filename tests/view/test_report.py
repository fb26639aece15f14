"""The page that tells a run: what is on it, for finished, failed, unfinished and older runs, and that it is safe to open."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from commandline import invoke, told
from toy import make_toy, toy_pipeline

from eo_batch.core.digest import digest
from eo_batch.core.records import ChunkFailure
from eo_batch.notebook import open_run
from eo_batch.outputs.store import Store
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.report import report_facts
from eo_batch.view.report import report_html
from eo_batch.view.report.clock import clock_of

HOSTILE = '<script>alert("x")</script>\x1b[2J'


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=2, size=260)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=260, prompts=("bright", "<b>dark</b> & so on")))
    return folder


@pytest.fixture(scope="module")
def run(toy: Path) -> Path:
    out = toy / "run"
    assert start_run(load_pipeline(toy / "pipeline.toml"), out, executor="serial").exit_status == 0
    return out


@pytest.fixture(scope="module")
def broken(toy: Path) -> Path:
    """A run that lacks the chunks of one damaged scene."""
    folder = toy / "broken"
    shutil.copytree(toy, folder, ignore=shutil.ignore_patterns("run", "broken"))
    for scene in folder.glob("b2_*.tif"):
        scene.write_bytes(scene.read_bytes()[:3000])
    assert start_run(load_pipeline(folder / "pipeline.toml"), folder / "run", executor="serial").exit_status == 3
    return folder / "run"


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def page(run: Path) -> str:
    return report_html(Store(run), report_facts(run))


class Strict(HTMLParser):
    """Collects tags, and fails where one is not closed in order."""

    VOID = {"meta", "img", "br"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Strict:
    reader = Strict()
    reader.feed(text)
    assert not reader.open
    return reader


def test_the_page_of_a_finished_run_tells_all_of_it(run: Path) -> None:
    found = parsed(page(run))
    headings = [section.split("</h2>")[0] for section in re.split(r"<h2[^>]*>", page(run))[1:]]
    assert headings[:4] == ["Result", "Map of chunks", "Timeline", "Planned and measured"]
    assert headings[4:] == ["Seams", "Slowest chunks", "Drivers", "What was asked", "Storage"]
    assert "The run is complete" in found.text
    assert "resume" not in found.text


def test_the_page_asks_nobody_for_anything(run: Path, broken: Path) -> None:
    for text in (page(run), page(broken)):
        found = parsed(text)
        assert not [tag for tag, _ in found.found if tag in ("script", "link", "iframe", "object", "a", "form")]
        addresses = [
            value or "" for _, attributes in found.found for name, value in attributes.items() if name in ("src", "href")
        ]
        assert all(address.startswith("data:image/png;base64,") for address in addresses)
        assert "http" not in text.replace("http-equiv", "")
        assert not [name for _, attributes in found.found for name in attributes if name.startswith("on")]


def test_pictures_have_a_text(run: Path) -> None:
    pictures = [attributes for tag, attributes in parsed(page(run)).found if tag in ("img", "svg")]
    assert len(pictures) >= 4
    assert all(attributes.get("alt") or attributes.get("aria-label") for attributes in pictures)


def test_text_of_others_cannot_become_tags(run: Path) -> None:
    facts = report_facts(run)
    failures = (ChunkFailure("t0000/y0000_x0000", "asset-corrupt", f"asset-corrupt: of item toy/{HOSTILE}: x", 1),)
    chunks = tuple(replace(row, skipped=(HOSTILE,), work=replace(row.work, worker=HOSTILE)) for row in facts.chunks)
    status = replace(facts.status, failures=failures, name=HOSTILE, path=HOSTILE)
    lost = ((facts.made.timestamp(), HOSTILE),)
    text = report_html(Store(run), replace(facts, status=status, chunks=chunks, warnings={HOSTILE: 3}, lost=lost))
    found = parsed(text)
    assert "script" not in [tag for tag, _ in found.found]
    assert "\x1b" not in text
    assert '<script>alert("x")</script>\\x1b[2J' in found.text
    assert "<b>dark</b> & so on" in found.text


def test_failed_chunks_are_told_with_reason_and_item_and_how_to_go_on(broken: Path) -> None:
    facts = report_facts(broken)
    text = parsed(page(broken)).text
    assert facts.counts["failed"] == len(facts.status.failures) > 0
    assert facts.status.failing_items == {"toy/b2": len(facts.status.failures)}
    assert "asset-corrupt" in text
    assert "toy/b2" in text
    assert f"eo-batch resume {broken}" in text


def test_a_run_without_a_finished_chunk_has_a_page(copy: Path) -> None:
    for folder in ("receipts", "parts", "events", "stac"):
        shutil.rmtree(copy / folder)
    (copy / "COMPLETE.json").unlink()
    facts = report_facts(copy)
    assert facts.counts == {"to do": facts.status.total, "done": 0, "no observation": 0, "failed": 0}
    assert "The run is not finished" in parsed(page(copy)).text


def test_a_run_that_has_no_manifest_yet_has_a_page(copy: Path) -> None:
    for path in copy.iterdir():
        if path.name not in ("request.json", "lease"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "What was asked" in parsed(page(copy)).text


def test_an_older_run_without_telemetry_journal_and_plan_has_a_page(copy: Path) -> None:
    shutil.rmtree(copy / "events")
    (copy / "plan.json").unlink(missing_ok=True)
    for path in (copy / "receipts").rglob("*.json"):
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "telemetry": {"seconds": {"read": 0.5, "score": 1.5}}}))
    text = parsed(page(copy)).text
    assert "do not tell when chunks were made" in text
    assert "No plan was kept" in text
    assert "2.0 s" in text


def test_a_damaged_receipt_is_named_and_stops_nothing(copy: Path) -> None:
    next((copy / "receipts").rglob("*.json")).write_text("{")
    assert "1 receipts cannot be read" in parsed(page(copy)).text


def test_telemetry_of_any_kind_stops_nothing(copy: Path) -> None:
    values = {"seconds": 3, "worker": [], "host": None, "began": "soon", "took_s": "long", "busy_s": -1, "windows": 7}
    for path in (copy / "receipts").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "telemetry": values}))
    assert "Result" in page(copy)


DEEP = b"[" * 100_000
FIRST, LAST = "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, DEEP) for name in ("request.json", "manifest.json", "COMPLETE.json", "plan.json", "pilot.json")),
        *((f"{name}/t0000/y0000_x0000.json", DEEP) for name in ("receipts", "failures")),
        *((f"lease/{name}.json", DEEP) for name in ("000009", "\u00b2")),
        ("failures/foo.json", b'{"key": "foo", "code": "x", "text": "y", "attempts": 1}'),
        ("events/\u00b2/000001.jsonl", DEEP),
        *(("events/000001/000002.jsonl", b'{"time": "%s", "event": "warning"}' % when.encode()) for when in (FIRST, LAST)),
    ],
)
def test_a_folder_of_a_stranger_has_a_page_or_one_clear_error(copy: Path, name: str, content: bytes) -> None:
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_bytes(content)
    for command in ("status", "report", "verify"):
        status, _, error = invoke(command, str(copy))
        assert status in (0, 2, 3, 5, 6), error


@pytest.mark.parametrize("change", [{"format": "x"}, {"chunks": "x"}, {"steps": [1]}, {"item_count": None}])
def test_a_manifest_whose_values_are_of_another_kind_is_damaged(copy: Path, change: dict[str, object]) -> None:
    body = {key: value for key, value in json.loads((copy / "manifest.json").read_text()).items() if key != "digest"} | change
    (copy / "manifest.json").write_text(json.dumps({**body, "digest": digest(body)}))
    status, _, error = invoke("status", str(copy))
    assert (status, error[:17]) == (5, "receipt-mismatch:")


@pytest.mark.parametrize("when", [FIRST, LAST])
def test_times_that_no_clock_shows_stop_nothing(copy: Path, when: str) -> None:
    for path in (copy / "receipts").rglob("*.json"):
        receipt = json.loads(path.read_text())
        path.write_text(json.dumps({**receipt, "telemetry": {**receipt["telemetry"], "began": when, "took_s": 1e299}}))
    assert "do not tell when" in page(copy)


def test_a_resumed_run_tells_both_sittings(copy: Path) -> None:
    for path in sorted((copy / "receipts").rglob("*.json"))[:3]:
        path.unlink()
    (copy / "COMPLETE.json").unlink()
    assert resume_run(copy, executor="serial").exit_status == 0
    facts = report_facts(copy)
    assert [(sitting.epoch, sitting.how) for sitting in facts.sittings] == [(1, "published"), (2, "published")]
    assert "driver 2" in page(copy)


def test_a_seam_is_found_and_its_absence_too(copy: Path, run: Path) -> None:
    assert {figures.verdict for figures in report_facts(run).seams} == {"none"}
    from eo_batch.outputs.cube import decode_shard, encode_shard, shard_path

    facts = report_facts(copy)
    store = Store(copy)
    for iy in range(facts.states.shape[1]):
        for ix in range(iy % 2, facts.states.shape[2], 2):
            chunk = facts.grid.chunk(0, iy, ix)
            for array in ("mask", "score"):
                path = shard_path(array, 0, chunk)
                values = decode_shard(store.get(path), facts.grid)
                values[values < 254] = 1
                store.put(path, encode_shard(values, facts.grid))
    seams = report_facts(copy).seams
    assert [figures.verdict for figures in seams] == ["seen", "none"]
    assert "Seams are seen" in page(copy)


def test_a_big_run_has_a_small_page(run: Path) -> None:
    facts = report_facts(run)
    states = np.ones((3, 200, 200), np.uint8)
    states[1, 50:60, 50:60] = 3
    rows = [
        replace(
            row,
            index=(n % 3, n // 600, n // 3 % 200),
            work=replace(row.work, key=f"k{n}", began=1.7e9 + n * 0.1, worker=f"h w{n % 64}"),
        )
        for n, row in ((n, facts.chunks[n % len(facts.chunks)]) for n in range(50_000))
    ]
    manifest = {**facts.manifest, "steps": ["a", "b", "c"]}
    grid = replace(facts.grid, rows=replace(facts.grid.rows, stop=facts.grid.rows.start + 200 * facts.grid.chunk_px))
    grid = replace(grid, cols=replace(grid.cols, stop=grid.cols.start + 200 * grid.chunk_px))
    big = replace(facts, states=states, chunks=tuple(rows), manifest=manifest, grid=grid)
    assert len(report_html(Store(run), big)) < 5_000_000


def test_a_pause_does_not_hide_the_work() -> None:
    clock = clock_of([(0.0, 100.0), (100_000.0, 100_100.0)])
    assert clock is not None
    assert clock.x(50.0) - clock.x(0.0) > 150
    assert clock.x(100_100.0) - clock.x(100_050.0) > 150
    assert clock.x(5_000.0) == clock.x(100.0)


def test_the_command_writes_the_page_into_the_run(copy: Path, tmp_path: Path) -> None:
    status, out, err = invoke("report", copy)
    assert (status, err.strip()) == (0, "")
    assert out.strip().endswith("report.html")
    assert (copy / "report.html").read_text().startswith("<!doctype html>")
    assert invoke("report", copy, "--out", tmp_path / "other.html")[0] == 0
    assert (tmp_path / "other.html").is_file()


def test_a_notebook_shows_the_page_in_a_frame_that_may_do_nothing(run: Path) -> None:
    shown = open_run(run).report()._repr_html_()
    (frame,) = parsed(shown).found
    assert frame[0] == "iframe"
    assert frame[1]["sandbox"] == ""
    assert (frame[1]["srcdoc"] or "").startswith("<!doctype html>")


def test_the_facts_are_json(run: Path, broken: Path) -> None:
    facts = told("report", run)
    assert facts["counts"]["done"] + facts["counts"]["no observation"] == facts["run"]["total"]
    assert facts["planned_and_measured"][0]["label"] == "chunks"
    assert {one["verdict"] for one in facts["seams"]} == {"none"}
    assert told("report", broken)["run"]["failing_items"] == {"toy/b2": report_facts(broken).counts["failed"]}


def test_a_folder_without_a_run_is_one_clear_error(tmp_path: Path) -> None:
    status, _, err = invoke("report", tmp_path)
    assert status == 2
    assert "there is no run" in err
