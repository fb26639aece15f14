"""The house as a machine sees it: who imports whom, and what the doors cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eo_batch.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "eo_batch"
HEAVY = {
    "torch",
    "rasterio",
    "dask",
    "distributed",
    "zarr",
    "numpy",
    "xarray",
    "geopandas",
    "pyarrow",
    "shapely",
    "pyproj",
    "numba",
}


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_floors_and_forbidden_imports_hold() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["models", "list", "--help"], ["--version"], ["pipelines", "list"]]
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    call = f"from eo_batch.cli.main import app\ntry:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    assert loaded_by(call) & HEAVY == set()


def test_import_of_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import eo_batch") & (HEAVY | {"typer", "rich"}) == set()


def test_help_of_every_command_teaches() -> None:
    for command in (
        ["search"],
        ["plan"],
        ["run"],
        ["resume"],
        ["status"],
        ["verify"],
        ["export"],
        ["products"],
        ["segment"],
        ["doctor"],
        ["models", "list"],
    ):
        answer = CliRunner().invoke(app, [*command, "--help"])
        assert answer.exit_code == 0
        assert "Examples:" in answer.output
        assert "130 interrupted" in " ".join(answer.output.split())


def test_core_does_no_input_or_output() -> None:
    calls = [
        f"{path.name}:{node.lineno}"
        for path in sorted((PACKAGE / "core").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input")
    ]
    assert calls == []


def test_modules_and_functions_stay_readable() -> None:
    too_long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > 400:
            too_long.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno > 70:
                too_long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno} lines")
    assert too_long == []


def test_no_dangerous_call_is_in_the_package() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                found += [
                    f"{path.name}:{node.lineno} imports {n}"
                    for n in names
                    if n.partition(".")[0] in ("pickle", "marshal", "shelve", "yaml")
                ]
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append(f"{path.name}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "shell" and getattr(node.value, "value", False):
                found.append(f"{path.name} runs a shell")
    assert found == []


def test_no_error_is_swallowed_whole() -> None:
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))
        and all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    assert silent == []
