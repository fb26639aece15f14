"""Writes the reference pages that are made from the code: `make docs`. A test fails where a page and the code disagree."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.cli.report import EXIT_STATUSES
from eo_batch.core.clusters import BatchSpec, ClusterSpec, KubernetesSpec, TlsSpec
from eo_batch.core.errors import CODES, EXIT_STATUS
from eo_batch.core.spec import AssetRef, CatalogSpec, CloudMaskSpec, CollectionSpec, PipelineSpec

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/generate.py: change the code, then run `make docs`. -->\n"
COMMANDS = (
    (),
    ("search",),
    ("plan",),
    ("run",),
    ("resume",),
    ("add-prompts",),
    ("rethreshold",),
    ("status",),
    ("verify",),
    ("export",),
    ("products",),
    ("segment",),
    ("doctor",),
    ("demo",),
    ("models", "list"),
    ("models", "show"),
    ("models", "fetch"),
    ("models", "convert"),
    ("pipelines", "list"),
    ("pipelines", "show"),
    ("clusters", "list"),
    ("clusters", "show"),
    ("worker-check",),
)


def pages() -> dict[str, str]:
    """File name in docs/reference -> its text."""
    return {
        "pipeline.md": pipeline_page(),
        "catalog-files.md": catalog_page(),
        "clusters.md": cluster_page(),
        "cli.md": cli_page(),
        "errors.md": errors_page(),
    }


def pipeline_page() -> str:
    """Every key of a pipeline file."""
    parts = [
        "# Pipeline files\n",
        MADE,
        "A pipeline is one TOML file: a map product. Data, never code: no interpolation, no includes. An unknown key is an error",
        "with a suggestion. `[limits]`, `[cache]` and `[cluster]` never change a result, and neither does `grid.chunk_px`.",
        "Start from one of `eo-batch pipelines list`.\n",
        "## The top of the file\n",
        _table({"name": PipelineSpec.model_fields["name"]}),
    ]
    for name, field in PipelineSpec.model_fields.items():
        if name == "name":
            continue
        inner = _models_in(field.annotation)[0]
        parts += [f"## {(inner.__doc__ or '').splitlines()[0]}\n", _table(inner.model_fields)]
        if name == "source":
            parts += ["An entry of `assets` is an asset key, or a table:\n", _table(AssetRef.model_fields)]
    return "\n".join(parts)


def catalog_page() -> str:
    """Every key of a catalog file."""
    return "\n".join(
        [
            "# Catalog files\n",
            MADE,
            "A catalog file tells how to ask one STAC endpoint and what its items leave unsaid. It is also the network",
            "allow-list of a run: nothing is read from a host that it does not name.",
            "How catalogs are found: [catalogs](catalogs.md).\n",
            "## The top of the file\n",
            _table({k: v for k, v in CatalogSpec.model_fields.items() if k != "collections"}),
            f"## {(CollectionSpec.__doc__ or '').splitlines()[0]}\n",
            _table(CollectionSpec.model_fields),
            "## `[collections.ID.cloud_mask]`: which asset tells clouds\n",
            _table(CloudMaskSpec.model_fields),
        ]
    )


def cluster_page() -> str:
    """Every key of a cluster file."""
    parts = [
        "# Cluster files\n",
        MADE,
        "A cluster file says who computes; it never changes a result. `--cluster` takes its path, or its name: it is looked",
        "for in clusters/ beside the pipeline and in the working directory, then among those that come with eo-batch",
        "(`eo-batch clusters list`). A pipeline may have a `[cluster]` too, but nothing in it may start code elsewhere: no",
        "address, no image, no `setup`, no `directives`. Which one to take: [clusters](../guides/clusters.md).\n",
    ]
    for model in (ClusterSpec, BatchSpec, KubernetesSpec, TlsSpec):
        parts += [f"## {(model.__doc__ or '').splitlines()[0].rstrip('.')}\n", _table(model.model_fields)]
    return "\n".join(parts)


def cli_page() -> str:
    """The help text of every command."""
    parts = ["# Command line\n", MADE]
    for command in COMMANDS:
        answer = CliRunner().invoke(app, [*command, "--help"], prog_name="eo-batch", terminal_width=100)
        if answer.exit_code != 0:
            raise RuntimeError(f"eo-batch {' '.join(command)} --help ended with {answer.exit_code}")
        text = answer.output.partition("  Exit status:")[0].rstrip()
        parts.append(f"## `{' '.join(('eo-batch', *command))}`\n\n```text\n{text}\n```\n")
    rows = "\n".join(f"| {status} | {meaning} |" for status, meaning in EXIT_STATUS.items())
    parts.append(f"## Exit statuses\n\n| status | meaning |\n|---|---|\n{rows}\n")
    assert EXIT_STATUSES.startswith("Exit status:")
    return "\n".join(parts)


def errors_page() -> str:
    """Every error code and the exit status it leads to."""
    parts = [
        "# Errors\n",
        MADE,
        "An error is one line on stderr: `code: where: what: why. What to do.` With `--json` it is also one object on",
        "stdout with these parts as fields. Codes are only ever added. No text holds a query string, a token or a header.\n",
        "| code | kind | exit status |\n|---|---|---|",
    ]
    parts += [f"| `{code}` | {kind.__name__}: {_sentence(kind)} | {kind.codes[code]} |" for code, kind in CODES.items()]
    rows = "\n".join(f"| {status} | {meaning} |" for status, meaning in EXIT_STATUS.items())
    return "\n".join(parts) + f"\n\n## Exit statuses\n\n| status | meaning |\n|---|---|\n{rows}\n"


def _sentence(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0].rstrip(".")


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        rows.append(f"| `{name}` | {_kind(field)} | {default} | {_escape(field.description or '')} |")
    return "\n".join(rows) + "\n"


def _value(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _kind(field: FieldInfo) -> str:
    text = _type(field.annotation)
    limits: dict[str, Any] = {}
    for rule in field.metadata:
        for key in ("gt", "ge", "lt", "le", "min_length", "max_length"):
            if getattr(rule, key, None) is not None:
                limits[key] = getattr(rule, key)
    words = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}", "min_length": "at least {}", "max_length": "at most {}"}
    unit = " characters" if text == "text" else ""
    said = [words[key].format(value) + (unit if "length" in key else "") for key, value in limits.items()]
    return _escape(text + (f" ({', '.join(said)})" if said else ""))


def _type(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), [a for a in typing.get_args(kind) if a is not types.NoneType]
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(argument) for argument in arguments))
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is tuple:
        return f"{len(arguments)} numbers"
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(kind) or {"date": "date as text"}.get(getattr(kind, "__name__", ""), "table")


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [model for argument in typing.get_args(kind) for model in _models_in(argument)]


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
