"""`[model.options]` of segmenters that are networks: read by name and type, every mistake told with its key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from eo_batch.core.errors import ConfigError
from eo_batch.models.registry import MOST_THREADS
from eo_batch.models.stretch import REFLECTANCE_HIGH, Stretch

PRECISIONS = ("float32", "bfloat16", "float16")
_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class NetworkOptions:
    """What every network can be told; a segmenter adds its own in a subclass, each with a default.

    Parameters
    ----------
    weights : name of published weights, or a path.
    precision : of the network's numbers.
    device : "auto" (a GPU where there is one), "cpu" or "cuda".
    threads : of one call on a CPU; decides the order of sums, so part of the identity.
    stretch_low, stretch_high, stretch_gamma : see `Stretch`.

    Raises
    ------
    ConfigError : `config-invalid`.
    """

    weights: str = ""
    precision: str = "float32"
    device: str = "auto"
    threads: int = 1
    stretch_low: float = 0.0
    stretch_high: float = REFLECTANCE_HIGH
    stretch_gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            fix = f"Use one of: {', '.join(PRECISIONS)}."
            raise ConfigError("config-invalid", f"unknown precision {self.precision!r}", where=_key("precision"), fix=fix)
        if not 1 <= self.threads <= MOST_THREADS:
            raise ConfigError("config-invalid", f"{self.threads} is not in 1..{MOST_THREADS}", where=_key("threads"))
        _ = self.stretch

    @property
    def stretch(self) -> Stretch:
        """How physical values become colours."""
        return Stretch(self.stretch_low, self.stretch_high, self.stretch_gamma)


_Options = TypeVar("_Options", bound=NetworkOptions)


def read_options(kind: type[_Options], given: Mapping[str, Any], *, segmenter: str) -> _Options:
    """The options that a pipeline gives, as `kind`; what it leaves out has its default.

    Parameters
    ----------
    segmenter : its name, for messages.

    Raises
    ------
    ConfigError : `config-unknown-key` (with a suggestion), `config-invalid`.
    """
    known = {option.name: type(option.default) for option in fields(kind)}
    for name, value in sorted(given.items()):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            fix = f"{hint}{segmenter} knows {', '.join(sorted(known))}."
            raise ConfigError("config-unknown-key", f'unknown key "{name}"', where="model.options", fix=fix)
        wanted = known[name]
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ConfigError("config-invalid", f"{value!r} is not {_KINDS[wanted]}", where=_key(name))
    return kind(**given)


def _key(name: str) -> str:
    return f"model.options.{name}"
