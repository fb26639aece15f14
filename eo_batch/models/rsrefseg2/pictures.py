"""Pictures on their way in and out of the network: resized in their own shape, filled up to a square, and cut back.

The network was trained so: the longer side as long as the square's, what is missing at the bottom or on the right black.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from eo_batch.models.rsrefseg.pictures import resize, resize_8bit


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of a picture (height, width) that fits a square of `side` px, its shape kept; rounded as mmcv does."""
    scale = side / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def fit(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """`picture` (h, w, 3) resized to fit a square, (side, side, 3), 0 where there is nothing of it."""
    height, width = fitted(picture.shape[0], picture.shape[1], side)
    made = np.zeros((side, side, 3), np.uint8)
    made[:height, :width] = resize_8bit(picture, height, width)
    return made


def enlarge(logits: Tensor, side: int, height: int, width: int) -> Tensor:
    """Logits (B, P, height, width) of answers (B, P, h, w): resized to the network's input, cut, resized to the picture."""
    rows, columns = fitted(height, width, side)
    return resize(resize(logits, side, side)[..., :rows, :columns], height, width)
