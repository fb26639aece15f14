"""Command group `pipelines`: the map products that come with the package, to start from."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from eo_batch.cli.report import Json, command, epilog, print_json, print_table
from eo_batch.core.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def register(app: typer.Typer) -> None:
    """Add the command group of this module to `app`."""
    group = typer.Typer(help="Map products to start from.", no_args_is_help=True, rich_markup_mode=None)
    group.command("list", epilog=epilog("eo-batch pipelines list"))(list_pipelines)
    group.command("show", epilog=epilog("eo-batch pipelines show surface-water > my.toml"))(show_pipeline)
    app.add_typer(group, name="pipelines")


def packaged_pipelines() -> dict[str, Path]:
    """Name -> file of every pipeline that comes with eo-batch, sorted; from the repository in a development install."""
    folders = (PACKAGE / "_pipelines", PACKAGE.parent / "pipelines")
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def pipeline_path(given: Path) -> Path:
    """`given`, or the packaged pipeline of that name where there is no such file.

    Raises
    ------
    ConfigError : `config-invalid`: neither a file nor a known name.
    """
    if given.exists() or given.suffix == ".toml" or len(given.parts) != 1:
        return given
    known = packaged_pipelines()
    if given.name in known:
        return known[given.name]
    close = difflib.get_close_matches(given.name, known, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    raise ConfigError(
        "config-invalid",
        "neither a pipeline file nor the name of one",
        where=str(given),
        fix=f"{hint}See `eo-batch pipelines list`.",
    )


@command
def list_pipelines(json: Json = False) -> None:
    """Names of the pipelines that come with eo-batch, and what each maps."""
    rows = [(name, _summary(path)) for name, path in packaged_pipelines().items()]
    if json:
        print_json({"pipelines": [{"name": name, "summary": summary} for name, summary in rows]})
    else:
        print_table(rows, header=("name", "what it maps"))


@command
def show_pipeline(name: Annotated[str, typer.Argument(metavar="NAME", help="One of `eo-batch pipelines list`.")]) -> None:
    """Print a pipeline, to save and change."""
    print(pipeline_path(Path(name)).read_text(encoding="utf-8"), end="")


def _summary(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
