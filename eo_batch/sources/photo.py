"""Pixels of a JPEG as networks were trained with them: decoded by Pillow.

GDAL 3.10 gives other colours where chroma is stored at half resolution: up to 103 of 255 apart on a picture of coloured noise.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eo_batch.core.errors import AssetError

_EXIF_ORIENTATION = 0x0112


def read_jpeg(file: Path, *, where: str, max_pixels: int) -> tuple[NDArray[np.uint8], int]:
    """Pixels, uint8 (band, y, x) of one grey band or red, green, blue; and the orientation that the camera noted, 1 to 8.

    Raises
    ------
    AssetError : `asset-too-big` before anything is decoded; `asset-corrupt`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(file, formats=("JPEG",)) as picture:
                if picture.width * picture.height > max_pixels:
                    raise too_big(where, f"{picture.width:,} x {picture.height:,} px", max_pixels)
                noted = picture.getexif().get(_EXIF_ORIENTATION, 1)
                values = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"))
    except Image.DecompressionBombError:
        raise too_big(where, "more than this decoder takes", max_pixels) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises on damaged files
        why, fix = f"damaged, or cut short ({type(error).__name__})", "Check that the file is whole and opens elsewhere."
        raise AssetError("asset-corrupt", "cannot be decoded", where=where, why=why, fix=fix) from None
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return planes, noted if isinstance(noted, int) and 1 <= noted <= 8 else 1


def upright(planes: NDArray[np.float32], turn: int) -> NDArray[np.float32]:
    """Arrays (band, y, x) put upright from EXIF orientation `turn` (Exif 2.32, tag 274)."""
    if turn in (2, 3):
        planes = planes[:, :, ::-1]
    if turn in (3, 4):
        planes = planes[:, ::-1]
    if turn in (5, 6, 7, 8):
        planes = planes.transpose(0, 2, 1)
        if turn in (6, 7):
            planes = planes[:, :, ::-1]
        if turn in (7, 8):
            planes = planes[:, ::-1]
    return np.ascontiguousarray(planes)


def too_big(where: str, declared: str, max_pixels: int) -> AssetError:
    """Refusal of an image that declares too much."""
    return AssetError(
        "asset-too-big",
        f"declares {declared} (limit {max_pixels:,} pixels)",
        where=where,
        fix="Nothing was decoded. Raise --max-pixels if you trust the file, cut it, or map it as a run: docs/guides.",
    )
