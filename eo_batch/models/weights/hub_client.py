"""How huggingface_hub is used: where its hub is, whether it may be asked, what it raises, and what it must not tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from eo_batch.core.errors import ConfigError
from eo_batch.core.hrefs import redact
from eo_batch.core.logs import redacted_logs

HUB = "https://huggingface.co"
LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2")
"""Whose loggers may be told addresses."""


def hub_endpoint() -> str:
    """Where the hub is: `HF_ENDPOINT`, else the public one.

    Raises
    ------
    ConfigError : `config-invalid`: no address.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        _ = parts.port  # raises where it is no number
    except ValueError:
        is_plain = False
    if not is_plain:
        fix = "Set HF_ENDPOINT to an address like https://hub.example.org, or unset it."
        raise ConfigError("config-invalid", "is no address of a hub", where="HF_ENDPOINT", fix=fix)
    return endpoint


def is_offline() -> bool:
    """`HF_HUB_OFFLINE` (or `TRANSFORMERS_OFFLINE`) forbids every request."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return constants.HF_HUB_OFFLINE or said.upper() in constants.ENV_VARS_TRUE_VALUES


def transport_errors() -> tuple[type[Exception], ...]:
    """What the client of huggingface_hub raises when the network fails, or answers with addresses and numbers that are none.

    Which library that is depends on its version.
    """
    from huggingface_hub.errors import HfHubHTTPError

    kinds = [kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError" and issubclass(kind, Exception)]
    return (*kinds, ValueError)


@contextmanager
def discreet() -> Iterator[None]:
    """Nothing about this machine is told to the hub, no signed address to a log, and no bar is drawn but ours.

    Raises
    ------
    ConfigError : `config-invalid`: the environment names a proxy that cannot be used.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    try:
        get_session()  # its libraries have their loggers from here on
    except (ImportError, ValueError) as error:
        why, fix = redact(" ".join(str(error).split()))[:200], "Change or unset HTTP_PROXY, HTTPS_PROXY or ALL_PROXY."
        raise ConfigError("config-invalid", "this proxy cannot be used", where="environment", why=why, fix=fix) from None
    telemetry_off, draws_bars = constants.HF_HUB_DISABLE_TELEMETRY, not are_progress_bars_disabled()
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if draws_bars:
        disable_progress_bars()
    try:
        with redacted_logs(*LIBRARIES):
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry_off
        if draws_bars:
            enable_progress_bars()
