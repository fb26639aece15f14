"""Command `doctor`: is this machine fit, what is installed, and which hosts would be contacted. Contacts none of them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer

from eo_batch.cli.pipelines import PACKAGE
from eo_batch.cli.report import Json, command, epilog, print_json, print_table
from eo_batch.version import __version__

SHOWN = (
    "numpy",
    "rasterio",
    "pyproj",
    "zarr",
    "xarray",
    "dask",
    "distributed",
    "stackstac",
    "pystac-client",
    "geopandas",
    "pyarrow",
)
MODELS = ("torch", "transformers", "safetensors", "huggingface_hub")
LEAST_FILES = 1024
LEAST_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `warn` (works, with a limit) or `fail` (runs will not work), and what to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("doctor", epilog=epilog("eo-batch doctor --json"))(doctor)


@command
def doctor(json: Json = False) -> int:
    """Check this machine.

    Versions, projection data, limits, disk, memory, and the hosts that catalogs name. Contacts no other machine.
    """
    findings = examine()
    healthy = all(finding.state != "fail" for finding in findings)
    if json:
        print_json({"healthy": healthy, "findings": [vars(finding) for finding in findings]})
    else:
        print_table([(f.state, f.name, f.text + (f". {f.advice}" if f.advice else "")) for f in findings])
    return 0 if healthy else 7


def examine() -> list[Finding]:
    """All findings, in the order of the report. A check that cannot run is a finding, not an error."""
    checks: tuple[Callable[[], list[Finding]], ...] = (_software, _gdal, _proj, _limits, _folders, _machine, _catalogs, _models)
    out: list[Finding] = []
    for check in checks:
        try:
            out += check()
        except (OSError, ImportError, RuntimeError, ValueError) as error:
            out.append(Finding(check.__name__.strip("_"), "fail", f"{type(error).__name__}: {error}", "Install eo-batch again."))
    return out


def _software() -> list[Finding]:
    found = {name: _version(name) for name in SHOWN}
    missing = [name for name, number in found.items() if number is None]
    text = ", ".join(f"{name} {number}" for name, number in found.items() if number is not None)
    python = Finding(
        "eo-batch", "ok", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    if missing:
        return [python, Finding("packages", "fail", f"missing: {', '.join(missing)}", "Run: pip install eo-batch.")]
    return [python, Finding("packages", "ok", text)]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gdal() -> list[Finding]:
    from rasterio import __gdal_version__ as number
    from rasterio.drivers import raster_driver_extensions

    has_tiff = "tif" in raster_driver_extensions()
    return [Finding("GDAL", "ok" if has_tiff else "fail", f"{number}, GeoTIFF {'readable' if has_tiff else 'driver missing'}")]


def _proj() -> list[Finding]:
    import pyproj
    from pyproj.datadir import get_data_dir

    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True).transform(3.0, 0.0)
    right = abs(x - 500000.0) < 1e-3 and abs(y) < 1e-3
    network = "on" if pyproj.network.is_network_enabled() else "off"
    found = [
        Finding("PROJ", "ok" if right else "fail", f"{pyproj.proj_version_str}, data in {get_data_dir()}, network {network}")
    ]
    foreign = [name for name in ("PROJ_LIB", "PROJ_DATA", "GDAL_DATA") if name in os.environ]
    if foreign:
        advice = "If CRS errors occur, unset them: the wheels bring their own data."
        found.append(Finding("PROJ variables", "warn", f"set: {', '.join(foreign)}", advice))
    return found


def _limits() -> list[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= LEAST_FILES or soft == resource.RLIM_INFINITY
    advice = "" if enough else f"Run: ulimit -n {LEAST_FILES}."
    return [Finding("open files", "ok" if enough else "warn", f"{soft} at once (hard limit {hard})", advice)]


def _folders() -> list[Finding]:
    found = []
    for name, folder in (("temporary folder", Path(tempfile.gettempdir())), ("working folder", Path.cwd())):
        free = shutil.disk_usage(folder).free / 1e9
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"\0" * 4096)
            writable = True
        except OSError:
            writable = False
        state: Literal["ok", "warn", "fail"] = "ok" if writable and free >= LEAST_GB else "warn" if writable else "fail"
        if name == "working folder" and not writable:
            state = "warn"
        text = f"{folder}: {'writable' if writable else 'not writable'}, {free:.1f} GB free"
        found.append(Finding(name, state, text, "" if state == "ok" else "Free some space, or work in another folder."))
    return found


def _machine() -> list[Finding]:
    import psutil

    from eo_batch.run.crew import cores_here

    memory = psutil.virtual_memory()
    free = memory.available / 1e9
    state: Literal["ok", "warn"] = "ok" if free >= LEAST_GB else "warn"
    threads = ", ".join(
        f"{k}={os.environ[k]}" for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ
    )
    return [
        Finding("processor", "ok", f"{cores_here()} cores for this process" + (f" ({threads})" if threads else "")),
        Finding(
            "memory", state, f"{free:.1f} of {memory.total / 1e9:.1f} GB free", "" if state == "ok" else "Use fewer workers."
        ),
    ]


def _catalogs() -> list[Finding]:
    from eo_batch.core.errors import EoBatchError
    from eo_batch.core.spec import parse_catalog

    folders = (PACKAGE / "_catalogs", PACKAGE.parent / "catalogs")
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        return [Finding("catalogs", "fail", "no catalog files found", "Install eo-batch again.")]
    found = []
    for path in sorted(folder.glob("*.toml")):
        try:
            catalog = parse_catalog(path.read_bytes(), where=str(path))
        except EoBatchError as error:
            found.append(Finding(f"catalog {path.stem}", "fail", str(error)))
            continue
        hosts = ", ".join(catalog.asset_hosts) or ("files only" if catalog.local else "no host")
        contacts = "contacts nothing" if catalog.local else f"asks {catalog.url}"
        found.append(Finding(f"catalog {path.stem}", "ok", f"{contacts}, reads from: {hosts}, signing: {catalog.signing}"))
    proxies = [
        name for name in ("http_proxy", "https_proxy", "all_proxy") if os.environ.get(name) or os.environ.get(name.upper())
    ]
    text = "only the hosts above, and only during search and run; no telemetry"
    return [*found, Finding("network policy", "ok", text + (f"; through a proxy ({', '.join(proxies)} set)" if proxies else ""))]


def _models() -> list[Finding]:
    found = {name: _version(name) for name in MODELS}
    text = ", ".join(f"{name} {number or 'not installed'}" for name, number in found.items())
    advice = "" if all(found.values()) else 'Only neural models need them: pip install "eo-batch[models]".'
    return [Finding("neural models", "ok", text, advice), _weights(), Finding("GPU", "ok", _gpus())]


def _weights() -> Finding:
    from eo_batch.models.weights import are_present, weights_folder
    from eo_batch.models.weights.published import published_names

    folder = weights_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    held = [name for name in published_names() if are_present(name)]
    text = f"{folder}: {', '.join(held) or 'none'}; {shutil.disk_usage(there).free / 1e9:.1f} GB free"
    return Finding("weights", "ok", text, "" if held else "RemoteSAM needs some: eo-batch models fetch remotesam.")


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none found; the spectral model needs none"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 (fixed arguments)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer ({type(error).__name__})"
    return "; ".join(answer.stdout.strip().splitlines()) or "none found"
