"""Tensors as numpy arrays that can be kept, and back: bit for bit, whatever numpy knows of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor in main memory; bfloat16, which numpy does not have, as its bits in uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def tensor_of(array: NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
    """The tensor that `array_of` was given, in main memory, with numbers of its own.

    Parameters
    ----------
    dtype : that it must have; None: whatever it was kept as.
    """
    bits = np.array(array, order="C")
    if dtype in (None, torch.bfloat16) and bits.dtype == np.uint16:
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    tensor = torch.from_numpy(bits)
    if dtype not in (None, tensor.dtype):
        raise ValueError(f"kept as {tensor.dtype}, wanted as {dtype}")
    return tensor
