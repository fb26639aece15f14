"""The command `eo-batch`: which commands there are. What each does is in the module of its group.

Nothing heavy is imported here or at the top of the other modules of this room, so `eo-batch --help` is instant.
"""

from __future__ import annotations

from typing import Annotated

import typer

from eo_batch.cli import clusters, demo, doctor, jobs, models, pipelines, products, prompts, results, rethreshold, segment
from eo_batch.cli.report import epilog, let_any_text_through
from eo_batch.version import __version__

app = typer.Typer(
    name="eo-batch",
    help="Region in, map out: satellite scenes, text prompts, one seamless map of masks and footprints.",
    epilog=epilog("eo-batch demo", "eo-batch pipelines show surface-water > my.toml", "eo-batch run my.toml --out my-run"),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"eo-batch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of every command."""


for group in (jobs, prompts, rethreshold, results, products, segment, pipelines, clusters, models, doctor, demo):
    group.register(app)


def entry() -> None:
    """Entry point of the console script."""
    let_any_text_through()
    app()


if __name__ == "__main__":
    entry()
