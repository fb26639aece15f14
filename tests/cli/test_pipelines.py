"""Pipelines that come with the package, and names on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import invoke

from eo_batch.cli.pipelines import packaged_pipelines, pipeline_path
from eo_batch.core.errors import ConfigError


def test_shown_pipeline_is_the_file_itself() -> None:
    for name, path in packaged_pipelines().items():
        assert invoke("pipelines", "show", name) == (0, path.read_text(), "")


def test_list_for_machines_has_every_name() -> None:
    _, out, _ = invoke("pipelines", "list", "--json")
    assert [row["name"] for row in json.loads(out)["pipelines"]] == sorted(packaged_pipelines())


def test_a_file_beats_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "surface-water").write_text("")
    assert pipeline_path(Path("surface-water")) == Path("surface-water")


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match='Did you mean "surface-water"'):
        pipeline_path(Path("surfacewater"))


def test_models_list_has_the_built_in_ones() -> None:
    _, out, _ = invoke("models", "list", "--json")
    assert "spectral" in [row["name"] for row in json.loads(out)["models"]]


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("nmae = 'x'", 2, 'config-unknown-key: {path}: unknown key "nmae". Did you mean "name"?'),
        ("name = ", 2, "config-invalid: {path}: not TOML"),
    ],
)
def test_a_wrong_pipeline_is_one_clear_line(tmp_path: Path, text: str, status: int, expected: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    for command in (["plan", str(path)], ["search", str(path)], ["run", str(path), "--out", str(tmp_path / "run")]):
        code, out, err = invoke(*command)
        assert (code, out) == (status, "")
        assert err.startswith(expected.format(path=path))
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_pipeline_file_is_named(tmp_path: Path) -> None:
    code, _, err = invoke("plan", str(tmp_path / "none.toml"))
    assert code == 2
    assert str(tmp_path / "none.toml") in err
