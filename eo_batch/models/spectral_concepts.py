"""What the `spectral` segmenter knows: published indices, concepts made of thresholds on them, and the words for them.

A table, not a program: `docs/reference/spectral.md` is written from it. Thresholds come from the literature or are argued
in `why`; none is fitted to a scene.
"""

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
LOGIT_AT_MARGIN = 2.0
"""Logit at one margin beyond a threshold: score 0.88. At the threshold the logit is 0 and the score 0.5."""

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


@dataclass(frozen=True)
class Condition:
    """Logit = 2 x (index - threshold) / margin, or its negative where the index must lie below.

    Parameters
    ----------
    index : name of an `Index`.
    side : "above" or "below" the threshold.
    threshold : value of the index at which the score is 0.5.
    margin : distance from the threshold at which the score is 0.88.
    why : where threshold and margin come from.
    """

    index: str
    side: str
    threshold: float
    margin: float
    why: str


@dataclass(frozen=True)
class Rule:
    """Conditions that must hold together: the logit is the smallest of theirs (Zadeh's fuzzy AND)."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True)
class Concept:
    """Something that reflectance alone can tell.

    Parameters
    ----------
    name : its own word.
    synonyms : other words that mean the same.
    narrower : words that mean less; they are answered with the whole concept, and `explain` says so.
    rules : alternatives in order of preference; the first whose bands are there is used.
    limits : what it is known to confuse.
    """

    name: str
    synonyms: tuple[str, ...]
    narrower: tuple[str, ...]
    rules: tuple[Rule, ...]
    limits: str


def _difference(first: str, second: str) -> Callable[[Bands], Plane]:
    def compute(band: Bands) -> Plane:
        a, b = band(first), band(second)
        return (a - b) / (a + b)

    return compute


def _brightness(band: Bands) -> Plane:
    return (band("blue") + band("green") + band("red")) / np.float32(3)


def _whiteness(band: Bands) -> Plane:
    mean = _brightness(band)
    return (np.abs(band("blue") - mean) + np.abs(band("green") - mean) + np.abs(band("red") - mean)) / mean


def _hot(band: Bands) -> Plane:
    return band("blue") - np.float32(0.5) * band("red") - np.float32(0.08)


def _bsi(band: Bands) -> Plane:
    soil, other = band("swir16") + band("red"), band("nir") + band("blue")
    return (soil - other) / (soil + other)


def _bai_distance(band: Bands) -> Plane:
    red, nir = band("red") - np.float32(0.1), band("nir") - np.float32(0.06)
    return np.sqrt(red * red + nir * nir)


def _band(name: str) -> Callable[[Bands], Plane]:
    return lambda band: band(name)


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
                "brightness",
                "(blue + green + red) / 3",
                "mean visible reflectance, Zhu & Woodcock (2012), Remote Sensing of Environment 118, 83-94, equation 2",
                ("blue", "green", "red"),
                _brightness,
            ),
            Index(
                "whiteness",
                "(|blue - m| + |green - m| + |red - m|) / m, m = (blue + green + red) / 3",
                "Gomez-Chova et al. (2007), IEEE TGRS 45(12), 4105-4118; Zhu & Woodcock (2012), equation 2",
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
            *(
                Index(name, name, "surface reflectance of the band", (name,), _band(name))
                for name in ("green", "red", "nir", "swir16", "swir22")
            ),
        )
    }
)

_NOT_SNOW = Condition(
    "nir",
    "below",
    0.15,
    0.04,
    "snow and cloud reflect more than 0.11 in the near infrared (Hall et al. 1995), water less; raised for silt",
)

CONCEPTS: tuple[Concept, ...] = (
    Concept(
        name="water",
        synonyms=("open water", "surface water", "water body", "inland water"),
        narrower=(
            "river",
            "lake",
            "pond",
            "reservoir",
            "sea",
            "ocean",
            "flood",
            "flooded area",
            "flood water",
            "stream",
            "canal",
        ),
        rules=(
            Rule((Condition("MNDWI", "above", 0.0, 0.1, "Xu (2006): water is positive"), _NOT_SNOW)),
            Rule((Condition("NDWI", "above", 0.0, 0.1, "McFeeters (1996): water is positive"), _NOT_SNOW)),
        ),
        limits="shadow on snow; dark roofs and terrain shadow (NDWI more than MNDWI)",
    ),
    Concept(
        name="vegetation",
        synonyms=("green vegetation", "plant", "greenery", "vegetated area"),
        narrower=("tree", "forest", "woodland", "crop", "cropland", "field", "grass", "grassland", "meadow", "pasture", "shrub"),
        rules=(
            Rule(
                (Condition("NDVI", "above", 0.35, 0.15, "middle of bare soil (0.2) and full cover (0.5), Sobrino et al. (2004)"),)
            ),
        ),
        limits="dry grass and leafless trees are not found",
    ),
    Concept(
        name="bare soil",
        synonyms=("bare ground", "bare land", "soil", "barren land"),
        narrower=("sand", "beach", "desert", "ploughed field", "fallow"),
        rules=(
            Rule(
                (
                    Condition("BSI", "above", 0.0, 0.05, "soil reflects more in swir16 and red than in nir and blue"),
                    Condition("NDVI", "below", 0.2, 0.1, "bare soil, Sobrino et al. (2004)"),
                )
            ),
        ),
        limits="roofs and roads of mineral materials look the same",
    ),
)
