"""What networks that look at colour pictures cannot take, told before or where it is met."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eo_batch.core.errors import ConfigError, EoBatchError, ModelError
from eo_batch.models.options import NetworkOptions
from eo_batch.models.segmenter import band_names
from eo_batch.models.tokens import Tokenizer

BANDS = ("red", "green", "blue")


@contextmanager
def refused(name: str) -> Iterator[None]:
    """What a network of the library raises where its config names sizes that do not go together, told as that.

    Tensors do not tell everything: windows of attention, strides and heads leave no trace in their shapes.

    Parameters
    ----------
    name : of the segmenter.

    Raises
    ------
    ModelError : `model-load`.
    """
    from eo_batch.models.devices import is_full, is_lost

    try:
        yield
    except EoBatchError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, RuntimeError) and (is_full(error) or is_lost(error)):
            raise
        fix = "Give the folder of a network as its authors published it."
        what = "the network cannot compute with the sizes that its config names"
        raise ModelError("model-load", what, where=f'segmenter "{name}"', why=why, fix=fix) from error


def check_bands(name: str, bands: Sequence[str]) -> None:
    """Refuse bands that are no colour picture.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    if tuple(bands) != BANDS:
        raise ConfigError(
            "config-invalid",
            f'segmenter "{name}" sees colour pictures, not {band_names(bands)}',
            where="source.bands",
            why="the order matters" if sorted(bands) == sorted(BANDS) else "",
            fix=f"Set bands = {band_names(BANDS)}.",
        )


def check_share(options: NetworkOptions, name: str) -> None:
    """Refuse an option that is no number between 0 and 1.

    Raises
    ------
    ConfigError : `config-invalid`.
    """
    value = getattr(options, name)
    if not 0 < value < 1:
        fix = f"Use {getattr(type(options), name):g}."
        raise ConfigError("config-invalid", f"{value:g} is not between 0 and 1", where=f"model.options.{name}", fix=fix)


def check_words(tokenizer: Tokenizer, known: int) -> None:
    """Refuse a tokenizer that has words which the network does not know.

    Raises
    ------
    ModelError : `model-load`.
    """
    if len(tokenizer) > known:
        what = f"has {len(tokenizer):,} words, the network knows {known:,}"
        raise ModelError("model-load", what, where=str(tokenizer.path), fix="Put the tokenizer beside the weights it belongs to.")
