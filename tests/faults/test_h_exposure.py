"""H: what others could see. Only loopback listens, and secrets that a run meets on its way never leave it: not in a line, a
file, a trace, a log of a worker, nor an address of the wrong store."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from drivers import eo_batch, one_after_the_other, start_until
from servers.files import Fault, FileServer
from wholerun import invoke, name_catalog, over_http, spoil

from eo_batch.notebook import open_run

CANARIES = ("canaryquery", "canaryuser", "canarypassword", "canaryheader", "canaryredirect", "canarykey")
ELSEWHERE = Fault("status", 302, (("Location", "http://169.254.169.254/x?token=canaryredirect"),), repeat=True)
STATUSES = {
    None: 0,
    Fault("status", 403, repeat=True): 3,
    Fault("status", 503, repeat=True): 3,
    Fault("reset", repeat=True): 3,
    Fault("html", repeat=True): 3,
    ELSEWHERE: 3,
}
"""What becomes of requests for one file -> exit status of the run."""


def begun(toy: Path, cluster: str = "serial") -> list[object]:
    return ["run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", cluster, "--traceback"]


def run(folder: Path, *commands: list[object]) -> tuple[list[int], str]:
    """(exit statuses, everything printed) of commands in a process full of secrets, with every logger talking."""
    secrets = {
        "AUTHORIZATION": "Bearer canaryheader",
        "AWS_SECRET_ACCESS_KEY": "canarykey",
        "AWS_ACCESS_KEY_ID": "AKIACANARY",
        "GDAL_HTTP_HEADERS": "Authorization: Bearer canaryheader",
        "HTTPS_PROXY": "http://canaryuser:canarypassword@127.0.0.1:9",
        "TMPDIR": str(folder / "tmp"),
    }
    (folder / "tmp").mkdir()
    return one_after_the_other(commands, {**os.environ, **secrets}, folder)


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


def test_h03_secrets_of_hrefs_and_environment_are_in_no_output_and_no_file(clean: Path, tmp_path: Path) -> None:
    commands: list[list[object]] = []
    with ExitStack() as servers:
        for number, fault in enumerate(STATUSES):
            toy = Path(shutil.copytree(clean, tmp_path / f"toy{number}"))
            server = servers.enter_context(FileServer(toy))
            sign_items(toy, server.base)
            over_http(toy, server)
            if fault is not None:
                server.script("a1_green.tif", fault)
            commands += [[*begun(toy), "--json"], ["status", toy / "run", "--json"], ["verify", toy / "run", "--json"]]
        found, printed = run(tmp_path, *commands)
    assert found[::3] == list(STATUSES.values()), printed[-2000:]
    assert len(list(tmp_path.glob("toy*/run/manifest.json"))) == len(STATUSES)
    check_silent(printed, tmp_path / "tmp", *tmp_path.glob("toy*/run"))


def test_h03_the_token_that_signs_addresses_is_in_no_output_and_no_file(clean: Path, tmp_path: Path) -> None:
    faults = [fault for fault in STATUSES if fault is not ELSEWHERE]
    with ExitStack() as servers:
        asked = []
        for number, fault in enumerate(faults):
            pixels = sign_addresses(Path(shutil.copytree(clean, tmp_path / f"toy{number}")), servers)
            if fault is not None:
                pixels.script("account/container/a1_green.tif", fault)
            asked.append(pixels.asked)
        found, printed = run(tmp_path, *([*begun(toy), "--json"] for toy in sorted(tmp_path.glob("toy*"))))
    assert all(any(request.query == "sig=canaryquery" for request in each) for each in asked), "nothing was signed"
    assert found == [STATUSES[fault] for fault in faults], printed[-2000:]
    check_silent(printed, tmp_path / "tmp", *tmp_path.glob("toy*/run"))


def sign_addresses(toy: Path, servers: ExitStack) -> FileServer:
    """Have the pipeline read pixels from a server, which is returned, that wants a token of another one."""
    store, keys = toy / "store" / "account" / "container", toy / "keys" / "token" / "account"
    for folder in (store, keys):
        folder.mkdir(parents=True)
    for path in toy.glob("*.tif"):
        path.rename(store / path.name)
    (keys / "container").write_text(json.dumps({"token": "sig=canaryquery", "msft:expiry": "2099-01-01T00:00:00Z"}))
    pixels = servers.enter_context(FileServer(toy / "store", tokens={"canaryquery"}))
    service = servers.enter_context(FileServer(toy / "keys"))
    document = json.loads((toy / "catalog.json").read_text())
    for asset in (asset for item in document["features"] for asset in item["assets"].values()):
        asset["href"] = pixels.url(f"account/container/{asset['href']}")
    (toy / "keys" / "catalog.json").write_text(json.dumps(document))
    signing = {"signing": "planetary-computer", "sign_url": service.url("token")}
    name_catalog(toy, service.url("catalog.json"), **signing)
    return pixels


def test_h03_a_catalog_address_with_credentials_is_refused_without_repeating_them(clean: Path, tmp_path: Path) -> None:
    addresses = (
        "https://canaryuser:canarypassword@example.org/catalog.json",
        "https://example.org/catalog.json?sig=canaryquery",
        "https://example.org/stac?token=canaryquery",
        "ftp://canaryuser:canarypassword@example.org/catalog.json?sig=canaryquery",
    )
    toys = []
    for number, address in enumerate(addresses):
        toys.append(Path(shutil.copytree(clean, tmp_path / f"toy{number}")))
        spoil(toys[-1], "catalog.json", address)
    statuses, printed = run(tmp_path, *([*begun(toy), "--quiet"] for toy in toys))
    assert statuses == [2] * len(addresses)
    assert printed.count("source.catalog") >= len(addresses)
    assert not list(tmp_path.glob("toy*/run"))
    check_silent(printed, tmp_path / "tmp")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("status", 403, repeat=True), id="403"),
        pytest.param(Fault("reset", repeat=True), id="reset", marks=pytest.mark.slow),
    ],
)
def test_h03_worker_processes_reports_journals_and_notebooks_hold_no_secret(toy: Path, fault: Fault) -> None:
    """Every logger talks in the driver; what its workers print arrives in the same stream."""
    out = toy / "run"
    with FileServer(toy) as server:
        sign_items(toy, server.base)
        over_http(toy, server)
        server.script("a1_green.tif", fault)
        made = [*begun(toy, "local:1"), "--allow-failed", 9]
        found, printed = run(toy, made, ["report", out], ["status", out], ["resume", out, "--cluster", "serial"])
    assert found[0] == 3, printed[-2000:]
    assert found[2:] == [0, 3]
    assert list((out / "events").rglob("*.jsonl"))
    check_silent(printed + open_run(out)._repr_html_(), out, toy / "tmp")


@pytest.mark.parametrize("cluster", ["local:1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("serial", "local"))])
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
