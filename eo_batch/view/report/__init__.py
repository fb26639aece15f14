"""One page that tells a run to somebody who was not there: self-contained HTML, without scripts, for light and dark screens.

What it tells is gathered in `run/told/report.py`; here it is drawn. The page loads nothing from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape

from eo_batch.core.records import ChunkFailure
from eo_batch.outputs.store import Store
from eo_batch.run.cost.compare import HEADER
from eo_batch.run.cost.memory import gb
from eo_batch.run.told.pace import duration_text, worker_text
from eo_batch.run.told.report import RunFacts
from eo_batch.view.report.maps import map_section
from eo_batch.view.report.page import COLOURS, document, paragraph, safe, section, table
from eo_batch.view.report.result import result_section
from eo_batch.view.report.timeline import timeline_section

LISTED = 12
"""Rows of a table of chunks or items; more are counted."""


@dataclass(frozen=True, repr=False)
class Page:
    """The page of a run; in a notebook it shows itself in a frame of its own, where it can run and load nothing."""

    html: str

    def _repr_html_(self) -> str:
        look = "width:100%;height:640px;border:0"
        return f'<iframe sandbox="" title="report" style="{look}" srcdoc="{escape(self.html)}"></iframe>'


def report_html(store: Store, facts: RunFacts) -> str:
    """The report of a run.

    Parameters
    ----------
    store : of the run, for a picture of its masks.
    """
    name = facts.request.spec.name
    body = [
        f"<h1>{safe(name)}</h1>",
        f'<p class="lead">Report of an eo-batch run in {safe(facts.status.path)}, made {facts.made:%Y-%m-%d %H:%M} UTC</p>',
        _state(facts),
        _side_by_side(result_section(store, facts), map_section(facts), fits=len(facts.states) <= 2),
        _failures(facts),
        timeline_section(facts),
        _compared(facts),
        _seams(facts),
        _slowest(facts),
        _sittings(facts),
        section("What was asked", table(facts.header())),
        _folders(facts),
        "<footer>Written by eo-batch. This page loads nothing from elsewhere.</footer>",
    ]
    return document(f"{name}: report", "".join(body))


def _side_by_side(left: str, right: str, *, fits: bool) -> str:
    return f'<div class="pair">{left}{right}</div>' if fits and left and right else left + right


def _state(facts: RunFacts) -> str:
    """Figures at the top, and how to go on."""
    counts, status = facts.counts, facts.status
    total = max(1, sum(counts.values()))
    took = next((row.measured for row in facts.compared if row.label == "computing"), None)
    km2 = sum(row.inside_px for row in facts.chunks) * facts.pixel_km2
    tiles = [
        (status.state, "state"),
        (f"{status.finished:,} of {status.total:,}", "chunks finished"),
        (f"{len(status.failures):,}", "chunks failed"),
        (f"{km2:,.0f}" if km2 >= 100 else f"{km2:.3g}", "km2 mapped, all time steps"),
    ]
    if took:
        tiles.append((duration_text(took), "of computing"))
        tiles.append((f"{3600 * km2 / took:,.0f}", "km2 an hour"))
    shown = "".join(f"<li><b>{safe(value)}</b><span>{safe(label)}</span></li>" for value, label in tiles)
    parts = "".join(
        f'<span style="width:{100 * counts[name] / total:.3f}%;background:{COLOURS[name]}"></span>'
        for name in ("done", "no observation", "failed")
    )
    alt = safe(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    bar = f'<div class="bar" role="img" aria-label="{alt}">{parts}</div>'
    return f'<ul class="tiles">{shown}</ul>{bar}{_next(facts)}'


def _next(facts: RunFacts) -> str:
    status = facts.status
    if status.state == "complete" and not status.failures:
        return paragraph("The run is complete: every chunk is finished or has no observation.", kind="good")
    if status.state == "running":
        left = status.seconds_left
        return paragraph("A driver works on it" + (f": about {duration_text(left)} left." if left else "."))
    text = "The map is published, but chunks failed." if status.state == "complete" else "The run is not finished."
    command = f"<p>Go on with <code>eo-batch resume {safe(status.path)}</code>: what is finished is kept.</p>"
    return paragraph(text, kind="bad") + command


def _failures(facts: RunFacts) -> str:
    status = facts.status
    if not (status.failures or facts.damaged or facts.skipped or facts.warnings):
        return ""
    parts = []
    if status.failures:
        parts.append(table(status.failed_by_code.items(), header=("error", "chunks")))
        parts.append(table(_alike(status.failures), header=("error", "why", "chunks"), caption="failed chunks"))
    if status.failing_items:
        items = [(item, f"{count:,}") for item, count in list(status.failing_items.items())[:LISTED]]
        parts.append(table(items, header=("item", "failed chunks"), caption=_cut("items that fail", len(status.failing_items))))
    if facts.skipped:
        items = [(item, f"{count:,}") for item, count in list(facts.skipped.items())[:LISTED]]
        caption = _cut("items left out because a file of theirs is not there", len(facts.skipped))
        parts.append(table(items, header=("item", "chunks without it"), caption=caption))
    if facts.damaged:
        text = f"{len(facts.damaged):,} receipts cannot be read: see eo-batch verify, mend with eo-batch resume --repair."
        parts.append(paragraph(text, kind="bad"))
    if facts.warnings:
        said = [(f"{count:,} x", text) for text, count in facts.warnings.items()]
        parts.append(table(said[:LISTED], caption=_cut("warnings while it ran", len(said))))
    return section("What went wrong", *parts)


def _alike(failures: Sequence[ChunkFailure]) -> list[tuple[str, str, str]]:
    """Failures with one text in one row, the most frequent first."""
    keys: dict[tuple[str, str], list[str]] = {}
    for failure in failures:
        keys.setdefault((failure.code, failure.text.removeprefix(f"{failure.code}: ")), []).append(failure.key)
    ordered = sorted(keys.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    rows = [(code, why, f"{found[0]}" + (f" and {len(found) - 1:,} more" if found[1:] else "")) for (code, why), found in ordered]
    rest = sum(len(found) for _, found in ordered[LISTED:])
    return [*rows[:LISTED], *([("others", "", f"{rest:,}")] if rest else [])]


def _compared(facts: RunFacts) -> str:
    rows = [row.as_row() for row in facts.compared if row.planned is not None or row.measured is not None]
    has_pilot = any(row.piloted is not None for row in facts.compared)
    header = HEADER if has_pilot else (HEADER[0], HEADER[1], HEADER[3])
    shown: list[tuple[str, ...]] = [row if has_pilot else (row[0], row[1], row[3]) for row in rows]
    peak = max((row.peak_memory for row in facts.chunks), default=0)
    if peak:
        shown.append(("most memory of a worker process", *["-"] * (len(header) - 2), gb(peak)))
    notes = []
    if all(row.planned is None for row in facts.compared):
        notes.append(paragraph("No plan was kept with this run.", kind="note"))
    if facts.status.state != "complete":
        notes.append(paragraph("Measured figures are those of the chunks that are finished.", kind="note"))
    stages = facts.stage_seconds
    total = sum(stages.values())
    parts = [f"{stage} {100 * seconds / total:.0f} %" for stage, seconds in stages.items() if total]
    if parts:
        notes.append(paragraph(f"Time of chunks by stage: {', '.join(parts)}.", kind="note"))
    return section("Planned and measured", table(shown, header=header), *notes)


def _seams(facts: RunFacts) -> str:
    if not facts.seams:
        return section("Seams", paragraph("No two finished chunks lie side by side yet: nothing to compare.", kind="note"))
    verdicts = [figures.verdict for figures in facts.seams]
    if "seen" in verdicts:
        which = ", ".join(f'"{figures.prompt}"' for figures in facts.seams if figures.verdict == "seen")
        said = paragraph(
            f"Seams are seen in {which}: across borders of chunks the map changes more than it does near them.", kind="bad"
        )
    elif "none" in verdicts:
        said = paragraph("No seam is seen: across borders of chunks the map changes no more than it does near them.", kind="good")
    else:
        said = paragraph("Too little changes near borders of chunks to tell.", kind="note")
    has_scores = any(figures.score_across is not None for figures in facts.seams)
    header = ["prompt", "mask changes across borders", "beside them", "deviations"]
    header += ["score step across", "beside"] if has_scores else []
    words = {"none": "no seam", "seen": "seam", "unknown": "too little to tell"}
    rows = []
    for one in facts.seams:
        row = [one.prompt, f"{100 * one.across:.3f} %", f"{100 * one.beside:.3f} %", f"{one.deviations:+.1f}"]
        row += [f"{one.score_across or 0:.5f}", f"{one.score_beside or 0:.5f}"] if has_scores else []
        rows.append([*row, words[one.verdict]])
    note = (
        f"Pairs of neighbouring pixels across {facts.seams[0].borders:,} borders of chunks, and across parallel lines near them "
        "with the same place among the model's windows; deviations are those of these lines."
    )
    return section("Seams", said, table(rows, header=(*header, "verdict")), paragraph(note, kind="note"))


def _slowest(facts: RunFacts) -> str:
    rows = []
    for row in facts.slowest[:LISTED]:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in row.stages.items() if seconds >= 0.05)
        host, _, worker = row.work.worker.partition(" ")
        rows.append((row.work.key, f"{row.work.seconds:.1f} s", stages, f"{host} {worker_text(worker)}".strip()))
    return section("Slowest chunks", table(rows, header=("chunk", "took", "of which", "worker"))) if rows else ""


def _sittings(facts: RunFacts) -> str:
    if not facts.sittings:
        return ""
    works_on = facts.status.driver["epoch"] if facts.status.driver and facts.status.state == "running" else 0
    words = {"published": "published the map", "ended": "ended with chunks left"}
    rows = [
        (
            f"{one.epoch}",
            f"{one.host}, pid {one.pid}",
            _minute(one.began),
            duration_text(one.ended - one.began),
            "is at work" if one.epoch == works_on else words.get(one.how, one.how),
        )
        for one in facts.sittings[-LISTED:]
    ]
    caption = _cut("drivers that worked on the run", len(facts.sittings))
    return section("Drivers", table(rows, header=("epoch", "who", "from (UTC)", "for", "how it ended"), caption=caption))


def _minute(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"


def _folders(facts: RunFacts) -> str:
    rows = [(one.name, f"{one.files:,}", ("" if one.is_exact else "about ") + gb(one.size)) for one in facts.folders]
    total = sum(one.size for one in facts.folders)
    return section(
        "Storage",
        table([*rows, ("all", f"{sum(one.files for one in facts.folders):,}", gb(total))], header=("", "files", "size")),
    )


def _cut(what: str, count: int) -> str:
    return f"{what}, the first {LISTED} of {count:,}" if count > LISTED else what
