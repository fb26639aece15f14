"""What is handed out: the wheel, the environments, the pages and the pipelines agree with the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from fetched import as_fetched, free_line
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tinyclipseg import make_tiny as make_tiny_clipseg
from tinyfinders import MAKERS
from tinyref import make_tiny as make_tiny_rsrefseg
from tinysam import make_tiny

from eo_batch.core.spec import parse_catalog, parse_pipeline
from eo_batch.models.registry import load_segmenter
from eo_batch.models.weights import published

ROOT = Path(__file__).resolve().parents[1]
PIPELINES = sorted((ROOT / "pipelines").glob("*.toml"))
CLUSTERS = sorted((ROOT / "clusters").glob("*.toml"))
CATALOGS = sorted((ROOT / "catalogs").glob("*.toml"))
NETWORKS = {"clipseg": make_tiny_clipseg, **MAKERS}
"""Networks that are fetched as folders, and what writes small ones."""
CONDA_NAMES = {"torch": "pytorch"}
REQUIRED = {"dask", "xarray", "rioxarray", "rasterio", "torch", "geopandas", "zarr", "stackstac", "pystac-client"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(project()["dependencies"])
    for extra in extras:
        lines += project()["optional-dependencies"][extra]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in found if r.name != "eo-batch"}


def environment() -> tuple[dict[str, str], list[str]]:
    """(conda name -> bounds, pip lines) of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = dict((entry + " ").split(" ", 1) for entry in entries if isinstance(entry, str))
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    return {name: bounds.strip() for name, bounds in conda.items()}, pip


def test_environment_yml_holds_the_bounds_of_pyproject() -> None:
    conda, pip = environment()
    wanted = requirements("models", "cluster", "kubernetes", "view")
    from_pip = {canonicalize_name(Requirement(line).name): line for line in pip if not line.startswith("-e")}
    for name, requirement in wanted.items():
        if name in from_pip:
            assert Requirement(from_pip[name]).specifier == requirement.specifier, name
        else:
            spelled = {canonicalize_name(key): key for key in conda}[CONDA_NAMES.get(name, name)]
            assert Requirement(f"x{conda[spelled]}").specifier == requirement.specifier, name
    backwards = {conda_name: name for name, conda_name in CONDA_NAMES.items()}
    extra = {backwards.get(canonicalize_name(key), canonicalize_name(key)) for key in conda} - set(wanted) - {"python", "pip"}
    assert extra == set()
    assert f"x{conda['python']}" == f"x{project()['requires-python']}"
    assert "-e .[dev]" in pip


def test_the_required_packages_are_in_both() -> None:
    conda, _ = environment()
    assert set(requirements("models")) >= REQUIRED
    assert {canonicalize_name(name) for name in conda} >= {CONDA_NAMES.get(name, name) for name in REQUIRED}


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines), "only plain name==version lines"
    return dict(line.split("==") for line in lines)


def test_constraints_pin_every_direct_dependency_inside_its_bounds() -> None:
    pins = constraints()
    for name, requirement in requirements("models", "cluster", "view", "dev").items():
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"


def test_this_environment_is_the_constrained_set() -> None:
    from importlib.metadata import distributions

    pins = constraints()
    here = {canonicalize_name(d.metadata["Name"]): d.version.partition("+")[0] for d in distributions()}
    tools = {"setuptools", "pip", "wheel"}
    assert {name: (here[name], pins[name]) for name in here.keys() & pins.keys() - tools if here[name] != pins[name]} == {}


def test_no_file_names_a_registry_or_a_foreign_path() -> None:
    words = ("py" + "pi.org", "file" + "s.pythonhosted", "find" + "-links", "--index" + "-url", "/wo" + "rk/", "/ro" + "ot/")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for word in words
        if word in path.read_text(errors="ignore")
    ]
    assert found == []


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".ipynb", ".parquet", ".tif")]


def test_every_public_function_and_class_has_a_docstring() -> None:
    missing = []
    for path in sorted((ROOT / "eo_batch").rglob("*.py")):
        tree = ast.parse(path.read_text())
        if tree.body and not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
        for owner in owners:
            for node in owner.body:
                if (
                    isinstance(node, ast.FunctionDef | ast.ClassDef)
                    and not node.name.startswith("_")
                    and not ast.get_docstring(node)
                ):
                    missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert missing == []


def test_there_are_at_least_six_pipelines_and_the_three_catalogs() -> None:
    assert len(PIPELINES) >= 6
    assert {path.stem for path in CATALOGS} >= {"earth-search", "planetary-computer", "local"}


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds small networks where fetched weights would be."""
    folder = tmp_path_factory.mktemp("weights")
    make_tiny(folder / "remotesam", name="remotesam")
    make_tiny_rsrefseg(folder / "rsrefseg", name="rsrefseg")
    for name, make in NETWORKS.items():
        as_fetched(folder, name, make)
    return folder


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_pipeline_is_valid_and_its_prompts_are_served(path: Path, small_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(small_weights))
    monkeypatch.setattr(published, "FOLDERS", tuple(free_line(name) for name in NETWORKS))
    spec = parse_pipeline(path.read_bytes(), where=path.name)
    assert path.read_text().startswith("# "), "the first line says what it maps"
    segmenter = load_segmenter(spec.model, spec.source.bands)
    segmenter.encode_prompts(spec.prompt_set)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_pipeline_names_a_catalog_that_is_there(path: Path) -> None:
    spec = parse_pipeline(path.read_bytes(), where=path.name)
    if "/" not in spec.source.catalog:
        assert spec.source.catalog in {catalog.stem for catalog in CATALOGS}


@pytest.mark.parametrize("path", CATALOGS, ids=lambda path: path.stem)
def test_catalog_is_valid(path: Path) -> None:
    parse_catalog(path.read_bytes(), where=path.name)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_pages_are_what_the_code_says() -> None:
    stale = [n for n, text in generator().pages().items() if (ROOT / "docs" / "reference" / n).read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_key_of_a_pipeline_and_a_catalog_is_explained() -> None:
    pages = generator().pages()
    unexplained = [
        line for name in ("pipeline.md", "catalog-files.md") for line in pages[name].splitlines() if line.endswith("|  |")
    ]
    assert unexplained == []


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built without a network."""
    pytest.importorskip("hatchling", reason="building the wheel offline needs hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_brings_catalogs_pipelines_clusters_licence_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = [archive.read(name).decode() for name in names if name.endswith("entry_points.txt")]
    assert {f"eo_batch/_catalogs/{path.name}" for path in CATALOGS} <= names
    assert {f"eo_batch/_pipelines/{path.name}" for path in PIPELINES} <= names
    assert {f"eo_batch/_clusters/{path.name}" for path in CLUSTERS} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "eo-batch = eo_batch.cli.main:entry" in points
    code = {name for name in names if name.endswith(".py")}
    assert code == {str(path.relative_to(ROOT)) for path in (ROOT / "eo_batch").rglob("*.py")}


def test_unpacked_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for arguments in (["--version"], ["pipelines", "show", "surface-water"], ["models", "list"], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-m", "eo_batch.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
    assert "catalog earth-search" in done.stdout


MODULES = {
    "PIL": "pillow",
    "odc": "odc-geo",
    "huggingface_hub": "huggingface-hub",
}
BROUGHT_ALONG = {"affine": "rasterio", "pandas": "geopandas", "urllib3": "requests"}


def test_everything_that_is_imported_is_a_declared_dependency() -> None:
    core, models = set(requirements()), set(requirements("models")) | {"psutil"}
    optional = {"batch.py": {"dask-jobqueue"}, "kubernetes.py": {"dask-kubernetes"}}
    assert set().union(*optional.values()) <= set(requirements("cluster", "kubernetes"))
    undeclared = []
    for path in sorted((ROOT / "eo_batch").rglob("*.py")):
        allowed = models if path.parent.name == "models" or "models" in path.parts else core | optional.get(path.name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.partition(".")[0] for name in names} - {"eo_batch", ""} - set(sys.stdlib_module_names):
                distribution = canonicalize_name(MODULES.get(top, BROUGHT_ALONG.get(top, top)))
                if distribution not in allowed:
                    undeclared.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {top}")
    assert undeclared == []


def test_the_version_is_stated_once_and_the_same() -> None:
    import tomllib

    import eo_batch

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == eo_batch.__version__
