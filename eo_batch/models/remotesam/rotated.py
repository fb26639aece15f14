"""Adaptive rotated convolution (arXiv 2303.07820) with one kernel: the image itself says how far to turn it, and how strong."""

from __future__ import annotations

from math import radians

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eo_batch.models.arithmetic import ROWS, is_fast

LARGEST_TURN = radians(40.0)


class RotatedConv(nn.Module):
    """A 3x3 convolution, without bias, whose kernel is rotated and scaled for every sample."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dim, dim, 3, 3))
        self.rounting_func = Router(dim)  # spelled as in the published checkpoint

    def kernels(self, x: Tensor) -> Tensor:
        """The kernel of each sample, (B, out, in, 3, 3)."""
        alpha, theta = self.rounting_func(x)
        return rotate_kernels(self.weight[0], alpha, theta)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) of the same shape."""
        pairs = zip(x.split(1), self.kernels(x).to(x.dtype), strict=True)
        return torch.cat([F.conv2d(sample, kernel, padding=1) for sample, kernel in pairs])


class Router(nn.Module):
    """Strength and angle for each sample, from its mean response to small filters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm = _ChannelNorm(dim)
        self.fc_alpha = nn.Linear(dim, 1)
        self.fc_theta = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Strengths in (0, 1) and angles in radians, each float32 (B,), of maps (B, C, h, w) of any number type."""
        height, width = x.shape[2:]
        step = max(1, ROWS // width) if is_fast(x) else height
        total = torch.zeros_like(x[:, :, 0, 0], dtype=torch.float32)
        for first in range(0, height, step):
            end = min(first + step, height)
            band = F.pad(x[:, :, max(first - 1, 0) : end + 1], (0, 0, int(first == 0), int(end == height)))
            response = F.conv2d(band, self.dwc.weight, padding=(0, 1), groups=len(self.dwc.weight))
            total = total + F.relu(self.norm(response)).sum((2, 3), dtype=torch.float32)
        mean, alpha, theta = total / (height * width), self.fc_alpha, self.fc_theta
        strength = torch.sigmoid(F.linear(mean, alpha.weight.float(), alpha.bias.float()))
        return strength[:, 0], LARGEST_TURN * F.softsign(F.linear(mean, theta.weight.float()))[:, 0]


class _ChannelNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def rotate_kernels(weight: Tensor, alpha: Tensor, theta: Tensor) -> Tensor:
    """Kernels turned by `theta` and multiplied by `alpha`.

    The value at (x, y), x to the right and y down, is read bilinearly at (x cos t - y sin t, x sin t + y cos t), clamped to
    the kernel.

    Parameters
    ----------
    weight : (out, in, 3, 3).
    alpha, theta : (B,); theta in radians.

    Returns
    -------
    Tensor (B, out, in, 3, 3).
    """
    taps = torch.tensor([-1.0, 0.0, 1.0], device=weight.device, dtype=torch.float32)
    y, x = (axis.reshape(-1) for axis in torch.meshgrid(taps, taps, indexing="ij"))
    cos, sin = theta.float().cos()[:, None], theta.float().sin()[:, None]
    read_x, read_y = (x * cos - y * sin).clamp(-1, 1), (x * sin + y * cos).clamp(-1, 1)
    share_x = (1 - (read_x[..., None] - x).abs()).clamp(min=0)
    share_y = (1 - (read_y[..., None] - y).abs()).clamp(min=0)
    shares = (share_x * share_y * alpha.float()[:, None, None]).to(weight.dtype)
    turned = weight.flatten(2) @ shares.transpose(1, 2)[:, None]
    return turned.reshape(-1, *weight.shape)
