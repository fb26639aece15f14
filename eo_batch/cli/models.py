"""Command group `models`: the segmenters that can answer prompts."""

from __future__ import annotations

import typer

from eo_batch.cli.report import Json, command, epilog, print_json, print_table


def register(app: typer.Typer) -> None:
    """Add the command group of this module to `app`."""
    group = typer.Typer(help="Segmenters: what answers the prompts.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(_group)
    group.command("list", epilog=epilog("eo-batch models list"))(list_models)
    app.add_typer(group, name="models")


def _group() -> None:
    """Segmenters: what answers the prompts."""


@command
def list_models(json: Json = False) -> None:
    """Segmenters for `[model] name`: what they know, their licence, and how to get those that are missing."""
    from eo_batch.models.registry import list_segmenters

    entries = list_segmenters()
    if json:
        fields = ("name", "summary", "licence", "origin", "is_available", "advice")
        print_json({"models": [{field: getattr(entry, field) for field in fields} for entry in entries]})
        return
    rows = [(entry.name, "ready" if entry.is_available else entry.advice, entry.licence, entry.summary) for entry in entries]
    print_table(rows, header=("name", "state", "licence", "what it knows"))
