"""Time along a picture: pauses between sittings are cut out, so that a night between two drivers does not hide the work."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from eo_batch.run.told.pace import duration_text

LEFT, RIGHT = 150.0, 1000.0
"""Where time begins and ends in a picture."""
PAUSE_PX = 26.0
LONG_SHARE = 0.15
"""A pause is cut out where it is longer than this share of all work."""


@dataclass(frozen=True)
class Stretch:
    """A time of work, POSIX seconds, and where it is drawn."""

    begin: float
    end: float
    x: float
    width: float


@dataclass(frozen=True)
class Clock:
    """Stretches of work, one after the other."""

    stretches: tuple[Stretch, ...]

    def x(self, moment: float) -> float:
        """Where a moment is drawn; one in a pause at the pause's begin."""
        position = max(0, bisect_right([stretch.begin for stretch in self.stretches], moment) - 1)
        stretch = self.stretches[position]
        share = (min(max(moment, stretch.begin), stretch.end) - stretch.begin) / max(stretch.end - stretch.begin, 1e-9)
        return stretch.x + share * stretch.width

    def bins(self, count: int) -> list[tuple[float, float]]:
        """Equal pieces of the time of work, none across a pause."""
        total = sum(stretch.end - stretch.begin for stretch in self.stretches)
        pieces = []
        for stretch in self.stretches:
            length = stretch.end - stretch.begin
            here = max(1, round(count * length / total)) if total > 0 else 1
            pieces += [(stretch.begin + length * n / here, stretch.begin + length * (n + 1) / here) for n in range(here)]
        return pieces

    def axis(self, y: float) -> str:
        """Ticks with hours and minutes, and the lengths of pauses."""
        parts = []
        many_days = _day(self.stretches[0].begin) != _day(self.stretches[-1].end)
        for stretch in self.stretches:
            count = max(1, int(stretch.width // 160))
            for n in range(count + 1):
                at = stretch.begin + (stretch.end - stretch.begin) * n / count
                anchor = "start" if n == 0 else "end" if n == count else "middle"
                x = stretch.x + stretch.width * n / count
                if n == 0 or stretch.width > 130:
                    parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="{anchor}">{_clock_text(at, many_days)}</text>')
                parts.append(f'<path d="M{x:.1f} {y:.1f}v4" stroke="var(--faint)"/>')
        for before, after in zip(self.stretches, self.stretches[1:], strict=False):
            x = before.x + before.width + PAUSE_PX / 2
            pause = duration_text(after.begin - before.end)
            parts.append(
                f'<g><title>paused for {pause}</title><text x="{x:.1f}" y="{y - 4:.1f}" text-anchor="middle" '
                f'transform="rotate(-90 {x:.1f} {y - 4:.1f})" dx="{len(pause) * 3 + 4}" dy="4">{pause}</text></g>'
            )
        return "".join(parts)


def clock_of(spans: Iterable[tuple[float, float]]) -> Clock | None:
    """A clock that shows all spans (begin, end); None where there is none."""
    ordered = sorted(spans)
    if not ordered:
        return None
    merged = [list(ordered[0])]
    for begin, end in ordered[1:]:
        if begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    work = sum(end - begin for begin, end in merged)
    stretches = [merged[0]]
    for begin, end in merged[1:]:
        if begin - stretches[-1][1] > LONG_SHARE * work and len(stretches) < 8:
            stretches.append([begin, end])
        else:
            stretches[-1][1] = end
    total = sum(end - begin for begin, end in stretches) or 1.0
    room = RIGHT - LEFT - PAUSE_PX * (len(stretches) - 1)
    x, placed = LEFT, []
    for begin, end in stretches:
        width = room * (end - begin) / total
        placed.append(Stretch(begin, end, x, width))
        x += width + PAUSE_PX
    return Clock(tuple(placed))


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def _clock_text(moment: float, with_day: bool) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%m-%d %H:%M" if with_day else "%H:%M:%S")
