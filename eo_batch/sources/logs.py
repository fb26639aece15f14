"""What other libraries log, made safe: urllib3 and rasterio log addresses as they are, tokens included, up to warnings.

Filters of a logger see only what is logged to it, not to its children, so every logger of a library gets one.
"""

from __future__ import annotations

import logging

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
    for name in [*libraries, *logging.root.manager.loggerDict]:
        if name.split(".", 1)[0] in libraries:
            logging.getLogger(name).addFilter(_FILTER)
