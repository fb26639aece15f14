"""What a network of this kind takes: pictures of one size, and sentences that were not padded."""

from __future__ import annotations

import torch
from torch import Tensor

from eo_batch.core.errors import ModelError


def check_images(images: Tensor, side: int, *, where: str) -> None:
    """Refuse what are no images (n, 3, side, side) of floating numbers.

    Parameters
    ----------
    where : the network, for messages.

    Raises
    ------
    ModelError : `model-shape`.
    """
    if images.ndim != 4 or images.shape[1:] != (3, side, side) or not len(images) or not images.is_floating_point():
        what = f"takes images (n, 3, {side}, {side}) of floating numbers, not {tuple(images.shape)} {images.dtype}"
        raise ModelError("model-shape", what, where=where, fix=f"Give pictures of {side} x {side} px, their colours from 0 to 1.")


def checked_tokens(given: Tensor, *, most: int, words: int, where: str) -> Tensor:
    """Tokens of one prompt, int64 (L,), of whole numbers (L,) or (1, L).

    Parameters
    ----------
    most : length of the longest prompt.
    words : tokens that the network knows.
    where : the network, for messages.

    Raises
    ------
    ModelError : `model-shape`: another shape or type, too long, or a token that is not known.
    """
    ids = given[0] if given.ndim == 2 and len(given) == 1 else given
    if ids.ndim != 1 or not 0 < len(ids) <= most or ids.is_floating_point() or ids.dtype == torch.bool:
        what = f"takes tokens (L,) with L from 1 to {most}, not {tuple(ids.shape)} {ids.dtype}"
        fix = "Shorten the prompt, its end kept; give each prompt alone, without padding."
        raise ModelError("model-shape", what, where=where, fix=fix)
    if int(ids.min()) < 0 or int(ids.max()) >= words:
        what = f"knows tokens 0 to {words - 1}, not {int(ids.min())} to {int(ids.max())}"
        raise ModelError("model-shape", what, where=where, fix="Use the tokenizer of these weights.")
    return ids.long()
