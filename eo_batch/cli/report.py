"""What every command shares: safe text, tables, JSON lines, one clear line per error, exit statuses.

Results go to stdout, everything else (logs, progress, errors) to stderr. Text from catalogs, files and prompts is
hostile: control characters never reach the terminal.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from eo_batch.core.errors import EXIT_STATUS, ConfigError, EoBatchError

EXIT_STATUSES = "Exit status: " + ", ".join(f"{status} {meaning}" for status, meaning in EXIT_STATUS.items()) + "."
INTERRUPTED = 130
NARROWEST = 24
"""Characters that the last column of a table needs for words to be wrapped in it."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on stdout.")]
RunFolder = Annotated[str, typer.Argument(metavar="RUN", help="A run: its folder, or s3://BUCKET/PREFIX.")]
DropInner = Annotated[
    bool | None,
    typer.Option(
        "--drop-inner/--keep-inner",
        help="Boxes inside a larger box of their prompt are left out, or stay. Default: as --rules say.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def plain(text: object) -> str:
    r"""`text` on one line, control, format and unprintable characters as `\x1b`, `\n`, `\u202e`.

    Terminal escape codes and forged log lines in item ids, prompts or file names stay visible and harmless.
    """
    return "".join(_escape(character) for character in str(text))


def _escape(character: str) -> str:
    if character.isprintable() or character == "\u200d":  # the joiner inside emoji and some scripts
        return character
    return character.encode("unicode_escape").decode("ascii")


def epilog(*examples: str) -> str:
    """End of a help text: examples, one on a line, and the exit statuses."""
    return "\b\nExamples:\n" + "\n".join(f"  {example}" for example in examples) + "\n\n" + EXIT_STATUSES


def say(text: str) -> None:
    """One line for people, on stderr."""
    print(plain(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout; never NaN, never a raw control character."""
    print(json.dumps(value, ensure_ascii=True, allow_nan=False, default=str), flush=True)


def print_table(rows: Iterable[tuple[object, ...]], *, header: tuple[str, ...] = (), title: str = "") -> None:
    """Rows as aligned columns on stdout, readable without colour; numbers to the right.

    On a terminal that is too narrow the last column is continued below itself.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    if title:
        print(plain(title))
    if not cells:
        return
    every = [list(header), *cells] if header else cells
    widths = [max(len(row[column]) for row in every if column < len(row)) for column in range(max(map(len, every)))]
    right = [all(_is_number(row[column]) for row in cells if column < len(row)) for column in range(len(widths))]

    begin = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = shutil.get_terminal_size().columns - begin if sys.stdout.isatty() else 0

    def line(row: list[str]) -> str:
        text = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=False)).rstrip()
        if room < NARROWEST or len(text) <= begin + room or row[-1].startswith("eo-batch "):  # a command is to be copied
            return text
        pieces = textwrap.wrap(text[begin:], room, break_long_words=False, break_on_hyphens=False)
        return text[:begin] + ("\n" + " " * begin).join(pieces)

    if header:
        print(line(list(header)))
        print("  ".join("-" * width for width in widths))
    for row in cells:
        print(line(row))


def _is_number(cell: str) -> bool:
    return cell == "-" or re.fullmatch(r"-?[0-9][0-9,]*(\.[0-9]+)?( %)?", cell) is not None


def _anew(**arguments: Any) -> str:
    return "the same command begins anew"


def command(function: Callable[..., Any], *, after_ctrl_c: Callable[..., str] = _anew) -> Callable[..., None]:
    """A command whose errors become one line on stderr and a documented exit status.

    Adds the option `--traceback` to the command. A returned int is the exit status.

    Parameters
    ----------
    after_ctrl_c : given the arguments of the command; says what is kept and how to go on.
    """
    option = inspect.Parameter(
        "show_traceback",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, typer.Option("--traceback", help="Print the full trace of an unexpected error.")],
    )

    @functools.wraps(function)
    def guarded(*, show_traceback: bool = False, **kwargs: Any) -> None:
        try:
            status = function(**kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            say(f"interrupted: {after_ctrl_c(**kwargs)}")
            status = INTERRUPTED
        except BrokenPipeError:
            # The reader of our stdout (head, less) has gone. Nothing is wrong, and the interpreter must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 0
        except EoBatchError as error:
            status = report_error(error, as_json=bool(kwargs.get("json")))
        except Exception as error:
            status = report_bug(error, show_traceback=show_traceback)
        if status:
            raise typer.Exit(int(status))

    signature = inspect.signature(function, eval_str=True)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()]
    guarded.__signature__ = signature.replace(parameters=[*parameters, option])  # type: ignore[attr-defined]
    guarded.__annotations__ = {p.name: p.annotation for p in [*parameters, option]}
    del guarded.__wrapped__  # type: ignore[attr-defined]
    return guarded


def has_begun(run: str | None) -> bool:
    """The request is the first file of a run, and enough to resume it."""
    from eo_batch.outputs.store import Store

    try:
        return run is not None and Store(run).exists("request.json")
    except EoBatchError:
        return False


def check_on_disk(out: Path) -> None:
    """Refuse a bucket where files of a folder are written.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    if out.parts[:1] == ("s3:",):
        fix = "Give a folder; runs and exports can be in a bucket."
        raise ConfigError("config-invalid", "this command writes to a folder, not to a bucket", where="--out", fix=fix)


def report_error(error: EoBatchError, *, as_json: bool = False) -> int:
    """Say an expected error on stderr in one line (and as one object on stdout); returns its exit status."""
    say(str(error))
    if as_json:
        fields = {"code": error.code, "what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        print_json({"event": "error", "exit_status": error.exit_status, **fields})
    return error.exit_status


def report_bug(error: BaseException, *, show_traceback: bool = False) -> int:
    """Say an unexpected error in one line, keep the full (redacted) trace in a private file; returns exit status 1."""
    from eo_batch.core.hrefs import redact

    trace = redact("".join(traceback.format_exception(error)))
    if show_traceback:
        print(trace, file=sys.stderr)
    handle, name = tempfile.mkstemp(prefix="eo-batch-trace-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(trace)
    first = redact(str(error)).splitlines()[:1]
    say(f"unexpected {type(error).__name__}: {' '.join(first)[:300]}. This is a bug of eo-batch; the full trace is in `{name}`.")
    return 1


def let_any_text_through() -> None:
    """Characters the terminal cannot show become escapes instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
