"""`eo-batch doctor` says what is there and contacts nobody."""

from __future__ import annotations

import json
import socket
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eo_batch.cli.doctor import examine
from eo_batch.cli.main import app


def test_report_for_machines_names_versions_and_hosts() -> None:
    answer = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(answer.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert f"rasterio {version('rasterio')}" in findings["packages"]["text"]
    assert "GeoTIFF readable" in findings["GDAL"]["text"]
    assert findings["PROJ"]["state"] == "ok"
    assert "signing: planetary-computer" in findings["catalog planetary-computer"]["text"]
    assert report["healthy"] is True
    assert answer.exit_code == 0


def test_doctor_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert examine()


def test_a_secret_in_a_proxy_variable_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:TOPSECRET@proxy.example:8080")
    assert "TOPSECRET" not in CliRunner().invoke(app, ["doctor"]).output


def test_foreign_projection_data_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJ_LIB", "/usr/share/proj")
    (finding,) = [f for f in examine() if f.name == "PROJ variables"]
    assert finding.state == "warn"


def test_weights_and_their_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "not yet"))
    (finding,) = [f for f in examine() if f.name == "weights"]
    assert finding.text.startswith(f"{tmp_path / 'not yet'}: none; ")
    assert "eo-batch models fetch remotesam" in finding.advice
    (tmp_path / "not yet" / "remotesam").mkdir(parents=True)
    for name in ("remotesam.safetensors", "vocab.txt"):
        (tmp_path / "not yet" / "remotesam" / name).touch()
    (finding,) = [f for f in examine() if f.name == "weights"]
    assert (": remotesam; " in finding.text, finding.advice) == (True, "")


def test_a_check_that_breaks_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such device")

    monkeypatch.setattr("eo_batch.cli.doctor._folders", broken)
    findings = [f for f in examine() if "no such device" in f.text]
    assert [f.state for f in findings] == ["fail"]
