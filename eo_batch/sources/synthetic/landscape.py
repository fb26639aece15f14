"""The ground of the demo region: what lies at a point, as a pure function of its position and a seed.

Positions are metres east and north of the middle of the region in the primary UTM zone, whatever grid asks. Nothing
is stored and nothing depends on the window, so any part of an endless landscape can be made alone. Randomness is the
hash of integer lattice coordinates: the finaliser of SplitMix64 (Steele, Lea and Flood 2014,
doi:10.1145/2660193.2660195). Noise is gradient noise with the quintic fade (Perlin 2002, doi:10.1145/566654.566636).
All compiled functions live in this one file, because numba's cache watches the file of the caller only.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

WATER, FOREST, CROPS, GRASS, BARE, BUILT, ROAD, SAND, ROCK, SNOW, TRACK = range(1, 12)
"""Class codes of the truth; 0 is not used."""

LAYERS = np.dtype([("cls", "u1"), ("kind", "u1"), ("mix", "u1"), ("tone", "i1"), ("height", "f4")])
"""What `ground` tells of a pixel.

cls : class code. kind : crop type of a field (0 to 3). mix : position between the two end members of the class
(0..255). tone : texture, -127..127 = darker..brighter. height : metres above the sea, negative below it.
"""

_M1, _M2, _M3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_TURN_C, _TURN_S = 0.8, 0.6  # each octave is turned, so that the lattices do not line up
_INLAND_C, _INLAND_S = 0.80, 0.60  # direction from the sea to the mountains


def ground(x_m: NDArray[np.float64], y_m: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """The landscape at points.

    Parameters
    ----------
    x_m, y_m : float64 (y, x), metres east and north of the middle of the region.
    seed : any integer below 2**32.

    Returns
    -------
    `LAYERS` (y, x).
    """
    out = np.empty(x_m.shape, LAYERS)
    _ground(x_m, y_m, seed, out["cls"], out["kind"], out["mix"], out["tone"], out["height"])
    return out


def cloud_thickness(x_m: NDArray[np.float64], y_m: NDArray[np.float64], seed: int, *, cover: float) -> NDArray[np.float32]:
    """Opacity of clouds over points, 0 (clear) to 1 (opaque), float32 (y, x).

    Parameters
    ----------
    x_m, y_m : as in `ground`.
    seed : one number per acquisition.
    cover : wanted share of cloudy ground, 0 to 0.9; reached on average over areas of hundreds of square kilometres.
    """
    out = np.zeros(x_m.shape, np.float32)
    if cover > 0:
        # the sum of octaves is close to normal; its sigma is measured
        _clouds(x_m, y_m, seed, NormalDist(0.0, 0.28).inv_cdf(1.0 - cover), out)
    return out


def unit_hash(a: int, b: int, seed: int) -> float:
    """A number in [0, 1) for the integers `a` and `b`: the only source of chance in the demo region."""
    return float(_unit(a, b, seed))


@njit(cache=True, nogil=True)
def hash_bits(a: int, b: int, seed: int) -> Any:
    """64 even bits of three integers."""
    z = np.uint64(a) * _M1 ^ (np.uint64(b) + np.uint64(seed) * _M3) * _M2
    z = (z ^ (z >> _S30)) * _M2
    z = (z ^ (z >> _S27)) * _M3
    return z ^ (z >> _S31)


@njit(cache=True, nogil=True)
def _unit(a: int, b: int, seed: int) -> float:
    return np.float64(hash_bits(a, b, seed) >> _S11) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def _slope(a: int, b: int, seed: int, dx: float, dy: float) -> float:
    """Dot product of the offset with one of 16 gradients."""
    k = np.int64(hash_bits(a, b, seed) & np.uint64(15))
    gx, gy = _GRADIENTS[k, 0], _GRADIENTS[k, 1]
    return gx * dx + gy * dy


_GRADIENTS = np.stack([np.cos(np.arange(16) * np.pi / 8 + 0.2), np.sin(np.arange(16) * np.pi / 8 + 0.2)], axis=1)


@njit(cache=True, nogil=True)
def _noise(x: float, y: float, seed: int) -> float:
    """Gradient noise, about -1..1, sigma about 0.35; the lattice has step 1."""
    fx, fy = np.floor(x), np.floor(y)
    i, j = np.int64(fx), np.int64(fy)
    dx, dy = x - fx, y - fy
    sx = dx * dx * dx * (dx * (dx * 6.0 - 15.0) + 10.0)
    sy = dy * dy * dy * (dy * (dy * 6.0 - 15.0) + 10.0)
    a, b = _slope(i, j, seed, dx, dy), _slope(i + 1, j, seed, dx - 1.0, dy)
    c, d = _slope(i, j + 1, seed, dx, dy - 1.0), _slope(i + 1, j + 1, seed, dx - 1.0, dy - 1.0)
    low, high = a + sx * (b - a), c + sx * (d - c)
    return (low + sy * (high - low)) * 1.4


@njit(cache=True, nogil=True)
def _octaves(x: float, y: float, count: int, seed: int) -> float:
    """Sum of `count` octaves of noise, each of half the amplitude and wavelength of the one before."""
    total, amplitude = 0.0, 1.0
    for k in range(count):
        total += amplitude * _noise(x, y, seed + k)
        amplitude *= 0.5
        x, y = 2.0 * (_TURN_C * x - _TURN_S * y) + 17.3, 2.0 * (_TURN_S * x + _TURN_C * y) + 9.1
    return total


@njit(cache=True, nogil=True)
def _ridges(x: float, y: float, count: int, seed: int) -> float:
    """Ridged multifractal, 0..1: sharp crests, detail on high ground (Musgrave, in Ebert et al. 2003, chapter 16)."""
    total, amplitude, weight = 0.0, 0.5, 1.0
    for k in range(count):
        crest = 1.0 - abs(_noise(x, y, seed + k))
        crest = crest * crest * weight
        total += amplitude * crest
        weight = min(1.0, max(0.0, crest * 1.6))
        amplitude *= 0.5
        x, y = 2.0 * (_TURN_C * x - _TURN_S * y) + 5.7, 2.0 * (_TURN_S * x + _TURN_C * y) + 3.1
    return total


@njit(cache=True, nogil=True)
def _step(low: float, high: float, value: float) -> float:
    """0 at `low`, 1 at `high` (either may be the larger), smooth between."""
    t = min(1.0, max(0.0, (value - low) / (high - low)))
    return t * t * (3.0 - 2.0 * t)


@njit(cache=True, nogil=True)
def _frame(x: float, y: float, seed: int) -> tuple[float, float, float]:
    """Bent coordinates: `along`, from the sea (-5 km) over plain to the mountains (11 km), then back, and across."""
    wide_x, wide_y = x / 60000.0, y / 60000.0
    near = 1.0 - np.exp(-(x * x + y * y) / 9.0e8)  # the middle keeps its place for every seed
    bend_u = 9000.0 * near * _noise(wide_x, wide_y, seed + 11) + 2100.0 * _octaves(x / 6500.0, y / 6500.0, 2, seed + 12)
    bend_v = 9000.0 * near * _noise(wide_x, wide_y, seed + 15) + 1300.0 * _noise(x / 5000.0, y / 5000.0, seed + 16)
    u = _INLAND_C * x + _INLAND_S * y + bend_u
    v = -_INLAND_S * x + _INLAND_C * y + bend_v
    along = (u + 13000.0) % 48000.0 - 13000.0
    if along > 11000.0:
        along = 22000.0 - along  # the far side of the mountains mirrors this one
    return along, u, v


@njit(cache=True, nogil=True)
def _centre_line(along: float, lane: int, seed: int) -> float:
    """Offset (m) of a river from the middle of its lane."""
    middle = 2400.0 * (_unit(lane, 1, seed + 21) - 0.5)
    return middle + 1000.0 * _noise(along / 3600.0, lane * 7.7, seed + 22) + 330.0 * _noise(along / 1050.0, lane * 3.3, seed + 23)


@njit(cache=True, nogil=True)
def _river(along: float, v: float, seed: int) -> tuple[float, float]:
    """(distance m to the nearest river's bank, negative on the water; how deep its valley is cut, 0..1)."""
    lane = int(np.floor(v / 8500.0))
    offset = v - (np.float64(lane) + 0.5) * 8500.0
    line = _centre_line(along, lane, seed)
    lean = (_centre_line(along + 25.0, lane, seed) - line) / 25.0
    own = _step(4250.0, 3500.0, abs(offset))  # lanes do not know each other's rivers: nothing is left of one at their edge
    half = 24.0 + 36.0 * _step(6000.0, -3500.0, along) + 170.0 * _step(-3800.0, -5600.0, along)
    half *= _step(9200.0, 7600.0, along)
    middle = abs(offset - line) / np.sqrt(1.0 + lean * lean)
    bank = middle - half if half > 0.0 else 1.0e9
    valley = own * _step(1700.0, 30.0, middle)
    for side in (-1.0, 1.0):
        joins = -1500.0 + 4200.0 * _unit(lane, int(side) + 5, seed + 24)
        reach = along - joins
        life = own * _step(7000.0, 5200.0, reach)
        if reach <= 0.0 or life <= 0.0:
            continue
        sway = 420.0 * _noise(along / 1500.0, lane * 5.1 + side, seed + 25) * min(1.0, reach / 1200.0)
        steep = 0.62 / (1.0 + reach / 4500.0)
        other = abs(offset - (line + side * steep * reach + sway)) / np.sqrt(1.0 + (lean + side * steep) ** 2)
        bank = min(bank, other - 15.0 * life)
        valley = max(valley, life * _step(0.0, 600.0, reach) * _step(1300.0, 20.0, other))
    return bank, valley


@njit(cache=True, nogil=True)
def _height(x: float, y: float, along: float, valley: float, seed: int) -> tuple[float, float]:
    """(height m, share of mountain 0..1)."""
    coast = 0.014 * (along + 5200.0) + 9.0 * _octaves(x / 2300.0, y / 2300.0, 3, seed + 31)
    hill = _step(800.0, 9000.0, along)
    height = min(coast, 0.0) * 2.0 + max(coast, 0.0)
    if hill > 0.0:
        crest = _ridges(x / 5200.0, y / 5200.0, 8, seed + 41)
        rough = hill * (2350.0 * crest * crest + 500.0 * hill)
        height += rough * (1.0 - 0.7 * valley)
    return height, hill


@njit(cache=True, nogil=True)
def _segment(px: float, py: float, ax: float, ay: float, bx: float, by: float) -> float:
    """Distance from a point to a straight piece of road."""
    dx, dy = bx - ax, by - ay
    t = min(1.0, max(0.0, ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy)))
    ex, ey = px - ax - t * dx, py - ay - t * dy
    return np.sqrt(ex * ex + ey * ey)


_TOWN_M = 4300.0


@njit(cache=True, nogil=True)
def _site(i: int, j: int, seed: int) -> tuple[float, float]:
    """Where the settlement of lattice cell (i, j) is, metres."""
    return (i + 0.22 + 0.56 * _unit(i, j, seed + 51)) * _TOWN_M, (j + 0.22 + 0.56 * _unit(i, j, seed + 52)) * _TOWN_M


@njit(cache=True, nogil=True)
def _settlement(x: float, y: float, seed: int) -> tuple[float, int, int, float, float, float]:
    """(distance m to the nearest main road, nearest town: cell i, cell j, metres east and north of it, nearness 0..1)."""
    x, y = x + 260.0 * _noise(x / 2300.0, y / 2300.0, seed + 53), y + 260.0 * _noise(x / 2300.0, y / 2300.0, seed + 54)
    ci, cj = int(np.floor(x / _TOWN_M)), int(np.floor(y / _TOWN_M))
    road, best, ti, tj, tx, ty = 1.0e9, -1.0e9, ci, cj, 0.0, 0.0
    for i in range(ci - 1, ci + 2):
        for j in range(cj - 1, cj + 2):
            ax, ay = _site(i, j, seed)
            bx, by = _site(i + 1, j, seed)
            road = min(road, _segment(x, y, ax, ay, bx, by))
            bx, by = _site(i, j + 1, seed)
            road = min(road, _segment(x, y, ax, ay, bx, by))
            size = _unit(i, j, seed + 55)
            radius = 350.0 + 1500.0 * size * size * size
            if i == 0 and j == 0:
                radius = 1750.0
            dx, dy = x - ax, y - ay
            near = 1.0 - np.sqrt(dx * dx + dy * dy) / radius
            if near > best:
                best, ti, tj, tx, ty = near, i, j, dx, dy
    return road, ti, tj, tx, ty, best


@njit(cache=True, nogil=True)
def _town(tx: float, ty: float, ti: int, tj: int, near: float, x: float, y: float, seed: int) -> tuple[int, int]:
    """(class or 0, mix) inside a settlement: streets, blocks of houses with gardens, halls at the rim."""
    density = near + 0.45 * _octaves(x / 620.0, y / 620.0, 2, seed + 61)
    if density < 0.12:
        return 0, 0
    turn = 1.5 * _unit(ti, tj, seed + 63)
    c, s = np.cos(turn), np.sin(turn)
    p, q = c * tx + s * ty, -s * tx + c * ty
    i, j = np.floor(p / 130.0), np.floor(q / 92.0)
    inside_p, inside_q = p - i * 130.0, q - j * 92.0
    wide = 22.0 if int(i) % 5 == 0 else 13.0
    if inside_p < wide or inside_q < 13.0:
        return ROAD, 40 + int(60 * _unit(int(i), int(j), seed + 64))
    block = _unit(int(i), int(j), seed + 65)
    if block < 0.07:
        return (GRASS if block < 0.03 else FOREST), 190  # parks
    if density < 0.45 and block > 0.86:
        return BUILT, 5  # halls with grey roofs fill their block
    a, b = int(np.floor(p / 27.0)), int(np.floor(q / 22.0))
    lot = _unit(a, b, seed + 66)
    if lot < 0.50 + 0.48 * min(1.0, density * 1.5):
        return BUILT, int(255 * (0.10 + 0.50 * block + 0.40 * _unit(b, a, seed + 67)))
    return (FOREST if lot > 0.93 else GRASS), 150


@njit(cache=True, nogil=True)
def _fields(x: float, y: float, seed: int) -> tuple[float, int, int, int, float]:
    """(distance m to the nearest farm track, class, kind, mix, tone -1..1) of farmland.

    Blocks are Voronoi cells of a jittered lattice; each has its own direction and parcel size.
    """
    step = 1250.0
    ci, cj = int(np.floor(x / step)), int(np.floor(y / step))
    first, second, bi, bj, sx, sy, ox, oy = 1.0e18, 1.0e18, ci, cj, 0.0, 0.0, 0.0, 0.0
    for i in range(ci - 1, ci + 2):
        for j in range(cj - 1, cj + 2):
            ax, ay = (i + 0.15 + 0.7 * _unit(i, j, seed + 71)) * step, (j + 0.15 + 0.7 * _unit(i, j, seed + 72)) * step
            d = (x - ax) ** 2 + (y - ay) ** 2
            if d < first:
                second, ox, oy = first, sx, sy
                first, bi, bj, sx, sy = d, i, j, ax, ay
            elif d < second:
                second, ox, oy = d, ax, ay
    track = (second - first) / (2.0 * np.sqrt((ox - sx) ** 2 + (oy - sy) ** 2) + 1.0)
    key = np.int64(hash_bits(bi, bj, seed + 73) & np.uint64(0xFFFFFF))
    turn = np.pi * _unit(bi, bj, seed + 74)
    long_m, wide_m = 190.0 + 330.0 * _unit(key, 1, seed), 70.0 + 120.0 * _unit(key, 2, seed)
    c, s = np.cos(turn), np.sin(turn)
    p, q = c * (x - sx) + s * (y - sy), -s * (x - sx) + c * (y - sy)
    j = int(np.floor(q / wide_m))
    p += long_m * _unit(key, j, seed + 75)
    i = int(np.floor(p / long_m))
    parcel = np.int64(hash_bits(i * 4096 + j, key, seed + 76) & np.uint64(0xFFFFFF))
    pick, mix = _unit(parcel, 3, seed), int(255 * _unit(parcel, 4, seed))
    tone = 0.9 * (_unit(parcel, 5, seed) - 0.5) + 0.10 * np.sin(q / wide_m * 12.0 * np.pi)
    if pick < 0.08:
        return track, BARE, 0, mix, tone
    if pick < 0.33:
        return track, GRASS, 0, mix, tone
    return track, CROPS, int(4.0 * _unit(parcel, 6, seed)), mix, tone


@njit(cache=True, nogil=True)
def _cover(
    x: float, y: float, along: float, u: float, v: float, height: float, hill: float, bank: float, seed: int
) -> tuple[int, int, int, float]:
    """(class, kind, mix, tone -1..1) of a point."""
    if height < 0.0:
        return WATER, 0, int(255 * np.exp(height / 9.0) * 0.75), 0.12 * _noise(x / 900.0, y / 900.0, seed + 81)
    tarn = _octaves(x / 2900.0, y / 2900.0, 2, seed + 82) - 2.5 * max(0.0, hill - 0.06) - 1.2 * _step(-3300.0, -4600.0, along)
    if tarn > 0.62:
        return WATER, 0, int(255 * max(0.05, 0.55 - 2.2 * (tarn - 0.62))), 0.0
    grain = _octaves(x / 420.0, y / 420.0, 3, seed + 83)
    patch = _octaves(x / 2100.0, y / 2100.0, 3, seed + 86)
    road, ti, tj, tx, ty, near = _settlement(x, y, seed)
    near -= 3.0 * max(0.0, hill - 0.22) + 0.5 * _step(9.0, 2.0, height)
    highway = abs(along - 900.0 - 900.0 * _noise(v / 5200.0, 0.5, seed + 87))
    if highway < 17.0 and hill < 0.5:
        return ROAD, 0, 165, 0.0
    if road < 10.0 and hill < 0.62 and height > 1.5:
        return ROAD, 0, 70, 0.0
    if bank < 0.0:
        return WATER, 0, int(120 + 60 * hill + 40 * min(1.0, max(0.0, -along / 5000.0))), 0.0
    if height < 2.2 + 2.0 * patch and along < -1500.0:
        return SAND, 0, int(255 * _step(0.2, 2.0, height)), 0.35 * grain
    if bank < 16.0 and along < 5000.0 and _noise(x / 170.0, y / 170.0, seed + 89) > 0.38:
        return SAND, 0, 40, 0.2 * grain  # gravel bars
    if near > -0.6:
        cls, mix = _town(tx, ty, ti, tj, near, x, y, seed)
        if cls:
            return cls, 0, mix, 0.7 * (_unit(int(np.floor(x / 14.0)), int(np.floor(y / 14.0)), seed + 88) - 0.5)
    return _country(x, y, height, hill, bank, grain, patch, seed)


@njit(cache=True, nogil=True)
def _country(
    x: float, y: float, height: float, hill: float, bank: float, grain: float, patch: float, seed: int
) -> tuple[int, int, int, float]:
    """(class, kind, mix, tone) outside water, sand and towns: snow, rock, alpine grass, forest, farmland."""
    rough = _octaves(x / 160.0, y / 160.0, 3, seed + 91) if height > 900.0 else 0.0
    snow_line = 1880.0 + 190.0 * grain + 130.0 * rough
    if height > snow_line:
        return SNOW, 0, int(255 * _step(0.0, 380.0, height - snow_line)), 0.10 * grain
    if height > 1560.0 + 230.0 * grain + 170.0 * rough:
        return ROCK, 0, int(90 + 110 * max(0.0, min(1.0, 0.5 + grain))), 0.8 * grain
    if height > 1180.0 + 240.0 * grain + 150.0 * patch + 130.0 * rough:
        return GRASS, 0, int(max(20.0, 200.0 - (height - 1100.0) * 0.25)), 0.4 * grain
    conifer = _step(150.0, 900.0, height + 200.0 * patch)
    if bank < 55.0 + 110.0 * grain or patch + 1.5 * hill + 0.1 * grain > 0.50:
        crown = _noise(x / 23.0, y / 23.0, seed + 92) + 0.8 * _noise(x / 130.0, y / 130.0, seed + 93)
        share = (1.0 - conifer) * 0.85 + 0.30 * grain + 0.1
        return FOREST, 0, int(255 * max(0.0, min(1.0, share))), 0.75 * crown
    track, cls, kind, mix, tone = _fields(x, y, seed)
    if track < 5.5:
        return TRACK, 0, 140, 0.0
    if track < 15.0 and patch > 0.1:
        return FOREST, 0, 170, 0.3 * grain  # hedges
    return cls, kind, mix, tone + 0.35 * _octaves(x / 95.0, y / 95.0, 2, seed + 94)


@njit(cache=True, nogil=True)
def _ground(x_m: Any, y_m: Any, seed: int, cls: Any, kind: Any, mix: Any, tone: Any, height: Any) -> None:
    for row in range(x_m.shape[0]):
        for col in range(x_m.shape[1]):
            x, y = x_m[row, col], y_m[row, col]
            along, u, v = _frame(x, y, seed)
            bank, valley = _river(along, v, seed)
            metres, hill = _height(x, y, along, valley, seed)
            c, k, m, t = _cover(x, y, along, u, v, metres, hill, bank, seed)
            cls[row, col], kind[row, col] = c, k
            mix[row, col] = max(0, min(255, m))
            tone[row, col] = int(np.rint(127.0 * max(-1.0, min(1.0, t))))
            height[row, col] = metres


@njit(cache=True, nogil=True)
def _clouds(x_m: Any, y_m: Any, seed: int, level: float, out: Any) -> None:
    for row in range(x_m.shape[0]):
        for col in range(x_m.shape[1]):
            x, y = x_m[row, col] / 2600.0, y_m[row, col] / 2600.0
            total, amplitude = 0.0, 1.0
            for k in range(6):
                total += amplitude * _noise(x, y, seed + k)
                amplitude *= 0.5
                if total + 2.0 * amplitude < level - 0.06:
                    break  # noise is at most 1: the octaves that are left cannot make a cloud
                x, y = 2.0 * (_TURN_C * x - _TURN_S * y) + 31.0, 2.0 * (_TURN_S * x + _TURN_C * y) - 12.0
            out[row, col] = _step(level - 0.06, level + 0.34, total) ** 0.8
