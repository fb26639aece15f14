"""What a window holds where nothing was observed: made from that window alone, so the same whatever chunk it was cut from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FILL_BYTES = 88
"""Memory in bytes of `mirror_fill` per missing pixel: two int32 and ten int64 positions."""


def fill_missing(image: NDArray[np.float32], missing: NDArray[np.bool_], *, pixelwise: bool) -> None:
    """Fill `missing` pixels of a window as its segmenter wants them; changes `image`, float32 (band, y, x)."""
    if missing.any():
        (mean_fill if pixelwise else mirror_fill)(image, missing)


def mirror_fill(image: NDArray[np.float32], missing: NDArray[np.bool_]) -> None:
    """Fill `missing` pixels of a window with its observed ones, mirrored at the nearest of them; changes `image`.

    A missing pixel p whose nearest observed pixel is q takes the value at 2 q - p where that lies in the window and is observed,
    else the value at q. So texture goes on across the edge of a scene, and a network never sees a flat border there. The nearest
    pixel is that of an exact Euclidean distance transform (Maurer, Qi and Raghavan 2003, doi:10.1109/TPAMI.2003.1177156), which
    looks at this window alone.

    Parameters
    ----------
    image : float32 (band, y, x).
    missing : bool (y, x), False somewhere.
    """
    from scipy.ndimage import distance_transform_edt

    nearest_y, nearest_x = distance_transform_edt(missing, return_distances=False, return_indices=True)
    y, x = np.nonzero(missing)
    near_y, near_x = nearest_y[y, x], nearest_x[y, x]
    far_y, far_x = 2 * near_y - y, 2 * near_x - x
    height, width = missing.shape
    lies_inside = (far_y >= 0) & (far_y < height) & (far_x >= 0) & (far_x < width)
    is_mirrored = lies_inside & ~missing[np.where(lies_inside, far_y, 0), np.where(lies_inside, far_x, 0)]
    image[:, y, x] = image[:, np.where(is_mirrored, far_y, near_y), np.where(is_mirrored, far_x, near_x)]


def mean_fill(image: NDArray[np.float32], missing: NDArray[np.bool_]) -> None:
    """Fill `missing` pixels of a window with the mean of its observed ones, band by band; changes `image`; see `mirror_fill`."""
    np.copyto(image, np.float32(0), where=missing)
    # A contiguous array of fixed shape: numpy sums it in one order, whatever chunk it was cut from.
    total = image.reshape(len(image), -1).sum(axis=1, dtype=np.float64)
    mean = total / np.count_nonzero(~missing)
    np.copyto(image, mean.astype(np.float32)[:, None, None], where=missing)
