"""How networks compute on a CPU when nothing is trained: oneDNN's linear layers, and some rows at a time.

A few rows stay in the processor's cache through all that is done to them, and no memory is asked for anew. Everywhere else (on a
GPU, in training, with other number types) the plain operations of torch are used. Both give the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 2048
"""Rows worked on at once: a few MB at every width of the networks."""

_is_plain: ContextVar[bool] = ContextVar("_is_plain", default=False)
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}
_ONEDNN_NAMES = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh")}


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Inside, networks use torch's plain operations on a CPU too: what the fast ones are measured against."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def is_fast(x: Tensor) -> bool:
    """Whether `x` is worked on in the way this module is about."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled() and not _is_plain.get()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none") -> Tensor:
    """Activation of a linear layer of x (..., in) with weight (out, in).

    oneDNN's product is 1 to 2.5 times as fast as the one that torch takes for float32, which is tuned for one maker's processors.
    """
    if _ONEDNN and is_fast(x):
        name, algorithm = _ONEDNN_NAMES.get(activation, (activation, ""))
        answer: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], algorithm)
        return answer
    return _ACTIVATIONS[activation](F.linear(x, weight, bias))


class Linear(nn.Linear):
    """A linear layer that computes as `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Features (..., out)."""
        return linear(input, self.weight, self.bias)


def by_rows(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """`function` of tensors (B, N, C), for a function that treats each of the N rows apart from the others."""
    batch, count = tensors[0].shape[:2]
    if not is_fast(tensors[0]) or count <= ROWS:
        return function(*tensors)
    answers: tuple[Tensor, ...] = ()
    for start in range(0, count, ROWS):
        parts = function(*(tensor[:, start : start + ROWS] for tensor in tensors))
        answers = answers or tuple(part.new_empty(batch, count, part.shape[-1]) for part in parts)
        for answer, part in zip(answers, parts, strict=True):
            answer[:, start : start + ROWS] = part
    return answers
