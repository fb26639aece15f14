"""First weights of a network that has none, and the buffers that no checkpoint needs to hold."""

from __future__ import annotations

import torch
from torch import nn

from eo_batch.models.remotesam.rotated import RotatedConv
from eo_batch.models.remotesam.swin import WindowAttention
from eo_batch.models.remotesam.text import TextEncoder

LINEAR_STD = 0.02
"""Of Swin (arXiv 2103.14030) and BERT (arXiv 1810.04805), both truncated or plain normal."""


@torch.no_grad()
def initialise(network: nn.Module, *, only_buffers: bool = False) -> None:
    """Fill every buffer, and unless `only_buffers` every parameter, of a network whose memory holds nothing yet."""
    for module in network.modules():
        if isinstance(module, (WindowAttention, TextEncoder)):
            module.reset_buffers()
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
        if not only_buffers:
            _first_weights(module)


def _first_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
    elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, RotatedConv):
        nn.init.kaiming_normal_(module.weight[0], nonlinearity="relu")
    elif isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)):
        nn.init.ones_(module.weight)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=LINEAR_STD)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        nn.init.zeros_(bias)
