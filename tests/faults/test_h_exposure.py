"""H: what others could see. Only loopback listens, and secrets that a run meets on its way never leave it: not in a line, a
file, a trace, a log of a worker, nor an address of the wrong store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers.files import Fault, FileServer
from toy import make_toy, toy_pipeline
from wholerun import eo_batch, invoke, over_http, spoil, start_until

CANARIES = ("canaryquery", "canaryuser", "canarypassword", "canaryheader", "canaryredirect", "canarykey")
SIZE = 200


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    make_toy(tmp_path / "toy", dates=1, size=SIZE)
    (tmp_path / "toy" / "pipeline.toml").write_text(toy_pipeline(size=SIZE, prompts=("bright",)))
    return tmp_path / "toy"


PATIENCE = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
from eo_batch.sources import http
from eo_batch.sources.asset_errors import Retry
http.FIRST_WAIT_S = 0.0
Retry.wait_s = lambda self, *waits: 0.0
from eo_batch.cli.main import entry
statuses = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["eo-batch", *arguments]
    try:
        entry()
    except SystemExit as left:
        statuses.append(left.code)
print(json.dumps(statuses))
"""
"""Commands one after the other, and their exit statuses as the last line: starting Python takes most of the time."""


def run(toy: Path, *commands: tuple[object, ...]) -> tuple[list[int], str]:
    """(exit statuses, everything printed) of commands in a process full of secrets, with every logger talking."""
    secrets = {
        "AUTHORIZATION": "Bearer canaryheader",
        "AWS_SECRET_ACCESS_KEY": "canarykey",
        "AWS_ACCESS_KEY_ID": "AKIACANARY",
        "GDAL_HTTP_HEADERS": "Authorization: Bearer canaryheader",
        "HTTPS_PROXY": "http://canaryuser:canarypassword@127.0.0.1:9",
        "TMPDIR": str(toy / "tmp"),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    (toy / "tmp").mkdir(exist_ok=True)
    answer = subprocess.run(
        [sys.executable, "-c", PATIENCE, json.dumps([[str(argument) for argument in command] for command in commands])],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **secrets},
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout.splitlines()[-1]), answer.stdout + answer.stderr


def check_silent(printed: str, *folders: Path) -> None:
    """No canary in text, nor in any byte of any file below the folders."""
    assert [canary for canary in CANARIES if canary in printed] == []
    found = [
        (path.name, canary)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        for canary in CANARIES
        if canary.encode() in path.read_bytes()
    ]
    assert found == []


def sign_items(toy: Path, base: str) -> None:
    """Give every asset an address with a query, a user and a password."""
    document = json.loads((toy / "catalog.json").read_text())
    for asset in (asset for item in document["features"] for asset in item["assets"].values()):
        asset["href"] = f"{base.replace('//', '//canaryuser:canarypassword@')}/{asset['href']}?sig=canaryquery&se=canaryquery"
    (toy / "catalog.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (None, 0),
        (Fault("status", 403, repeat=True), 3),
        (Fault("status", 503, repeat=True), 3),
        (Fault("reset", repeat=True), 3),
        (Fault("html", repeat=True), 3),
        (Fault("status", 302, (("Location", "http://169.254.169.254/x?token=canaryredirect"),), repeat=True), 3),
    ],
    ids=["well", "403", "503", "reset", "html", "redirect"],
)
def test_h03_secrets_of_hrefs_and_environment_are_in_no_output_and_no_file(toy: Path, fault: Any, status: int) -> None:
    with FileServer(toy) as server:
        sign_items(toy, server.base)
        over_http(toy, server)
        if fault is not None:
            server.script("a1_green.tif", fault)
        begun = ("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "serial", "--json", "--traceback")
        found, printed = run(toy, begun, ("status", toy / "run", "--json"), ("verify", toy / "run", "--json"))
    assert found[0] == status, printed[-2000:]
    assert len(found) == 3
    assert (toy / "run" / "manifest.json").exists()
    check_silent(printed, toy / "run", toy / "tmp")


@pytest.mark.parametrize(
    ("fault", "status"),
    [(None, 0), (Fault("status", 403, repeat=True), 3), (Fault("reset", repeat=True), 3), (Fault("html", repeat=True), 3)],
    ids=["well", "403", "reset", "html"],
)
def test_h03_the_token_that_signs_addresses_is_in_no_output_and_no_file(toy: Path, fault: Any, status: int) -> None:
    store, keys = toy / "store" / "account" / "container", toy / "keys" / "token" / "account"
    for folder in (store, keys):
        folder.mkdir(parents=True)
    for path in toy.glob("*.tif"):
        path.rename(store / path.name)
    (keys / "container").write_text(json.dumps({"token": "sig=canaryquery", "msft:expiry": "2099-01-01T00:00:00Z"}))
    with FileServer(toy / "store", tokens={"canaryquery"}) as pixels, FileServer(toy / "keys") as service:
        document = json.loads((toy / "catalog.json").read_text())
        for asset in (asset for item in document["features"] for asset in item["assets"].values()):
            asset["href"] = pixels.url(f"account/container/{asset['href']}")
        (toy / "keys" / "catalog.json").write_text(json.dumps(document))
        (toy / "catalogs").mkdir()
        (toy / "catalogs" / "signed.toml").write_text(
            f'title = "signed"\nurl = "{service.url("catalog.json")}"\nkind = "static"\nasset_hosts = ["127.0.0.1"]\n'
            f'allow_private = true\nsigning = "planetary-computer"\nsign_url = "{service.url("token")}"\n'
        )
        text = (toy / "pipeline.toml").read_text()
        (toy / "pipeline.toml").write_text(text.replace("catalog.json", "signed"))
        if fault is not None:
            pixels.script("account/container/a1_green.tif", fault)
        found, printed = run(
            toy, ("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "serial", "--json", "--traceback")
        )
        assert any(asked.query == "sig=canaryquery" for asked in pixels.asked), "nothing was signed"
    assert found == [status], printed[-2000:]
    check_silent(printed, toy / "run", toy / "tmp")


@pytest.mark.parametrize(
    "address",
    [
        "https://canaryuser:canarypassword@example.org/catalog.json",
        "https://example.org/catalog.json?sig=canaryquery",
        "https://example.org/stac?token=canaryquery",
        "ftp://canaryuser:canarypassword@example.org/catalog.json?sig=canaryquery",
    ],
)
def test_h03_a_catalog_address_with_credentials_is_refused_without_repeating_them(toy: Path, address: str) -> None:
    text = (toy / "pipeline.toml").read_text()
    (toy / "pipeline.toml").write_text(text.replace("catalog.json", address))
    statuses, printed = run(toy, ("run", toy / "pipeline.toml", "--out", toy / "run", "--quiet"))
    assert statuses == [2]
    assert "source.catalog" in printed
    assert not (toy / "run").exists()
    check_silent(printed, toy / "tmp")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("status", 403, repeat=True), id="403"),
        pytest.param(Fault("reset", repeat=True), id="reset", marks=pytest.mark.slow),
    ],
)
def test_h03_worker_processes_reports_journals_and_notebooks_hold_no_secret(toy: Path, fault: Any) -> None:
    """Every logger talks in the driver; what its workers print arrives in the same stream."""
    with FileServer(toy) as server:
        sign_items(toy, server.base)
        over_http(toy, server)
        server.script("a1_green.tif", fault)
        begun = ("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "local:2", "--traceback", "--allow-failed", "9")
        found, printed = run(
            toy, begun, ("report", toy / "run"), ("status", toy / "run"), ("resume", toy / "run", "--cluster", "serial")
        )
    assert found[0] == 3, printed[-2000:]
    assert found[2:] == [0, 3]
    notebook = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from eo_batch import open_run; print(open_run(sys.argv[1])._repr_html_())",
            toy / "run",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert list((toy / "run" / "events").rglob("*.jsonl"))
    check_silent(printed + notebook.stdout + notebook.stderr, toy / "run", toy / "tmp")


@pytest.mark.parametrize("cluster", ["serial", "local", "local:2"])
def test_h01_a_run_listens_on_loopback_alone(slow_toy: Path, tmp_path: Path, cluster: str) -> None:
    out = tmp_path / "run"
    process = start_until(out, eo_batch("run", slow_toy / "pipeline.toml", "--out", out, "--cluster", cluster), 2)
    try:
        assert process.poll() is None
        driver = psutil.Process(process.pid)
        family = [driver, *driver.children(recursive=True)]
        heard = [end.laddr.ip for each in family for end in each.net_connections() if end.status == psutil.CONN_LISTEN]
        assert set(heard) <= {"127.0.0.1", "::1"}
        assert bool(heard) == (cluster != "serial")
    finally:
        process.terminate()
        process.communicate(timeout=120)


@pytest.mark.parametrize("way", ["option", "pipeline", "environment"])
def test_h02_the_dashboard_cannot_be_moved_to_another_interface(toy: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    command = ["run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "local", "--json"]
    if way == "environment":
        monkeypatch.setenv("DASK_DISTRIBUTED__DASHBOARD__ADDRESS", "0.0.0.0:8787")
        monkeypatch.setenv("DASK_SCHEDULER__DASHBOARD_ADDRESS", "0.0.0.0:8787")
        status, out, err = invoke(*command)
        assert status == 0, err
        start = next(json.loads(line) for line in out.splitlines() if '"start"' in line)
        assert start["data"]["dashboard"].startswith("http://127.0.0.1:")
        return
    if way == "option":
        command += ["--dashboard", "0.0.0.0"]
    else:
        spoil(toy, "[output]", '[cluster]\nkind = "local"\ndashboard = "0.0.0.0"\n[output]')
    status, _, err = invoke(*command)
    assert status == 2
    assert "dashboard" in err
    assert not (toy / "run").exists()
