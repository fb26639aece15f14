"""Small pieces of the report: text that is safe in HTML, tables, and the style sheet. No scripts, nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources

CUT = 600
"""Longer texts end here: errors may quote files of any size."""

COLOURS = {"done": "#0072b2", "no observation": "#b9c2cc", "failed": "#d55e00", "to do": "#ffffff"}
"""States of chunks: told apart by people who see no red or green, and by their lightness."""
STAGES = {"read": "#56b4e9", "score": "#d98200", "other": "#8c6bb1"}
"""What a chunk's time goes to."""


def safe(text: object) -> str:
    """`text` as it may stand between tags and in attributes; control characters become visible escapes."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
    return html.escape(shown if len(shown) <= CUT else shown[:CUT] + " ...")


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), caption: str = "") -> str:
    """Rows as a table; the first cell of a row is its heading. Numbers and names are not broken into lines."""
    lines = [f"<caption>{safe(caption)}</caption>"] if caption else []
    if header:
        lines.append("<thead><tr>" + "".join(f'<th scope="col">{safe(name)}</th>' for name in header) + "</tr></thead>")
    lines.append("<tbody>")
    for first, *rest in rows:
        cells = "".join(f"<td{_class_of(cell)}>{safe(cell)}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{safe(first)}</th>{cells}</tr>')
    return f'<div class="scroll"><table>{"".join(lines)}</tbody></table></div>'


def _class_of(cell: object) -> str:
    text = str(cell)
    return ' class="n"' if len(text) < 30 and (text[:1].isdigit() or " " not in text) else ""


def section(title: str, *parts: str) -> str:
    """A part of the page under its heading."""
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{safe(title)}</h2>{"".join(parts)}</section>'


def paragraph(text: str, *, kind: str = "") -> str:
    """A sentence; `kind` is a class of the style sheet: "note", "good", "bad"."""
    return f'<p class="{kind}">{safe(text)}</p>' if kind else f"<p>{safe(text)}</p>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """(name, colour) of what a picture shows."""
    items = "".join(f'<li><span class="key" style="background:{colour}"></span>{safe(name)}</li>' for name, colour in entries)
    return f'<ul class="legend">{items}</ul>'


def document(title: str, body: str) -> str:
    """The whole page. Its policy forbids scripts and every address."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{safe(title)}</title><style>{_style()}</style></head><body><main>{body}</main></body></html>\n"
    )


def _style() -> str:
    return resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
