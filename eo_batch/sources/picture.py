"""One image file, or one array, as a segmenter takes it: named bands of float32 in 0..1, and what was observed.

Photos, screenshots and GeoTIFFs come from strangers: the driver is chosen by the first bytes and named at open, and the size is
limited from the header alone, before anything is decoded.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.errors
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags

from eo_batch.core.errors import AssetError, ConfigError
from eo_batch.sources.photo import read_jpeg, too_big, upright
from eo_batch.sources.raster import GDAL_ENV, MAX_BANDS

MAX_PIXELS = 64_000_000
"""Largest declared width x height that is decoded where the caller names no other: 8,000 x 8,000."""
MAX_BYTES_A_PIXEL = 32
"""So many stored bytes of each pixel are decoded at most, where an image declares as many pixels as it may."""
RGB = ("red", "green", "blue")
ALPHA = "alpha"
DROPPED = "-"
"""Name of a band that is not given to the segmenter."""
_GREY = "one grey band: repeated as red, green and blue"

_ENV = {
    **GDAL_ENV,
    "GDAL_PAM_ENABLED": "NO",  # no .aux.xml beside the image
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # a PNG that ends too early would be read without an error, its rest random memory
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # a JPEG inside a GeoTIFF that ends too early would come back half grey
}
_JPEG = b"\xff\xd8\xff"
_DRIVERS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "GTiff"),
    (b"MM\0*", "GTiff"),
    (b"II+\0", "GTiff"),
    (b"MM\0+", "GTiff"),
)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, ready for a segmenter.

    Parameters
    ----------
    name : for messages and titles: the file's name, or "array".
    pixels : float32 (band, y, x) in 0..1, every one finite.
    valid : bool (y, x): observed, neither transparent nor nodata.
    bands : names of the bands, in the order of the band axis.
    crs : WKT where the image is georeferenced, else None.
    transform : affine from (column, row) of pixel corners to coordinates of `crs`; None where there is none.
    notes : what was done to get here, one line each, for people.
    """

    name: str
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    bands: tuple[str, ...]
    crs: str | None = None
    transform: Affine | None = None
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) in pixels."""
        return self.valid.shape[0], self.valid.shape[1]

    def select(self, bands: Sequence[str]) -> Picture:
        """The same picture with some of its bands, in this order."""
        if tuple(bands) == self.bands:
            return self
        return replace(self, pixels=self.pixels[[self.bands.index(band) for band in bands]], bands=tuple(bands))

    def rgb(self) -> NDArray[np.uint8]:
        """The image as people see it, uint8 (y, x, 3): red, green, blue; else the first three bands; else the first one, grey."""
        wanted = RGB if set(RGB) <= set(self.bands) else self.bands[:3] if len(self.bands) >= 3 else self.bands[:1] * 3
        planes = [self.pixels[self.bands.index(band)] for band in wanted]
        return np.stack([np.rint(plane * np.float32(255)).astype(np.uint8) for plane in planes], axis=-1)


def picture_of(array: NDArray[np.uint8], *, name: str = "array") -> Picture:
    """Picture of an array, uint8 (y, x, 3) red, green, blue, or uint8 (y, x) grey; every pixel counts as observed.

    Raises
    ------
    ConfigError : `config-invalid`: another shape or type.
    """
    values = np.asarray(array)
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)) or 0 in values.shape:
        raise ConfigError(
            "config-invalid",
            f"an image array must be uint8 (y, x, 3) or (y, x), got {values.dtype} {values.shape}",
            fix="Stretch other values to 0..255 first, or give the path of a file and its low and high.",
        )
    notes = () if values.ndim == 3 else (_GREY,)
    planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else np.stack([values] * 3)
    return Picture(name, _unit(planes, 0.0, 255.0), np.ones(values.shape[:2], bool), RGB, notes=notes)


def read_picture(
    path: str | Path,
    *,
    bands: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Picture:
    """Picture of a PNG, JPEG or GeoTIFF.

    Palettes become colours, grey is repeated, an orientation that a camera noted is applied, transparent pixels and nodata
    are not observed. Sidecar files are not looked at.

    Parameters
    ----------
    bands : names of the file's bands in their order, such as red, green, blue, nir; "alpha" marks transparency, "-" a band
        that is left out. Default: red, green, blue; a fourth band is left out.
    low, high : stored values that become 0 and 1; needed unless the file holds 8-bit values.
    max_pixels : refuse more declared pixels (width x height) than this.

    Raises
    ------
    AssetError : `asset-not-found`, `asset-corrupt`, `asset-too-big`, `asset-contract`.
    ConfigError : `config-invalid`: bands that do not fit, or a stretch that is missing or makes no sense.
    """
    file, where = Path(path), Path(path).name or str(path)
    _check_stretch(low, high)
    begin = _first_bytes(file, where)
    if begin.startswith(_JPEG):
        return _photo(file, where, tuple(bands), (low, high), max_pixels)
    with _opened(file, begin, where) as dataset:
        _check_size(dataset, where, max_pixels)
        layout = _layout(dataset, tuple(bands), where)
        _check_bytes(dataset, layout, where, max_pixels)
        stored = layout.values(dataset)
        valid = _observed(dataset, layout, stored)
        ends = (low, high) if low is not None and high is not None else _ends(dataset, stored, valid, where)
        if stored.dtype.kind == "f":
            np.copyto(stored, ends[0], where=~valid)
        pixels = _unit(stored, *ends)
        georeferenced = dataset.crs is not None and dataset.transform.determinant != 0
        crs = dataset.crs.to_wkt() if georeferenced else None
        transform = Affine(*dataset.transform[:6]) if georeferenced else None
        is_scaled = any((dataset.scales[n - 1], dataset.offsets[n - 1]) != (1.0, 0.0) for n in layout.numbers)
    notes = [*layout.notes]
    if is_scaled:
        notes.append("scale and offset of the file are not applied: low and high are stored values")
    if not valid.all():
        notes.append(f"{100 * float((~valid).mean()):.3g} % of the pixels are not observed (transparent or nodata)")
    return Picture(where, pixels, valid, layout.names, crs, transform, tuple(notes))


def _photo(
    file: Path, where: str, bands: tuple[str, ...], stretch: tuple[float | None, float | None], max_pixels: int
) -> Picture:
    stored, turn = read_jpeg(file, where=where, max_pixels=max_pixels)
    notes = []
    if bands:
        numbers, names, _ = _named(bands, len(stored), where)
        stored = stored[[number - 1 for number in numbers]]
    else:
        names = RGB
        if len(stored) == 1:
            stored = np.repeat(stored, 3, axis=0)
            notes.append(_GREY)
    if turn > 1:
        notes.append("turned upright as the camera noted (EXIF orientation)")
    low, high = (0.0, 255.0) if stretch[0] is None or stretch[1] is None else (stretch[0], stretch[1])
    pixels = upright(_unit(stored, low, high), turn)
    return Picture(where, pixels, np.ones(pixels.shape[1:], bool), names, notes=tuple(notes))


@dataclass(frozen=True)
class _Layout:
    """Which bands of a file are used: their numbers (from 1) and names, the alpha band's number or 0, a palette or None."""

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    alpha: int = 0
    palette: NDArray[np.uint8] | None = None
    notes: tuple[str, ...] = ()

    def values(self, dataset: Any) -> NDArray[Any]:
        """Stored values (band, y, x) in the file's type."""
        if self.palette is not None:
            return np.moveaxis(self.palette[dataset.read(1)][..., :3], -1, 0)
        numbers = sorted(set(self.numbers))
        read = dataset.read(numbers)
        return read if len(numbers) == len(self.numbers) else np.repeat(read, len(self.numbers), axis=0)


def _first_bytes(file: Path, where: str) -> bytes:
    try:
        if not file.is_file():
            what = "is a folder, not an image" if file.is_dir() else "there is no such image"
            is_elsewhere = re.match(r"[a-z0-9]+:/|/vsi", str(file), re.IGNORECASE) is not None
            fix = "Images are files on this machine: download it first." if is_elsewhere else "Check the path."
            raise AssetError("asset-not-found", what, where=where, fix=fix)
        with file.open("rb") as opened:
            return opened.read(16)
    except OSError as error:
        why = error.strerror or ""
        raise AssetError("asset-forbidden", "cannot be read", where=where, why=why, fix="Check the path.") from None


@contextmanager
def _opened(file: Path, begin: bytes, where: str) -> Iterator[Any]:
    """The dataset, opened by the driver that its first bytes name; errors of GDAL as AssetError."""
    fix = "Check that the file is whole and opens elsewhere; PNG, JPEG and GeoTIFF are read."
    driver = next((name for magic, name in _DRIVERS if begin.startswith(magic)), None)
    if driver is None:
        what = "is empty" if not begin else "is not a PNG, JPEG or GeoTIFF"
        raise AssetError("asset-corrupt", what, where=where, fix="Convert the image to one of these formats.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.Env(**_ENV), rasterio.open(file.absolute(), driver=driver, sharing=False) as dataset:
                yield dataset
    except (rasterio.errors.RasterioError, MemoryError) as error:
        why = "not enough memory" if isinstance(error, MemoryError) else "damaged, or cut short"
        raise AssetError("asset-corrupt", "cannot be decoded", where=where, why=why, fix=fix) from None


def _check_size(dataset: Any, where: str, max_pixels: int) -> None:
    if dataset.count > MAX_BANDS:
        raise AssetError("asset-too-big", f"declares {dataset.count:,} bands (limit {MAX_BANDS})", where=where)
    declared = dataset.height * dataset.width
    largest_block = max((h * w for h, w in dataset.block_shapes), default=0)
    if declared > max_pixels or largest_block > max(max_pixels, 1 << 22):
        size = f"{dataset.width:,} x {dataset.height:,} px" if declared > max_pixels else f"blocks of {largest_block:,} px"
        raise too_big(where, size, max_pixels)


def _check_bytes(dataset: Any, layout: _Layout, where: str, max_pixels: int) -> None:
    widest = max(np.dtype(dataset.dtypes[number - 1]).itemsize for number in layout.numbers)
    count = len(set(layout.numbers)) * widest
    pixels = -(-dataset.height * dataset.width * count // MAX_BYTES_A_PIXEL)
    if pixels > max_pixels:
        raise too_big(where, f"as many bytes as {pixels:,} pixels of {MAX_BYTES_A_PIXEL} bytes have", max_pixels)


def _layout(dataset: Any, bands: tuple[str, ...], where: str) -> _Layout:
    if bands:
        return _Layout(*_named(bands, dataset.count, where))
    count, colours = dataset.count, dataset.colorinterp
    if colours[0] == ColorInterp.palette and count == 1:
        return _Layout((1, 1, 1), RGB, palette=_palette(dataset), notes=("palette: turned into red, green and blue",))
    alpha = count if colours[-1] == ColorInterp.alpha and count in (2, 4) else 0
    if count - bool(alpha) == 1:
        return _Layout((1, 1, 1), RGB, alpha, notes=(_GREY,))
    if count == 3:
        return _Layout((1, 2, 3), RGB)
    if count == 4:
        if alpha and not _is_transparency(dataset, alpha):
            alpha = 0
        what = "used for transparency" if alpha else "left out; name it to use it: --bands red,green,blue,nir"
        return _Layout((1, 2, 3), RGB, alpha, notes=(f"the fourth band is {what}",))
    raise ConfigError(
        "config-invalid",
        f"{count} bands without names",
        where=where,
        fix='Name them in their order, for example --bands red,green,blue,nir; "-" leaves one out.',
    )


def _named(bands: tuple[str, ...], count: int, where: str) -> tuple[tuple[int, ...], tuple[str, ...], int]:
    """Numbers (from 1) and names of the bands that are used, and the number of the alpha band or 0."""
    if len(bands) != count:
        fix = 'Name every band of the file in its order; "-" leaves one out.'
        raise ConfigError("config-invalid", f"{len(bands)} names for {count} bands", where=where, fix=fix)
    used = [(number, name) for number, name in enumerate(bands, 1) if name not in (DROPPED, ALPHA)]
    names = tuple(name for _, name in used)
    if not used or "" in names or len(set(names)) != len(names) or bands.count(ALPHA) > 1:
        raise ConfigError("config-invalid", f"band names must differ and not be empty: {','.join(bands)}", where=where)
    return tuple(number for number, _ in used), names, bands.index(ALPHA) + 1 if ALPHA in bands else 0


def _is_transparency(dataset: Any, alpha: int) -> bool:
    """The band marks what is to be seen. Aerial photos of four bands often call their near infrared alpha: in a GeoTIFF,
    transparency is all or nothing."""
    if dataset.driver != "GTiff":
        return True
    values = dataset.read(alpha)
    return bool(np.isin(values, (0, np.iinfo(values.dtype).max)).all()) if values.dtype.kind == "u" else False


def _palette(dataset: Any) -> NDArray[np.uint8]:
    """Colours, uint8 (256 or 65536, 4): red, green, blue, alpha."""
    colours = np.zeros((1 << (8 * np.dtype(dataset.dtypes[0]).itemsize), 4), np.uint8)
    for index, colour in dataset.colormap(1).items():
        colours[index] = colour
    return colours


def _observed(dataset: Any, layout: _Layout, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Observed pixels, bool (y, x)."""
    valid = np.ones(stored.shape[1:], bool)
    if stored.dtype.kind == "f":
        valid &= np.isfinite(stored).all(axis=0)
    if layout.alpha:
        valid &= dataset.read(layout.alpha) > 0
    if layout.palette is not None:
        index = dataset.read(1)
        valid &= layout.palette[index][..., 3] > 0
        nodata = dataset.nodatavals[0]
        return valid & (index != nodata) if nodata is not None else valid
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        valid &= dataset.dataset_mask() > 0
    elif MaskFlags.nodata in flags:
        gaps = [stored[place] == dataset.nodatavals[number - 1] for place, number in enumerate(layout.numbers)]
        # A picture may hold the value of its nodata in one colour of a true pixel; a measurement must be whole.
        valid &= ~(np.logical_and if stored.dtype == np.uint8 else np.logical_or).reduce(gaps)
    return valid


def _ends(dataset: Any, stored: NDArray[Any], valid: NDArray[np.bool_], where: str) -> tuple[float, float]:
    """Stored values that become 0 and 1 where the caller names none."""
    if stored.dtype == np.uint8:
        bits = dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "8")
        is_packed = bits in ("1", "2", "4") and dataset.colorinterp[0] != ColorInterp.palette
        return 0.0, float((1 << int(bits)) - 1) if is_packed else 255.0
    if stored.dtype.kind not in "iuf":
        raise AssetError("asset-contract", f"holds {stored.dtype} values, expected real numbers", where=where)
    every = (slice(None, None, max(1, stored.shape[1] // 512)), slice(None, None, max(1, stored.shape[2] // 512)))
    sample = stored[:, *every][:, valid[every]].astype(np.float64)
    low, high = np.percentile(sample, [2, 98]) if sample.size else (0.0, 1.0)
    raise ConfigError(
        "config-invalid",
        f"holds {stored.dtype} values: it is not known which of them is black and which is white",
        where=where,
        fix=f"Say so with --low and --high: 96 % of this image lies in {low:.6g}..{high:.6g}. For reflectance stored as 0..10000 "
        "and a model that wants reflectance, --low 0 --high 10000.",
    )


def _check_stretch(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        return
    if low is None or high is None or not (np.isfinite([low, high]).all() and low < high):
        fix = "Give both as finite numbers, low below high."
        raise ConfigError("config-invalid", f"low {low} and high {high} are no stretch", where="--low, --high", fix=fix)


def _unit(stored: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Stored values as float32 in 0..1: `low` and below is 0, `high` and above is 1."""
    if (low, high) == (0.0, 255.0) and stored.dtype == np.uint8:
        return stored.astype(np.float32) / np.float32(255)
    out = np.empty(stored.shape, np.float32)
    for plane, values in zip(out, stored, strict=True):  # band by band: numbers of 8 bytes are made on the way
        plane[...] = (np.clip(values, low, high) - low) / (high - low)
    return out
