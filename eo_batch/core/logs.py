"""What other libraries log, made safe: urllib3, rasterio and httpx log addresses as they are, tokens included.

Filters of a logger see only what is logged to it, not to its children, so every logger of a library gets one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from eo_batch.core.hrefs import redact


class _Redacted(logging.Filter):
    """Lets every record pass, its text and trace without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


_FILTER = _Redacted()


def redact_logs(*libraries: str) -> None:
    """Keep secrets out of what imported libraries log; calling it again adds nothing twice.

    Parameters
    ----------
    libraries : top-level names, "rasterio"; their loggers must exist, so import them before.
    """
    for logger in _loggers_of(libraries):
        logger.addFilter(_FILTER)


@contextmanager
def redacted_logs(*libraries: str) -> Iterator[None]:
    """The same while the context is open: for libraries that the program around us may use in its own way."""
    loggers, mine = _loggers_of(libraries), _Redacted()
    for logger in loggers:
        logger.addFilter(mine)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(mine)


def _loggers_of(libraries: tuple[str, ...]) -> list[logging.Logger]:
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in libraries]
    return [logging.getLogger(name) for name in dict.fromkeys([*libraries, *names])]
