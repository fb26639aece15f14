"""Published spectral indices, as elementwise float32 arithmetic on reflectance. Each names its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Bands = Callable[[str], Plane]

FLOOR = np.float32(1e-4)
"""Reflectance below one count of Sentinel-2 is not physical (atmospheric correction can give less than 0): it is raised to
this. So no denominator of a ratio is ever 0, and a normalised difference stays in -1..1."""
ALTERNATIVES: dict[str, tuple[str, ...]] = {"nir": ("nir", "nir08")}
"""Band names that may stand in for a band, best first: narrow near infrared (Sentinel-2 B8A, Landsat 8 B5) for `nir`."""


@dataclass(frozen=True)
class Index:
    """A published combination of bands.

    Parameters
    ----------
    name, formula, source : for people; `formula` uses the band names.
    bands : common names it needs.
    compute : float32 planes of the named bands -> float32 plane. Elementwise, so that no pixel depends on another.
    """

    name: str
    formula: str
    source: str
    bands: tuple[str, ...]
    compute: Callable[[Bands], Plane]


def _ratio(first: Plane, second: Plane) -> Plane:
    return (first - second) / (first + second)


def _difference(first: str, second: str) -> Callable[[Bands], Plane]:
    return lambda band: _ratio(band(first), band(second))


def _brightness(band: Bands) -> Plane:
    return (band("blue") + band("green") + band("red")) / np.float32(3)


def _whiteness(band: Bands) -> Plane:
    mean = _brightness(band)
    return (np.abs(band("blue") - mean) + np.abs(band("green") - mean) + np.abs(band("red") - mean)) / mean


def _hot(band: Bands) -> Plane:
    return band("blue") - np.float32(0.5) * band("red") - np.float32(0.08)


def _bsi(band: Bands) -> Plane:
    return _ratio(band("swir16") + band("red"), band("nir") + band("blue"))


def _bai_distance(band: Bands) -> Plane:
    red, nir = band("red") - np.float32(0.1), band("nir") - np.float32(0.06)
    return np.sqrt(red * red + nir * nir, dtype=np.float32)


def _itself(name: str) -> Index:
    return Index(name, name, "reflectance of the band itself", (name,), lambda band: band(name))


INDICES: MappingProxyType[str, Index] = MappingProxyType(
    {
        index.name: index
        for index in (
            Index(
                "NDWI",
                "(green - nir) / (green + nir)",
                "McFeeters (1996), Int. J. Remote Sensing 17(7), 1425-1432",
                ("green", "nir"),
                _difference("green", "nir"),
            ),
            Index(
                "MNDWI",
                "(green - swir16) / (green + swir16)",
                "Xu (2006), Int. J. Remote Sensing 27(14), 3025-3033",
                ("green", "swir16"),
                _difference("green", "swir16"),
            ),
            Index(
                "NDSI",
                "(green - swir16) / (green + swir16)",
                "Hall, Riggs & Salomonson (1995), Remote Sensing of Environment 54(2), 127-140",
                ("green", "swir16"),
                _difference("green", "swir16"),
            ),
            Index(
                "NDVI",
                "(nir - red) / (nir + red)",
                "Rouse et al. (1974), Third ERTS-1 Symposium, NASA SP-351, 309-317",
                ("nir", "red"),
                _difference("nir", "red"),
            ),
            Index(
                "NDBI",
                "(swir16 - nir) / (swir16 + nir)",
                "Zha, Gao & Ni (2003), Int. J. Remote Sensing 24(3), 583-594",
                ("swir16", "nir"),
                _difference("swir16", "nir"),
            ),
            Index(
                "NBR",
                "(nir - swir22) / (nir + swir22)",
                "Key & Benson (2006), FIREMON, USDA RMRS-GTR-164-CD, LA-1",
                ("nir", "swir22"),
                _difference("nir", "swir22"),
            ),
            Index(
                "BAI distance",
                "sqrt((red - 0.1)^2 + (nir - 0.06)^2) = 1 / sqrt(BAI)",
                "Chuvieco, Martin & Palacios (2002), Int. J. Remote Sensing 23(23), 5103-5110",
                ("red", "nir"),
                _bai_distance,
            ),
            Index(
                "BSI",
                "((swir16 + red) - (nir + blue)) / ((swir16 + red) + (nir + blue))",
                "Rikimaru, Roy & Miyatake (2002), Tropical Ecology 43(1), 39-47",
                ("swir16", "red", "nir", "blue"),
                _bsi,
            ),
            Index(
                "whiteness",
                "(abs(blue - m) + abs(green - m) + abs(red - m)) / m, m = (blue + green + red) / 3",
                "Gomez-Chova et al. (2007), IEEE TGRS 45(12), 4105-4118; Zhu & Woodcock (2012), "
                "Remote Sensing of Environment 118, 83-94, equation 2",
                ("blue", "green", "red"),
                _whiteness,
            ),
            Index(
                "HOT",
                "blue - 0.5 red - 0.08",
                "Zhang, Guindon & Cihlar (2002), Remote Sensing of Environment 82, 173-187; Zhu & Woodcock (2012), equation 3",
                ("blue", "red"),
                _hot,
            ),
            *(_itself(band) for band in ("green", "red", "nir", "swir16")),
        )
    }
)
