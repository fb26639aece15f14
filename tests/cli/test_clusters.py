"""`eo-batch clusters`: what can be named, to save and change."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import invoke, told

from eo_batch.core.spec import parse_cluster


def test_list_names_own_files_and_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "mine.toml").write_text('# My own.\n[cluster]\nkind = "local:3"\n')
    monkeypatch.chdir(tmp_path)
    found = {entry["name"]: entry["summary"] for entry in told("clusters", "list")["clusters"]}
    assert found["mine"] == "My own."
    assert {"laptop", "gpu-box", "slurm-cpu", "slurm-gpu", "pbs", "kubernetes"} <= found.keys()


def test_show_prints_a_file_that_can_be_used() -> None:
    status, out, _ = invoke("clusters", "show", "slurm-gpu")
    assert status == 0
    assert parse_cluster(out.encode(), where="out").batch.gpus == 1


def test_show_of_a_kind_says_what_there_is() -> None:
    status, _, err = invoke("clusters", "show", "slurm")
    assert status == 2
    assert "slurm-cpu" in err
