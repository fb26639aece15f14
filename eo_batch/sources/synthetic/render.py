"""What a satellite sees of the demo region: digital numbers of a scene, as a pure function of absolute pixel indices.

ground -> spectrum of the season -> light on the slope -> blur of the optics -> clouds and their shadows -> noise -> numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from eo_batch.core.grid import Span
from eo_batch.sources.synthetic import landscape as land
from eo_batch.sources.synthetic.scenes import RESOLUTION_M, DemoRegion, DemoScene, positions
from eo_batch.sources.synthetic.spectra import BANDS, CLOUD_REFLECTANCE, SKYLIGHT, end_members, season_mix

SCALE, OFFSET, NODATA = 0.0001, -0.1, 0
"""Reflectance = number * SCALE + OFFSET, as Sentinel-2 L2A since processing baseline 04.00."""

PAD_PX = 2
"""Pixels around a window that its own pixels depend on: one for slopes, one for the blur."""

_CLOUD_BASE_M = 1500.0
_SCL_RANK = np.array([0, 5, 6, 4, 11, 10, 3, 8, 9], np.uint8)  # SCL codes; of 2 x 2 pixels the last one here wins
_SCL_RANK_OF = np.zeros(12, np.uint8)
_SCL_RANK_OF[_SCL_RANK] = np.arange(len(_SCL_RANK))


def render(
    demo: DemoRegion, scene: DemoScene, rows: Span, cols: Span, *, layers: NDArray[Any] | None = None
) -> dict[str, NDArray[Any]]:
    """Numbers of a window of a scene, as they lie in its files.

    Parameters
    ----------
    rows, cols : absolute indices of 10 m pixels in the grid of `scene.crs`, even at both ends.
    layers : `demo.layers` of the window with `PAD_PX` more on each side, where the caller has them already.

    Returns
    -------
    band -> uint16 (y, x) of the names in `BANDS`, and "scl" -> uint8 (y, x). SCL and, unless the region says 10 m, the
    short-wave infrared bands have 20 m pixels.
    """
    wide_rows, wide_cols = _padded(rows), _padded(cols)
    if layers is None:
        layers = demo.layers(scene.crs, wide_rows, wide_cols)
    east, north = positions(scene.crs, wide_rows, wide_cols)
    reflectance = _surface(demo, scene, layers, east, north)
    inner = (slice(PAD_PX, -PAD_PX), slice(PAD_PX, -PAD_PX))
    east, north = np.ascontiguousarray(east[inner]), np.ascontiguousarray(north[inner])
    seen = demo.swath_margin(scene.acquisition, east, north) >= 0.0
    clouds, shadows = _sky(scene, east, north)
    numbers = np.empty((len(BANDS), len(rows), len(cols)), np.uint16)
    _numbers(
        reflectance, clouds, shadows, seen, rows.start, cols.start, scene.acquisition.seed, CLOUD_REFLECTANCE, SKYLIGHT, numbers
    )
    out: dict[str, NDArray[Any]] = dict(zip(BANDS, numbers, strict=True))
    if demo.swir_resolution_m == 20:
        out["swir16"], out["swir22"] = _mean_of_four(out["swir16"]), _mean_of_four(out["swir22"])
    out["scl"] = _scene_classes(layers["cls"][inner], reflectance, clouds, shadows, seen)
    return out


def _padded(span: Span) -> Span:
    return Span(span.start - PAD_PX, span.stop + PAD_PX)


def _surface(
    demo: DemoRegion, scene: DemoScene, layers: NDArray[Any], east: NDArray[np.float64], north: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Reflectance without clouds, float32 (band, y, x), one pixel larger than the window on each side."""
    acquisition = scene.acquisition
    spectra, strength = end_members()
    elevation, azimuth = (math.radians(a) for a in acquisition.sun_elevation_azimuth)
    sun = np.array([math.cos(elevation) * math.sin(azimuth), math.cos(elevation) * math.cos(azimuth), math.sin(elevation)])
    # Surfaces look brighter when the sensor looks away from the sun: the western orbit does, and more so far from its track.
    across = 0.5 - demo.swath_margin(acquisition, east[1:-1, 1:-1], north[1:-1, 1:-1]) / (4.0 * demo.half_m)
    view = (1.0 + acquisition.side * 0.05 * across + 0.015 * acquisition.side).astype(np.float32)
    out = np.empty((len(BANDS), *view.shape), np.float32)
    arguments = (layers["cls"], layers["kind"], layers["mix"], layers["tone"], layers["height"])
    _light(*arguments, season_mix(acquisition.day_of_year), spectra, strength, sun, view, RESOLUTION_M, out)
    return out


def _sky(
    scene: DemoScene, east: NDArray[np.float64], north: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(opacity of clouds, depth of their shadows), each 0..1. A shadow lies opposite the sun from its cloud."""
    acquisition = scene.acquisition
    elevation, azimuth = (math.radians(a) for a in acquisition.sun_elevation_azimuth)
    shift = _CLOUD_BASE_M / math.tan(elevation)
    clouds = land.cloud_thickness(east, north, acquisition.seed, cover=acquisition.cloud_cover)
    towards = (east + shift * math.sin(azimuth), north + shift * math.cos(azimuth))
    return clouds, land.cloud_thickness(*towards, acquisition.seed, cover=acquisition.cloud_cover)


def _mean_of_four(numbers: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """20 m pixels of 10 m pixels: the rounded mean, nodata where one of the four is nodata."""
    four = np.stack([numbers[0::2, 0::2], numbers[0::2, 1::2], numbers[1::2, 0::2], numbers[1::2, 1::2]]).astype(np.uint32)
    return np.where((four == NODATA).any(axis=0), NODATA, (four.sum(axis=0) + 2) // 4).astype(np.uint16)


def _scene_classes(
    cls: NDArray[np.uint8],
    reflectance: NDArray[np.float32],
    clouds: NDArray[np.float32],
    shadows: NDArray[np.float32],
    seen: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Scene classification as Sentinel-2 L2A codes it, uint8 (y, x) of 20 m pixels; of four pixels the cloudiest wins."""
    red, nir = reflectance[2, 1:-1, 1:-1], reflectance[3, 1:-1, 1:-1]
    scl = np.where((nir - red) > 0.35 * (nir + red), np.uint8(4), np.uint8(5))
    scl[cls == land.WATER] = 6
    scl[cls == land.SNOW] = 11
    scl[shadows > 0.05] = 3
    for code, least in ((10, 0.01), (8, 0.15), (9, 0.5)):
        scl[clouds > least] = code
    scl[~seen] = 0
    rank = _SCL_RANK_OF[scl]
    worst = np.maximum(np.maximum(rank[0::2, 0::2], rank[0::2, 1::2]), np.maximum(rank[1::2, 0::2], rank[1::2, 1::2]))
    out: NDArray[np.uint8] = _SCL_RANK[worst]
    whole = seen[0::2, 0::2] & seen[0::2, 1::2] & seen[1::2, 0::2] & seen[1::2, 1::2]
    out[~whole] = 0
    return out


@njit(cache=True, nogil=True)
def _light(
    cls: Any,
    kind: Any,
    mix: Any,
    tone: Any,
    height: Any,
    season: Any,
    spectra: Any,
    strength: Any,
    sun: Any,
    view: Any,
    resolution: float,
    out: Any,
) -> None:
    """Spectrum times texture times light on the slope (Lambert, softened by diffuse light)."""
    level = sun[2]
    for row in range(out.shape[1]):
        for col in range(out.shape[2]):
            r, c = row + 1, col + 1
            code = cls[r, c]
            light = np.float32(1.0)
            if code != 1:
                gx = (height[r, c + 1] - height[r, c - 1]) / (2.0 * resolution)
                gy = (height[r - 1, c] - height[r + 1, c]) / (2.0 * resolution)
                facing = (level - gx * sun[0] - gy * sun[1]) / np.sqrt(1.0 + gx * gx + gy * gy)
                light = np.float32(min(1.5, 0.22 + 0.78 * max(0.0, facing) / level))
            share = season[code, kind[r, c], mix[r, c]]
            gain = light * view[row, col] * (np.float32(1.0) + strength[code] * tone[r, c] * np.float32(1.0 / 127.0))
            for band in range(out.shape[0]):
                low = spectra[code, 0, band]
                out[band, row, col] = gain * (low + share * (spectra[code, 1, band] - low))


@njit(cache=True, nogil=True)
def _numbers(
    reflectance: Any, clouds: Any, shadows: Any, seen: Any, row0: int, col0: int, seed: int, cloud: Any, skylight: Any, out: Any
) -> None:
    """Blur (1 4 1)/6 in both directions: a third of the contrast is left at the finest pattern, as in a real sensor."""
    n_band, n_row, n_col = out.shape
    for band in range(n_band):
        for row in range(n_row):
            for col in range(n_col):
                if not seen[row, col]:
                    out[band, row, col] = 0
                    continue
                r, c = row + 1, col + 1
                s = reflectance[band]
                corners = s[r - 1, c - 1] + s[r - 1, c + 1] + s[r + 1, c - 1] + s[r + 1, c + 1]
                edges = s[r - 1, c] + s[r + 1, c] + s[r, c - 1] + s[r, c + 1]
                value = (corners + 4.0 * edges + 16.0 * s[r, c]) / 36.0
                value *= 1.0 - shadows[row, col] * (1.0 - skylight[band])
                value += clouds[row, col] * (cloud[band] - value)
                bits = land.hash_bits(row0 + row, col0 + col, seed * 8 + band)
                even = np.float64(bits >> np.uint64(32)) + np.float64(bits & np.uint64(0xFFFFFFFF))
                value += (even * (1.0 / 4294967296.0) - 1.0) * (0.0025 + 0.008 * value)
                number = np.rint((value + 0.1) * 10000.0)
                out[band, row, col] = np.uint16(min(65535.0, max(1.0, number)))
