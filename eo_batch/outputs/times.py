"""UTC times as the integers that files hold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def microseconds(time: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware `time`."""
    return (time - _EPOCH) // timedelta(microseconds=1)
