"""What is trained of RSRefSeg, and by which loss (arXiv 2501.06809 and its published configs).

The published recipe also trains low-rank updates of the foundation models. They are read from its checkpoints but not trained
here: whoever wants to may train these models whole.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.rsrefseg.network import RSRefSeg
from eo_batch.models.rsrefseg.pictures import resize

TRAINED = ("prompter.", "sam.mask_decoder.", "sam.prompt_encoder.")
"""Parts that are trained in full."""

IGNORED = 255
"""Label of pixels that nobody judged."""

WEIGHT = 5.0
"""Factor of the loss."""


def trained_parameters(network: RSRefSeg) -> dict[str, nn.Parameter]:
    """The parameters that the published recipe trains in full, by name; all others stop asking for gradients.

    Some of them never get a gradient: what SAM keeps for points, its other masks, and its guess of their quality.
    """
    chosen = {}
    for name, parameter in network.named_parameters():
        is_trained = name.startswith(TRAINED)
        parameter.requires_grad_(is_trained)
        if is_trained:
            chosen[name] = parameter
    return chosen


def mask_loss(logits: Tensor, labels: Tensor, *, weight: float = WEIGHT) -> Tensor:
    """Binary cross entropy of the enlarged logits, times `weight`; pixels labelled `IGNORED` add nothing but still count.

    Parameters
    ----------
    logits : (B, 1, h, w) of the network.
    labels : (B, H, W), 1 where the mask is, 0 where not, or `IGNORED`.
    """
    full = resize(logits.float(), *labels.shape[1:])[:, 0]
    errors = F.binary_cross_entropy_with_logits(full, (labels == 1).float(), reduction="none")
    return weight * (errors * (labels != IGNORED)).mean()
