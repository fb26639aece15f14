"""Colours of the demo region: surface reflectance per class and band, seasons, and which classes a prompt means.

Magnitudes follow the USGS Spectral Library (Kokaly et al. 2017, doi:10.3133/ds1035), the ECOSTRESS library (Meerdink
et al. 2019, doi:10.1016/j.rse.2019.05.015) and, for vegetation canopies, PROSAIL (Jacquemoud et al. 2009,
doi:10.1016/j.rse.2008.01.026); moist soil and sand are darkened as in Lobell and Asner (2002,
doi:10.2136/sssaj2002.7220). All are rounded to the bands of Sentinel-2 MSI. They agree with the published tests of the
usual indices: NDWI > 0 for water (McFeeters 1996), MNDWI > 0 (Xu 2006), NDSI >= 0.4 and NIR > 0.11 for snow (Hall et
al. 1995), NDBI > 0 for built-up (Zha et al. 2003). They are typical values, not measurements of a place.
"""

from __future__ import annotations

import difflib

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.sources.synthetic import landscape as land

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
"""Common names, in the order of all spectra."""

CLASS_NAMES = {
    land.WATER: "water",
    land.FOREST: "forest",
    land.CROPS: "crops",
    land.GRASS: "grassland",
    land.BARE: "bare soil",
    land.BUILT: "built-up",
    land.ROAD: "road",
    land.SAND: "sand",
    land.ROCK: "rock",
    land.SNOW: "snow",
    land.TRACK: "farm track",
}

PROMPT_CLASSES = {
    "water": (land.WATER,),
    "forest": (land.FOREST,),
    "trees": (land.FOREST,),
    "crops": (land.CROPS,),
    "cropland": (land.CROPS,),
    "grassland": (land.GRASS,),
    "vegetation": (land.FOREST, land.CROPS, land.GRASS),
    "bare soil": (land.BARE,),
    "built-up": (land.BUILT, land.ROAD),
    "building": (land.BUILT,),
    "road": (land.ROAD, land.TRACK),
    "sand": (land.SAND,),
    "beach": (land.SAND,),
    "rock": (land.ROCK,),
    "snow": (land.SNOW,),
}
"""Prompt text -> classes of the truth that it means."""

_END_MEMBERS: dict[int, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    # class: (mix 0, mix 1, strength of the texture)   blue   green  red    nir    swir16 swir22
    land.WATER: ((0.042, 0.038, 0.021, 0.011, 0.006, 0.004), (0.078, 0.105, 0.078, 0.034, 0.011, 0.007), 0.10),
    land.FOREST: ((0.020, 0.034, 0.024, 0.235, 0.100, 0.048), (0.027, 0.056, 0.030, 0.420, 0.185, 0.082), 0.22),
    land.CROPS: ((0.078, 0.106, 0.138, 0.215, 0.290, 0.250), (0.030, 0.070, 0.034, 0.470, 0.195, 0.090), 0.14),
    land.GRASS: ((0.058, 0.088, 0.088, 0.270, 0.265, 0.160), (0.036, 0.080, 0.046, 0.410, 0.225, 0.115), 0.12),
    land.BARE: ((0.062, 0.083, 0.108, 0.155, 0.180, 0.145), (0.100, 0.142, 0.190, 0.265, 0.350, 0.315), 0.14),
    land.BUILT: ((0.150, 0.165, 0.175, 0.195, 0.215, 0.205), (0.088, 0.110, 0.165, 0.215, 0.275, 0.255), 0.40),
    land.ROAD: ((0.080, 0.090, 0.098, 0.122, 0.145, 0.138), (0.155, 0.180, 0.205, 0.235, 0.265, 0.245), 0.06),
    land.SAND: ((0.135, 0.175, 0.210, 0.260, 0.220, 0.165), (0.215, 0.285, 0.345, 0.415, 0.445, 0.400), 0.10),
    land.ROCK: ((0.085, 0.098, 0.110, 0.140, 0.142, 0.130), (0.195, 0.220, 0.240, 0.275, 0.272, 0.245), 0.22),
    land.SNOW: ((0.680, 0.680, 0.660, 0.570, 0.100, 0.090), (0.920, 0.930, 0.920, 0.830, 0.125, 0.105), 0.05),
    land.TRACK: ((0.075, 0.095, 0.120, 0.190, 0.255, 0.225), (0.115, 0.145, 0.180, 0.240, 0.300, 0.270), 0.06),
}

CLOUD_REFLECTANCE = np.array([0.62, 0.62, 0.63, 0.66, 0.46, 0.36], np.float32)
"""Thick water cloud at the top of the boundary layer; darker in the short-wave infrared, where droplets absorb."""

SKYLIGHT = np.array([0.42, 0.36, 0.30, 0.22, 0.15, 0.12], np.float32)
"""Light that is left in a shadow, as a share of full light: diffuse sky, strongest in the blue."""

_SEASONS = ((60.0, 214.0), (152.0, 262.0), (70.0, 205.0), (146.0, 270.0))
"""Days of the year at which a crop type is half grown and half ripe: winter cereal, maize, rapeseed, sugar beet."""


def end_members() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(reflectance float32 (class, member, band), texture strength float32 (class,)), indexed by class code."""
    spectra = np.zeros((max(_END_MEMBERS) + 1, 2, len(BANDS)), np.float32)
    strength = np.zeros(len(spectra), np.float32)
    for code, (low, high, texture) in _END_MEMBERS.items():
        spectra[code] = low, high
        strength[code] = texture
    return spectra, strength


def season_mix(day_of_year: float) -> NDArray[np.float32]:
    """Mix between end members on a day: float32 (class, kind, 256), to be indexed by a pixel's own `mix`.

    Fields follow a double logistic of green cover (Beck et al. 2006, doi:10.1016/j.rse.2005.10.021) whose dates shift
    by up to ten days from parcel to parcel; grass and broad-leaved forest are greenest in early summer.
    """
    own = np.linspace(0.0, 1.0, 256)
    out = np.broadcast_to(own, (max(_END_MEMBERS) + 1, len(_SEASONS), 256)).astype(np.float32)
    for kind, (grown, ripe) in enumerate(_SEASONS):
        shift = 20.0 * (own - 0.5)
        cover = _logistic((day_of_year - grown - shift) / 9.0) - _logistic((day_of_year - ripe - shift) / 7.0)
        out[land.CROPS, kind] = np.clip(cover, 0.0, 1.0) * (0.80 + 0.20 * own)
    summer = np.exp(-(((day_of_year - 172.0) / 75.0) ** 2))
    out[land.GRASS] *= np.float32(0.35 + 0.65 * summer)
    out[land.FOREST] *= np.float32(0.30 + 0.70 * summer)
    return out


def truth_classes(prompt_text: str) -> tuple[int, ...]:
    """Class codes of the truth that a prompt means.

    Raises
    ------
    ConfigError : `prompt-invalid`: the truth of the demo region does not know the prompt.
    """
    text = " ".join(prompt_text.lower().split())
    if text not in PROMPT_CLASSES:
        close = difflib.get_close_matches(text, PROMPT_CLASSES, n=1)
        hint = f'Did you mean "{close[0]}"? ' if close else ""
        raise ConfigError(
            "prompt-invalid",
            "the demo region has no truth for this prompt",
            where=f'prompt "{prompt_text}"',
            fix=f"{hint}It knows: {', '.join(PROMPT_CLASSES)}.",
        )
    return PROMPT_CLASSES[text]


def _logistic(value: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-value))
