"""Whole runs in a bucket: the same bytes as on a disk, also after kills, lost answers and a store that goes away."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from commandline import invoke, told
from drivers import eo_batch, one_after_the_other
from rundigest import download, file_digests, mask_array, newest_digests
from servers.s3 import S3Server, s3_server
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ConfigError, LockError, StoreError
from eo_batch.notebook import open_run
from eo_batch.outputs import bucket
from eo_batch.outputs.store import Store
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.later.rethreshold import rethreshold
from eo_batch.run.lease import acquire, holder
from eo_batch.run.request import load_pipeline

SIZE = 200
CHUNKS = 4
SERIAL = ("--cluster", "serial", "--quiet")
HASTY = {"max_retries": 1, "backoff": {"init_backoff": timedelta(milliseconds=1)}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of four chunks."""
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    (folder / "pipeline.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright",)))
    return folder


@pytest.fixture(scope="module")
def golden_run(toy: Path) -> Path:
    """The run on a disk."""
    assert start_run(load_pipeline(toy / "pipeline.toml"), toy / "golden", executor="serial").exit_status == 0
    return toy / "golden"


@pytest.fixture(scope="module")
def golden(golden_run: Path) -> dict[str, str]:
    return file_digests(golden_run)


@pytest.fixture(scope="module")
def finished(toy: Path, s3: S3Server) -> str:
    """The run in a bucket; tests only read it, or write beside it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        where = "s3://maps/finished/run"
        status, out, err = invoke("run", toy / "pipeline.toml", "--out", where, *SERIAL)
        assert status == 0, err
        assert ["run", where] in [line.split() for line in out.splitlines()]
    return where


def begin(toy: Path, where: str, **options: Any) -> Any:
    return start_run(load_pipeline(toy / "pipeline.toml"), where, **{"executor": "serial", **options})


def test_a_run_in_a_bucket_is_the_run_on_a_disk(finished: str, prefix: str, golden: dict[str, str], tmp_path: Path) -> None:
    assert file_digests(download(finished, tmp_path / "copy")) == golden


def test_f12_processes_of_workers_write_the_same_bytes(toy: Path, prefix: str, golden: dict[str, str], tmp_path: Path) -> None:
    assert begin(toy, prefix, executor="local:2").exit_status == 0
    assert file_digests(download(prefix, tmp_path / "copy")) == golden


def test_status_verify_and_resume_know_a_run_in_a_bucket(finished: str, prefix: str) -> None:
    assert told("status", finished)["state"] == "complete"
    assert told("verify", finished, "--quiet")["ok"]
    assert told("resume", finished, *SERIAL)["complete"]
    assert f"toy in {finished}" in invoke("status", finished)[1]


def test_the_report_of_a_run_in_a_bucket_is_written_there(finished: str, prefix: str, tmp_path: Path) -> None:
    assert invoke("report", finished, "--out", f"{prefix}/page.html")[0] == 0
    page = Store(prefix).get("page.html").decode()
    assert "The run is complete" in page
    assert "No seam is seen" in page
    facts = told("report", finished)
    assert facts["sittings"][0]["how"] == "published"
    written = next(row for row in facts["planned_and_measured"] if row["label"] == "written")
    assert min(written["planned"], written["measured"]) > 0


def test_a_folder_of_a_bucket_without_a_run_is_said_to_have_none(prefix: str) -> None:
    status, _, err = invoke("status", prefix)
    assert (status, prefix in err, "there is no run in this folder" in err) == (2, True, True)


@pytest.mark.parametrize(
    "command",
    [
        ("status", "gs://maps/run"),
        ("resume", "s3://key:canarysecret@maps/run"),
        ("export", "RUN", "--out", "https://maps.example"),
        ("demo", "--out", "s3://maps/demo"),
        ("segment", "image.png", "--prompt", "water", "--out", "s3://maps/segmented"),
    ],
)
def test_places_that_cannot_be_are_refused_by_commands(command: tuple[str, ...], golden_run: Path) -> None:
    arguments = [
        str(golden_run) if (argument == "s3://maps/run" and command[0] == "export") else argument for argument in command
    ]
    status, _, err = invoke(*arguments)
    assert (status, err.startswith("config-invalid: "), "canary" in err) == (2, True, False)


def test_a_second_run_never_replaces_the_first(toy: Path, finished: str, prefix: str) -> None:
    status, _, err = invoke("run", toy / "pipeline.toml", "--out", finished, *SERIAL)
    assert (status, "already holds a run" in err) == (2, True)


def test_a_notebook_reads_a_run_in_a_bucket(finished: str, golden_run: Path, prefix: str, tmp_path: Path) -> None:
    run, local = open_run(finished), open_run(golden_run)
    assert (run.masks["mask"].values == mask_array(golden_run)).all()
    np.testing.assert_array_equal(run.scores().values, local.scores().values)
    west, south, east, north = local.footprints().to_crs("EPSG:4326").total_bounds
    box = (west, south, (west + east) / 2, (south + north) / 2)
    for asked in ((), ("bright", box)):
        ours, theirs = run.footprints(*asked), local.footprints(*asked)
        assert ours.equals(theirs)
        assert len(ours)
    assert list(run.items["id"]) == list(local.items["id"])
    assert run.preview(tmp_path / "preview.png").size == local.preview().size


def test_exports_of_a_bucket_are_those_of_a_disk(finished: str, golden_run: Path, prefix: str, tmp_path: Path) -> None:
    assert told("export", finished, "--out", tmp_path / "ours")["files"]
    names = [Path(name).name for name in told("export", golden_run, "--out", tmp_path / "theirs")["files"]]
    for name in names:
        if name.endswith(".tif"):
            with rasterio.open(tmp_path / "ours" / name) as ours, rasterio.open(tmp_path / "theirs" / name) as theirs:
                assert (ours.read() == theirs.read()).all()
    files = told("export", golden_run, "--out", f"{prefix}/maps")["files"]
    assert files == [f"{prefix}/maps/{name}" for name in names]
    download(f"{prefix}/maps", tmp_path / "back")
    assert (tmp_path / "back" / names[0]).read_bytes() == (tmp_path / "theirs" / names[0]).read_bytes()


def test_layers_are_made_beside_a_run_in_a_bucket(finished: str, golden_run: Path, prefix: str, tmp_path: Path) -> None:
    here = shutil.copytree(golden_run, tmp_path / "run")
    made, theirs = (told("products", run, "--cells", 300, "--picture") for run in (finished, here))
    assert made["files"] == [name.replace(str(here), finished) for name in theirs["files"]]
    copy = download(finished, tmp_path / "copy")
    for name in theirs["files"]:
        assert (copy / Path(name).relative_to(here)).read_bytes() == Path(name).read_bytes()
    assert len(open_run(finished).boxes()) == made["boxes"]["bright"]


def test_prompts_are_added_to_a_run_in_a_bucket(toy: Path, golden_run: Path, prefix: str, tmp_path: Path) -> None:
    upload(golden_run, prefix)
    status, _, err = invoke("add-prompts", prefix, "dark", *SERIAL)
    assert status == 0, err
    (toy / "both.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright", "dark")))
    start_run(load_pipeline(toy / "both.toml"), tmp_path / "both", executor="serial")
    assert newest_digests(download(prefix, tmp_path / "copy")) == file_digests(tmp_path / "both")


def test_thresholds_are_changed_beside_a_run_in_a_bucket(finished: str, golden_run: Path, prefix: str, tmp_path: Path) -> None:
    asked = ("--prompt", "bright", "--threshold", 0.6, *SERIAL)
    for run in (finished, golden_run):
        assert invoke("rethreshold", run, *asked)[0] == 0
    copy = download(f"{finished}-v2", tmp_path / "copy")
    ours, theirs = file_digests(copy), file_digests(golden_run.with_name("golden-v2"))
    assert json.loads((copy / "derived.json").read_bytes())["from"] == "../run"
    with pytest.raises(ConfigError, match="lies in the way"):
        rethreshold(finished, {"bright": 0.7}, f"{finished}/inside")
    assert {k: v for k, v in ours.items() if k != "derived.json"} == {k: v for k, v in theirs.items() if k != "derived.json"}


def test_a_damaged_run_in_a_bucket_is_mended(golden_run: Path, prefix: str, golden: dict[str, str], tmp_path: Path) -> None:
    upload(golden_run, prefix)
    store = Store(prefix)
    part = next(store.list("parts"))
    store.delete(part)
    store.put(next(store.list("masks.zarr/mask/c")), b"damaged")
    status, out, _ = invoke("verify", prefix, "--json", "--quiet")
    problems = {problem["code"] for problem in json.loads(out)["problems"]}
    assert (status, problems) == (5, {"shard-missing", "shard-mismatch"})
    assert invoke("resume", prefix, "--repair", *SERIAL)[0] == 0
    assert file_digests(download(prefix, tmp_path / "copy")) == golden


def test_killed_and_resumed_in_a_bucket_the_bytes_are_the_same(
    toy: Path, s3: S3Server, prefix: str, golden: dict[str, str], tmp_path: Path
) -> None:
    arguments = eo_batch("run", toy / "pipeline.toml", "--out", prefix, "--cluster", "serial", "--json")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=s3.environment) as process:
        assert process.stdout is not None
        next((line for line in process.stdout if json.loads(line)["event"] == "chunk"), None)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    status = told("status", prefix)
    assert (status["state"], status["driver"]["alive"], 1 <= status["finished"] <= CHUNKS) == ("stopped", False, True)
    assert resume_run(prefix, executor="serial").complete
    assert file_digests(download(prefix, tmp_path / "copy")) == golden


def test_f01_of_two_drivers_on_a_bucket_one_works(prefix: str) -> None:
    store = Store(prefix)
    with acquire(store), pytest.raises(LockError, match=rf"run-locked: s3://maps/.*pid {os.getpid()}"):
        acquire(Store(prefix))
    assert holder(store)["alive"] is False  # type: ignore[index]
    with acquire(store) as lease:
        assert lease.epoch == 2
        store.create("lease/000003.json", b"{}")
        with pytest.raises(LockError, match="lease-lost"):
            lease.check()


def test_a_store_that_creates_a_file_twice_is_refused(s3: S3Server, prefix: str) -> None:
    s3.tell(forgets="HTTP_IF_NONE_MATCH")
    with pytest.raises(StoreError, match=r"store-denied.*If-None-Match"):
        acquire(Store(prefix))
    s3.tell()


def test_f04_lost_answers_to_every_create_are_no_false_lock(
    toy: Path, s3: S3Server, prefix: str, golden: dict[str, str], tmp_path: Path
) -> None:
    s3.tell(lose=r"^PUT .*/(lease/\d+\.json|request\.json|manifest\.json|receipts/)", times=3 + CHUNKS)
    assert begin(toy, prefix).exit_status == 0
    assert s3.tell(left=True) == 0
    assert file_digests(download(prefix, tmp_path / "copy")) == golden


def test_a_store_that_goes_away_ends_the_run_which_goes_on_when_it_is_back(
    toy: Path, golden: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_RETRIES", HASTY)
    where = "s3://maps/gone"
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)

        def vanish(event: Any) -> None:
            if event.kind == "chunk" and not (tmp_path / "saved").exists():
                download(where, tmp_path / "saved")
                server.stop()

        with pytest.raises(StoreError, match=r"store-unreachable: s3://maps/gone.*eo-batch resume"):
            begin(toy, where, listener=vanish)
    with s3_server(server.port):  # moto keeps nothing: what the store held is put back
        upload(tmp_path / "saved", where)
        assert 0 < told("status", where)["finished"] < CHUNKS
        assert resume_run(where, executor="serial").complete
        assert file_digests(download(where, tmp_path / "copy")) == golden


def test_h03_no_secret_of_the_store_is_told_or_kept(toy: Path, s3: S3Server, finished: str, prefix: str, tmp_path: Path) -> None:
    canaries = {"AWS_ACCESS_KEY_ID": "AKIACANARYKEY", "AWS_SECRET_ACCESS_KEY": "canarysecret", "AWS_SESSION_TOKEN": "canarytoken"}
    (tmp_path / "tmp").mkdir()
    environment = {**s3.environment, **canaries, "TMPDIR": str(tmp_path / "tmp"), "RUST_LOG": "trace", "PYTHONUTF8": "1"}
    commands = (
        ["run", toy / "pipeline.toml", "--out", prefix, "--json", "--traceback"],
        ["status", finished, "--traceback"],
    )
    statuses, printed = one_after_the_other(commands, environment, tmp_path)
    assert statuses == [7, 7], printed
    assert printed.count("store-denied") >= 2
    assert "canary" not in printed.lower()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"canary" in path.read_bytes().lower() for path in kept)
    files = download(finished, tmp_path / "copy")
    assert not any(b"loopback-" in path.read_bytes() for path in files.rglob("*") if path.is_file())


def test_a_cube_whose_store_is_gone_says_so_when_it_is_read(golden_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_RETRIES", HASTY)
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        upload(golden_run, "s3://maps/run")
        mask = open_run("s3://maps/run").masks["mask"]
        server.stop()
        with pytest.raises(StoreError, match="store-unreachable: s3://maps/run"):
            mask.load()


def test_what_a_run_asks_of_the_store_grows_with_its_chunks(toy: Path, s3: S3Server, prefix: str, tmp_path: Path) -> None:
    counts = []
    for name, chunk_px in (("few", 128), ("many", 64)):
        (toy / f"{name}.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright",), chunk_px=chunk_px))
        s3.tell(count=True)
        summary = start_run(load_pipeline(toy / f"{name}.toml"), f"{prefix}/{name}", executor="serial")
        counts.append((summary.total, s3.tell(count=True)))
    (few, before), (many, after) = counts
    each = {kind: (after.get(kind, 0) - before.get(kind, 0)) / (many - few) for kind in ("PUT", "GET", "HEAD", "LIST")}
    print(f"requests per chunk: {each}; of a run of {few} chunks: {before}")
    assert each["PUT"] <= 6
    assert each["GET"] <= 3
    assert each["HEAD"] <= 1
    assert each["LIST"] <= 0.2


def upload(run: Path, where: str) -> None:
    """Put a run on a disk into a bucket."""
    store = Store(where)
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        store.put(path.relative_to(run).as_posix(), path.read_bytes())
