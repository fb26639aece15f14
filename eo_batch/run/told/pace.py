"""How fast a run goes now: figures of its last minutes, from the events that a journal holds and a listener hears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from eo_batch.run.told.journal import Line, moment

RECENT_S = 300.0
"""Figures are those of so many seconds."""


@dataclass(frozen=True)
class WorkerSeen:
    """A worker as its last event shows it."""

    name: str
    host: str
    chunks: int
    last: str
    last_time: datetime
    is_lost: bool = False


@dataclass(frozen=True)
class Pace:
    """Speed over `seconds` seconds; None where the events do not tell.

    Parameters
    ----------
    chunks : finished in that time.
    busy_share : part of the time that devices computed: 1.0 where a GPU, or every CPU thread, always had something to do.
    workers : all that the events name, by name.
    """

    seconds: float
    chunks: int
    km2_per_hour: float | None
    windows_per_s: float | None
    busy_share: float | None
    workers: tuple[WorkerSeen, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The pace as JSON values."""
        workers = [{**asdict(worker), "last_time": worker.last_time.isoformat()} for worker in self.workers]
        return {**asdict(self), "workers": workers}

    def seconds_left(self, chunks: int) -> float | None:
        """Seconds until so many chunks more are made."""
        return chunks * self.seconds / self.chunks if self.chunks and self.seconds > 0 else None


def pace_of(lines: Sequence[Line], *, until: datetime) -> Pace | None:
    """Pace of the last minutes of `lines`, oldest first; None where they hold no finished chunk.

    Parameters
    ----------
    until : now, or when the run stopped.
    """
    timed = [(at, line) for line in lines if (at := moment(line.get("time"))) is not None]
    starts = [position for position, (_, line) in enumerate(timed) if line["event"] == "start"]
    timed = timed[starts[-1] if starts else 0 :]
    if not timed:
        return None
    since = max(timed[0][0], until - timedelta(seconds=RECENT_S))
    later = (position for position, (at, _) in enumerate(timed) if at > since)
    cut = 1 if since == timed[0][0] else next(later, len(timed))  # what comes in the millisecond of the first line counts
    before = [number(line.get("km2")) for _, line in timed[:cut]]
    made = [line for _, line in timed[cut:] if line["event"] == "chunk"]
    if not made:
        return None
    seconds = max((until - since).total_seconds(), 0.0)
    km2 = max(number(line.get("km2")) for line in made) - max(before, default=0.0)
    windows = [line["windows"] for line in made if isinstance(line.get("windows"), Mapping)]
    return Pace(
        seconds=seconds,
        chunks=len(made),
        km2_per_hour=3600 * km2 / seconds if seconds and km2 > 0 else None,
        windows_per_s=sum(number(each.get("computed")) for each in windows) / seconds if seconds and windows else None,
        busy_share=busy_share(made),
        workers=workers_of(line for _, line in timed),
    )


def workers_of(lines: Iterable[Line]) -> tuple[WorkerSeen, ...]:
    """Workers that events name, by name, with the last that was heard of each."""
    seen: dict[str, WorkerSeen] = {}
    for line in lines:
        name, at = line.get("worker"), moment(line.get("time"))
        if not isinstance(name, str) or at is None or line["event"] not in ("chunk", "failure", "worker"):
            continue
        before = seen.get(name) or WorkerSeen(name, "", 0, "", at)
        seen[name] = WorkerSeen(
            name,
            str(line.get("host") or before.host),
            before.chunks + (line["event"] == "chunk"),
            str(line.get("key") or before.last),
            at,
            line.get("state") == "lost",
        )
    return tuple(seen[name] for name in sorted(seen))


def busy_share(chunks: Iterable[Mapping[str, Any]]) -> float | None:
    """Part of the time between the first and the last chunk of each worker that its device computed; None: nobody measured.

    A worker with a GPU has one device, whatever the chunks that it makes at once. One with a CPU has as many as it makes at once.

    Parameters
    ----------
    chunks : telemetry: `worker`, `host`, `began`, `took_s`, `busy_s`, `device`.
    """
    by_worker: dict[tuple[str, str], list[tuple[float, float, float, bool]]] = {}
    for chunk in chunks:
        began = moment(chunk.get("began"))
        if began is None or "busy_s" not in chunk:
            continue
        start = began.timestamp()
        span = (start, start + number(chunk.get("took_s")), number(chunk["busy_s"]), chunk.get("device") == "cuda")
        by_worker.setdefault((str(chunk.get("host")), str(chunk.get("worker"))), []).append(span)
    busy = available = 0.0
    for spans in by_worker.values():
        lanes = 1 if any(gpu for *_, gpu in spans) else at_once([(start, end) for start, end, *_ in spans])
        busy += sum(seconds for *_, seconds, _ in spans)
        available += lanes * (max(end for _, end, *_ in spans) - min(start for start, *_ in spans))
    return min(1.0, busy / available) if available > 0 else None


def at_once(spans: Sequence[tuple[float, float]]) -> int:
    """Most spans (start, end) that overlap; those that only touch do not."""
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def number(value: Any) -> float:
    """`value` where it is a finite number, else 0: journals and telemetry are read, not believed."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number else 0.0


def pace_texts(pace: Pace) -> list[str]:
    """Figures of a pace for people: speed, windows, how busy the device is; those that are known."""
    texts = []
    if pace.km2_per_hour is not None:
        rate = pace.km2_per_hour
        texts.append(f"{rate:,.0f} km2/h" if rate >= 100 else f"{rate:.3g} km2/h")
    if pace.windows_per_s is not None:
        rate = pace.windows_per_s
        texts.append(f"{rate:,.0f} windows/s" if rate >= 10 else f"{rate:.2g} windows/s")
    if pace.busy_share is not None:
        texts.append(f"device busy {100 * pace.busy_share:.0f} %")
    return texts


def worker_text(name: str) -> str:
    """A worker for people: `10.0.0.7:41233` of an address, "driver" where the driver's own process computes."""
    scheme, _, place = name.rpartition("://")
    return "driver" if scheme == "inproc" else place


def duration_text(seconds: float) -> str:
    """`12 s`, `3 min`, `1 h 20 min`, `4 d 3 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"
