"""Who worked when, on what, and how fast it went: one line for each worker, and rates below it on the same clock."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from eo_batch.run.told.pace import worker_text
from eo_batch.run.told.report import ChunkRow, RunFacts
from eo_batch.view.report.clock import LEFT, RIGHT, Clock, clock_of
from eo_batch.view.report.page import STAGES, legend, paragraph, safe, section

BARS = 1500
"""So many chunks are drawn one by one; of more, the shares of time in slices."""
SLICES = 240
RATE_BINS = 60
LANES = 40
"""Lines that are drawn; more workers are counted."""
LANE, GAP = 15.0, 5.0
RATE_HEIGHT = 64.0


def timeline_section(facts: RunFacts) -> str:
    """Timeline of workers and rates; one sentence where receipts do not tell when they were made."""
    timed = [row for row in facts.chunks if row.work.began is not None]
    clock = clock_of([_span(row) for row in timed])
    if clock is None:
        why = "The receipts of this run do not tell when chunks were made." if facts.chunks else "No chunk is finished yet."
        return section("Timeline", paragraph(why, kind="note"))
    keys = legend([("reading", STAGES["read"]), ("segmenting", STAGES["score"]), ("tracing, writing", STAGES["other"])])
    return section("Timeline", keys, _lines(facts, timed, clock), _notes(facts), *_rates(facts, timed, clock))


def _span(row: ChunkRow) -> tuple[float, float]:
    began = row.work.began or 0.0
    return began, began + row.work.seconds


def _lines(facts: RunFacts, timed: Sequence[ChunkRow], clock: Clock) -> str:
    by_worker: dict[str, list[ChunkRow]] = {}
    for row in sorted(timed, key=_span):
        by_worker.setdefault(row.work.worker, []).append(row)
    lanes = [(name, lane) for name, rows in by_worker.items() for lane in _lanes(rows)]
    shown = lanes[:LANES]
    parts, y, lost = [], 22.0, {name: at for at, name in facts.lost}
    height = y + len(shown) * (LANE + GAP)
    for sitting in facts.sittings:
        x = clock.x(sitting.began)
        parts.append(f'<path d="M{x:.1f} 14V{height:.1f}" stroke="var(--line)" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x:.1f}" y="10">driver {sitting.epoch}</text>')
    before = ""
    for name, lane in shown:
        if name != before:
            parts.append(f'<text x="{LEFT - 10}" y="{y + 11:.1f}" text-anchor="end">{safe(_short(name))}</text>')
        parts.append(f'<path d="M{LEFT} {y + LANE:.1f}H{RIGHT}" stroke="var(--grid)"/>')
        parts += _bars(lane, clock, y) if len(timed) <= BARS else _slices(lane, clock, y)
        gone = lost.get(name.rpartition(" ")[2])
        if gone is not None and name != before:
            x = clock.x(gone)
            cross = f'<path d="M{x - 5:.1f} {y + 2:.1f}l10 11m0-11l-10 11" stroke="var(--bad)" stroke-width="2.5"/>'
            parts.append(f"<g><title>worker lost</title>{cross}</g>")
        before, y = name, y + LANE + GAP
    alt = f"{len(by_worker):,} workers and the {len(timed):,} chunks they made, along time"
    more = paragraph(f"{len(lanes) - len(shown):,} more lines are not drawn.", kind="note") if len(lanes) > len(shown) else ""
    axis = clock.axis(y)
    svg = f'<svg viewBox="0 0 {RIGHT + 10:.0f} {y + 22:.0f}" role="img" aria-label="{safe(alt)}">{"".join(parts)}{axis}</svg>'
    return svg + more


def _lanes(rows: Iterable[ChunkRow]) -> list[list[ChunkRow]]:
    """Chunks of a worker in lines in which none overlaps another: one for each that it makes at once."""
    lanes: list[list[ChunkRow]] = []
    for row in sorted(rows, key=_span):
        began, _ = _span(row)
        free = next((lane for lane in lanes if _span(lane[-1])[1] <= began + 0.02), None)
        if free is None:
            lanes.append([row])
        else:
            free.append(row)
    return lanes


def _shares(row: ChunkRow) -> list[tuple[str, float]]:
    read, score = row.stages.get("read", 0.0), row.stages.get("score", 0.0)
    return [("read", read), ("score", score), ("other", max(0.0, row.work.seconds - read - score))]


def _bars(lane: Sequence[ChunkRow], clock: Clock, y: float) -> list[str]:
    parts = []
    for row in lane:
        began, end = _span(row)
        x, right = clock.x(began), clock.x(end)
        title = f"{row.work.key}: {row.work.seconds:.1f} s, " + ", ".join(
            f"{stage} {took:.1f} s" for stage, took in row.stages.items()
        )
        rects: list[tuple[float, float, str]] = []
        for stage, took in _shares(row):
            width = max(0.0, (right - x) * took / max(row.work.seconds, 1e-9))
            rects.append((x + sum(wide for _, wide, _ in rects), width, STAGES[stage]))
        drawn = "".join(
            f'<rect x="{a:.1f}" y="{y:.1f}" width="{max(b - 0.4, 0.3):.1f}" height="{LANE:.0f}" fill="{c}"/>'
            for a, b, c in rects
            if b
        )
        parts.append(f"<g><title>{safe(title)}</title>{drawn}</g>")
    return parts


def _slices(lane: Sequence[ChunkRow], clock: Clock, y: float) -> list[str]:
    """Shares of what was done in each slice of time, stacked; what is blank was idle."""
    bins = clock.bins(SLICES)
    starts = [begin for begin, _ in bins]
    totals = [dict.fromkeys(STAGES, 0.0) for _ in bins]
    for row in lane:
        _spread(row, bins, starts, totals)
    parts = []
    for (begin, end), shares in zip(bins, totals, strict=True):
        x, width, bottom = clock.x(begin), max(clock.x(end) - clock.x(begin), 0.5), y + LANE
        for stage, took in shares.items():
            tall = LANE * min(1.0, took / max(end - begin, 1e-9))
            if tall > 0.2:
                bottom -= tall
                parts.append(
                    f'<rect x="{x:.1f}" y="{bottom:.1f}" width="{width:.1f}" height="{tall:.1f}" fill="{STAGES[stage]}"/>'
                )
    return parts


def _spread(row: ChunkRow, bins: Sequence[tuple[float, float]], starts: Sequence[float], totals: list[dict[str, float]]) -> None:
    at = _span(row)[0]
    for stage, took in _shares(row):
        end = at + took
        position = max(0, bisect_right(starts, at) - 1)
        while position < len(bins) and bins[position][0] < end:
            totals[position][stage] += max(0.0, min(end, bins[position][1]) - max(at, bins[position][0]))
            position += 1
        at = end


def _short(name: str) -> str:
    host, _, worker = name.partition(" ")
    shown = worker_text(worker)
    text = f"{host} {shown}" if shown in ("driver", "") else f"{host} {shown.rpartition(':')[2] or shown}"
    return text if len(text) <= 22 else "..." + text[-20:]


def _notes(facts: RunFacts) -> str:
    lost = len(facts.lost)
    parts = []
    if lost:
        who = "1 worker was lost" if lost == 1 else f"{lost:,} workers were lost"
        parts.append(paragraph(f"{who}; what was not finished was made by others. A cross ends the line of those that made any."))
    if not facts.sittings:
        parts.append(paragraph("There is no journal: sittings and lost workers are not known.", kind="note"))
    return "".join(parts)


def _rates(facts: RunFacts, timed: Sequence[ChunkRow], clock: Clock) -> list[str]:
    """Small charts over the same clock: area, windows, and how busy the devices were."""
    bins = clock.bins(RATE_BINS)
    starts = [begin for begin, _ in bins]
    area = [0.0] * len(bins)
    windows, busy, worked = list(area), list(area), list(area)
    for row in timed:
        began, end = _span(row)
        first = max(0, bisect_right(starts, began) - 1)
        near = enumerate(bins[first : bisect_right(starts, end)], first)
        hits = [(i, min(end, b) - max(began, a)) for i, (a, b) in near if b > began]
        whole = sum(share for _, share in hits) or 1.0
        for i, share in hits:
            area[i] += row.inside_px * facts.pixel_km2 * share / whole
            windows[i] += max(row.work.windows, 0) * share / whole
            busy[i] += row.work.busy_s * share / whole
            worked[i] += share
    lengths = [max(b - a, 1e-9) for a, b in bins]
    at_once = _devices(timed)
    charts = [_chart("area, km2/h", [3600 * value / long for value, long in zip(area, lengths, strict=True)], bins, clock)]
    if any(windows):
        charts.append(_chart("windows a second", [v / long for v, long in zip(windows, lengths, strict=True)], bins, clock))
    if any(busy):
        shares = [min(100.0, 100 * v / long / at_once) for v, long in zip(busy, lengths, strict=True)]
        charts.append(_chart("devices busy, %", shares, bins, clock, top=100.0))
    at_work = [v / long for v, long in zip(worked, lengths, strict=True)]
    charts.append(_chart("chunks at once", at_work, bins, clock))
    return charts


def _devices(timed: Sequence[ChunkRow]) -> int:
    """Devices of all workers: one GPU each, or as many CPU threads as chunks were made at once."""
    by_worker: dict[str, list[ChunkRow]] = {}
    for row in timed:
        by_worker.setdefault(row.work.worker, []).append(row)
    return sum(1 if any(row.device == "cuda" for row in rows) else len(_lanes(rows)) for rows in by_worker.values()) or 1


def _chart(title: str, values: Sequence[float], bins: Sequence[tuple[float, float]], clock: Clock, *, top: float = 0.0) -> str:
    top = top or max(values) or 1.0
    bars = []
    for (begin, end), value in zip(bins, values, strict=True):
        x, right, tall = clock.x(begin), clock.x(end), RATE_HEIGHT * min(value / top, 1.0)
        width, y = max(right - x, 0.5), 6 + RATE_HEIGHT - tall
        bars.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width + 0.3:.1f}" height="{tall:.1f}" fill="var(--accent)" opacity=".75"/>'
        )
    mean = sum(value * (end - begin) for value, (begin, end) in zip(values, bins, strict=True)) / sum(e - b for b, e in bins)
    base = 6 + RATE_HEIGHT
    text = (
        f'<text x="{LEFT - 10}" y="16" text-anchor="end">{safe(_figure(top))}</text>'
        f'<text x="{LEFT - 10}" y="{base}" text-anchor="end">0</text>'
        f'<path d="M{LEFT} {base}H{RIGHT}M{LEFT} 6H{RIGHT}" stroke="var(--grid)"/>'
    )
    alt = safe(f"{title}: on average {_figure(mean)}, at most {_figure(max(values))}")
    svg = f'<svg viewBox="0 0 {RIGHT + 10:.0f} {base + 6:.0f}" role="img" aria-label="{alt}">{text}{"".join(bars)}</svg>'
    return f"<h3>{safe(title)} <span>(on average {safe(_figure(mean))})</span></h3>{svg}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
