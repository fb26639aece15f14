"""Which GPUs this process can compute on."""

from __future__ import annotations


def visible_gpus() -> tuple[str, ...]:
    """Name and memory of each GPU that torch can use; none without torch."""
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    properties = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return tuple(f"{found.name}, {found.total_memory / 1e9:.0f} GB" for found in properties)
