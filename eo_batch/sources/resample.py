"""Anchored resampling: source pixels to grid pixels, so that no result depends on the window that is read.

Every grid pixel's place in the source is computed from its absolute row and column alone: exactly at the nodes of a lattice
of `STEP` pixels anchored at pixel (0, 0) of the grid, and between nodes by bilinear interpolation. A lattice cell whose
centre would be misplaced by more than `TOLERANCE_PX`, or that has a node without a place, is computed pixel by pixel.
Stock GDAL warping derives its kernel and its coordinate approximation from the window, so there chunks differ from the whole.

Arrays of pixels are float32 with NaN for "not observed". Positions are (column u, row v) of the source, float64, with
pixel (i, j) covering [j, j + 1) x [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from eo_batch.core.grid import Span

STEP = 16
"""Distance of lattice nodes in grid pixels."""
TOLERANCE_PX = 1e-3
"""Largest misplacement at a cell's centre, in source pixels, that is left to interpolation."""
TIE_PX = 1e-6
"""A grid pixel centre closer than this to the next source pixel belongs to it, so that ties fall on one side everywhere."""

Floats = NDArray[np.float64]
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Georeference:
    """How grid pixels find their place in a source raster.

    Parameters
    ----------
    resolution : CRS units per grid pixel.
    to_source : coordinates of the grid's CRS to the source's CRS, or None where they are the same.
    inverse : affine from coordinates of the source's CRS to its (column, row).
    """

    resolution: float
    to_source: Transformer | None
    inverse: Affine

    def locate(self, rows: Floats, cols: Floats) -> tuple[Floats, Floats]:
        """Source (u, v) of grid positions; pixel (row, col) of the grid has its centre at (row + 0.5, col + 0.5).

        Positions without a place in the source are NaN.
        """
        x, y = cols * self.resolution, rows * -self.resolution
        if self.to_source is not None:
            x, y = self.to_source.transform(x, y)
        a, b, c, d, e, f = self.inverse[:6]
        with np.errstate(invalid="ignore"):
            u, v = a * x + b * y + c, d * x + e * y + f
        lost = ~(np.isfinite(u) & np.isfinite(v))
        u[lost] = v[lost] = np.nan
        return u, v


@dataclass(frozen=True, eq=False)
class Positions:
    """Places of the grid pixels `rows` x `cols` in a source.

    Parameters
    ----------
    u, v : float64 (node row, node column): places of lattice nodes (first_row + i) * STEP, (first_col + j) * STEP.
    exact : int32 (cell row, cell column): entry of `exact_u`, `exact_v` that replaces the interpolation, or -1.
    exact_u, exact_v : float64 (entry, STEP, STEP): places of pixel centres.
    """

    rows: Span
    cols: Span
    u: Floats
    v: Floats
    exact: NDArray[np.int32]
    exact_u: Floats
    exact_v: Floats

    def part(self, rows: Span, cols: Span) -> Positions:
        """The same places for pixels within these."""
        i0, j0 = rows.start // STEP - self.rows.start // STEP, cols.start // STEP - self.cols.start // STEP
        i1 = (rows.stop - 1) // STEP - self.rows.start // STEP + 1
        j1 = (cols.stop - 1) // STEP - self.cols.start // STEP + 1
        nodes = (slice(i0, i1 + 1), slice(j0, j1 + 1))
        return Positions(rows, cols, self.u[nodes], self.v[nodes], self.exact[i0:i1, j0:j1], self.exact_u, self.exact_v)

    def source_box(self) -> tuple[float, float, float, float] | None:
        """(least u, least v, greatest u, greatest v) of all pixels, or None where no pixel has a place."""
        entries = self.exact[self.exact >= 0]
        used = np.zeros(self.u.shape, bool)  # nodes of interpolated cells
        interpolated = self.exact < 0
        for corner in (np.s_[:-1, :-1], np.s_[:-1, 1:], np.s_[1:, :-1], np.s_[1:, 1:]):
            used[corner] |= interpolated
        u = np.concatenate([self.u[used], self.exact_u[entries].ravel()])
        v = np.concatenate([self.v[used], self.exact_v[entries].ravel()])
        seen = np.isfinite(u)
        if not seen.any():
            return None
        return float(u[seen].min()), float(v[seen].min()), float(u[seen].max()), float(v[seen].max())


def positions(place: Georeference, rows: Span, cols: Span) -> Positions:
    """Places in the source of all grid pixels `rows` x `cols`."""
    i = np.arange(rows.start // STEP, (rows.stop - 1) // STEP + 2, dtype=np.float64)
    j = np.arange(cols.start // STEP, (cols.stop - 1) // STEP + 2, dtype=np.float64)
    u, v = _locate_mesh(place, i * STEP, j * STEP)
    exact = np.full((len(i) - 1, len(j) - 1), -1, np.int32)
    if place.to_source is None:  # affine: interpolation is exact
        empty = np.empty((0, STEP, STEP))
        return Positions(rows, cols, u, v, exact, empty, empty)
    cu, cv = _locate_mesh(place, (i[:-1] + 0.5) * STEP, (j[:-1] + 0.5) * STEP)
    with np.errstate(invalid="ignore"):
        far = np.maximum(np.abs(_cell_means(u) - cu), np.abs(_cell_means(v) - cv))
    known = np.isfinite(cu) | _any_corner(np.isfinite(u))
    cells = np.argwhere(known & ~(far <= TOLERANCE_PX))
    exact[cells[:, 0], cells[:, 1]] = np.arange(len(cells))
    inside = np.arange(STEP) + 0.5
    r = (i[cells[:, 0]] * STEP)[:, None, None] + inside[None, :, None]
    c = (j[cells[:, 1]] * STEP)[:, None, None] + inside[None, None, :]
    r, c = np.broadcast_arrays(r, c)
    eu, ev = place.locate(r.ravel(), c.ravel())
    return Positions(rows, cols, u, v, exact, eu.reshape(r.shape), ev.reshape(r.shape))


def resample(
    source: Pixels,
    at: Positions,
    *,
    origin: tuple[int, int],
    extent: tuple[float, float],
    nearest: bool,
    out: Pixels,
) -> None:
    """Fill `out` with the source's values at the grid pixels of `at`.

    A grid pixel is observed exactly where the source pixel that contains its centre is. "Bilinear" is then the mean of the
    four nearest source pixels, weighted by distance, over those that are observed (the rule of GDAL's warper).

    Parameters
    ----------
    source : float32 (y, x), NaN where not observed: the part of the raster that starts at `origin`; it holds every source
        pixel that `at` needs.
    origin : (row, column) of `source[0, 0]` in the raster.
    extent : (rows, columns) of the raster in pixels; the last pixel may be cut by it.
    out : float32 (y, x) over `at.rows` x `at.cols`; only pixels observed are written.
    """
    kernel = _nearest if nearest else _bilinear
    kernel(
        source,
        np.int64(origin[0]),
        np.int64(origin[1]),
        np.float64(extent[0]),
        np.float64(extent[1]),
        np.ascontiguousarray(at.u),
        np.ascontiguousarray(at.v),
        np.ascontiguousarray(at.exact),
        at.exact_u,
        at.exact_v,
        np.int64(at.rows.start),
        np.int64(at.cols.start),
        out,
    )


def average_blocks(source: Pixels, size: int) -> Pixels:
    """Means of blocks of `size` x `size` pixels over those observed; NaN where none is.

    Parameters
    ----------
    source : float32 (y, x) that starts at a block's corner; blocks at the far edges may be cut.
    """
    height, width = source.shape
    out = np.empty((-(-height // size), -(-width // size)), np.float32)
    _average(source, np.int64(size), out)
    return out


def decode(numbers: NDArray[Any], *, nodata: float | None, scale: float, offset: float, out: Pixels) -> None:
    """Physical values of stored numbers: `float32(number) * float32(scale) + float32(offset)`, each step in float32.

    Parameters
    ----------
    numbers : (y, x) of any real dtype.
    nodata : stored number that means "not observed"; NaN and infinite numbers always do.
    out : float32 (y, x); NaN where not observed.
    """
    if numbers.dtype.kind not in "iuf":
        raise TypeError(f"numbers of dtype {numbers.dtype} cannot be decoded")
    if numbers.dtype.kind == "f":
        marker = numbers.dtype.type(np.nan if nodata is None else nodata)
        _decode_floats(numbers, marker, np.float32(scale), np.float32(offset), out)
        return
    info = np.iinfo(numbers.dtype)
    marked = nodata is not None and np.isfinite(nodata) and info.min <= nodata <= info.max and float(nodata).is_integer()
    marker = numbers.dtype.type(nodata if marked else 0)
    (_decode_marked if marked else _decode_plain)(numbers, marker, np.float32(scale), np.float32(offset), out)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: compiled by numba, released from the interpreter's lock, and kept on disk where that is possible."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # no writable folder for compiled code: compile once per process
            return numba.njit(nogil=True, **options)(function)

    return decorate


def _locate_mesh(place: Georeference, rows: Floats, cols: Floats) -> tuple[Floats, Floats]:
    c, r = np.meshgrid(cols, rows)
    u, v = place.locate(r.ravel(), c.ravel())
    return u.reshape(r.shape), v.reshape(r.shape)


def _cell_means(nodes: Floats) -> Floats:
    return (nodes[:-1, :-1] + nodes[:-1, 1:] + nodes[1:, :-1] + nodes[1:, 1:]) / 4


def _any_corner(nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return nodes[:-1, :-1] | nodes[:-1, 1:] | nodes[1:, :-1] | nodes[1:, 1:]


# Sums are written out in one fixed order and compiled without fast-math, so every machine rounds alike.


@compiled()
def _bilinear(source, row0, col0, height, width, u, v, exact, exact_u, exact_v, first_row, first_col, out):  # type: ignore[no-untyped-def]
    i0, j0 = first_row // STEP, first_col // STEP
    last_row, last_col = int(np.ceil(height)) - 1, int(np.ceil(width)) - 1
    n_rows, n_cols = source.shape
    if n_rows == 0 or n_cols == 0:
        return
    for y in range(out.shape[0]):
        row = first_row + y
        i = row // STEP - i0
        ty = (row - (i + i0) * STEP + 0.5) / STEP
        for j in range(exact.shape[1]):
            start = max(first_col, (j + j0) * STEP)
            stop = min(first_col + out.shape[1], (j + j0 + 1) * STEP)
            entry = exact[i, j]
            ua = u[i, j] * (1.0 - ty) + u[i + 1, j] * ty
            ub = u[i, j + 1] * (1.0 - ty) + u[i + 1, j + 1] * ty
            va = v[i, j] * (1.0 - ty) + v[i + 1, j] * ty
            vb = v[i, j + 1] * (1.0 - ty) + v[i + 1, j + 1] * ty
            for col in range(start, stop):
                k = col - (j + j0) * STEP
                if entry < 0:
                    tx = (k + 0.5) / STEP
                    pu = ua * (1.0 - tx) + ub * tx
                    pv = va * (1.0 - tx) + vb * tx
                else:
                    pu = exact_u[entry, row - (i + i0) * STEP, k]
                    pv = exact_v[entry, row - (i + i0) * STEP, k]
                if not (pu >= -TIE_PX and pv >= -TIE_PX and pu < width - TIE_PX and pv < height - TIE_PX):
                    continue
                x0, y0 = int(np.floor(pu - 0.5)), int(np.floor(pv - 0.5))
                fx, fy = pu - 0.5 - x0, pv - 0.5 - y0
                x1, y1 = min(x0 + 1, last_col) - col0, min(y0 + 1, last_row) - row0
                x0, y0 = max(x0, 0) - col0, max(y0, 0) - row0
                a, b, c, d = source[y0, x0], source[y0, x1], source[y1, x0], source[y1, x1]
                value = (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy
                if value == value:
                    out[y, col - first_col] = value
                    continue
                near = source[min(int(np.floor(pv + TIE_PX)), last_row) - row0, min(int(np.floor(pu + TIE_PX)), last_col) - col0]
                if near == near:
                    total, weight = 0.0, 0.0
                    for tap, w in ((a, (1.0 - fx) * (1.0 - fy)), (b, fx * (1.0 - fy)), (c, (1.0 - fx) * fy), (d, fx * fy)):
                        if tap == tap:
                            total += tap * w
                            weight += w
                    out[y, col - first_col] = total / weight if weight > 0.0 else near


@compiled()
def _nearest(source, row0, col0, height, width, u, v, exact, exact_u, exact_v, first_row, first_col, out):  # type: ignore[no-untyped-def]
    i0, j0 = first_row // STEP, first_col // STEP
    n_rows, n_cols = source.shape
    if n_rows == 0 or n_cols == 0:
        return
    for y in range(out.shape[0]):
        row = first_row + y
        i = row // STEP - i0
        ty = (row - (i + i0) * STEP + 0.5) / STEP
        for j in range(exact.shape[1]):
            start = max(first_col, (j + j0) * STEP)
            stop = min(first_col + out.shape[1], (j + j0 + 1) * STEP)
            entry = exact[i, j]
            ua = u[i, j] * (1.0 - ty) + u[i + 1, j] * ty
            ub = u[i, j + 1] * (1.0 - ty) + u[i + 1, j + 1] * ty
            va = v[i, j] * (1.0 - ty) + v[i + 1, j] * ty
            vb = v[i, j + 1] * (1.0 - ty) + v[i + 1, j + 1] * ty
            for col in range(start, stop):
                k = col - (j + j0) * STEP
                if entry < 0:
                    tx = (k + 0.5) / STEP
                    pu = ua * (1.0 - tx) + ub * tx
                    pv = va * (1.0 - tx) + vb * tx
                else:
                    pu = exact_u[entry, row - (i + i0) * STEP, k]
                    pv = exact_v[entry, row - (i + i0) * STEP, k]
                if not (pu >= -TIE_PX and pv >= -TIE_PX and pu < width - TIE_PX and pv < height - TIE_PX):
                    continue
                value = source[int(np.floor(pv + TIE_PX)) - row0, int(np.floor(pu + TIE_PX)) - col0]
                if value == value:
                    out[y, col - first_col] = value


@compiled()
def _average(source, size, out):  # type: ignore[no-untyped-def]
    height, width = source.shape
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total, count = 0.0, 0
            for y in range(i * size, min((i + 1) * size, height)):
                for x in range(j * size, min((j + 1) * size, width)):
                    value = source[y, x]
                    if value == value:
                        total += value
                        count += 1
            out[i, j] = total / count if count > 0 else np.nan


@compiled()
def _decode_plain(numbers, marker, scale, offset, out):  # type: ignore[no-untyped-def]
    for y in range(numbers.shape[0]):
        for x in range(numbers.shape[1]):
            out[y, x] = np.float32(numbers[y, x]) * scale + offset


@compiled()
def _decode_marked(numbers, marker, scale, offset, out):  # type: ignore[no-untyped-def]
    for y in range(numbers.shape[0]):
        for x in range(numbers.shape[1]):
            value = np.float32(numbers[y, x]) * scale + offset
            out[y, x] = np.float32(np.nan) if numbers[y, x] == marker else value


@compiled()
def _decode_floats(numbers, marker, scale, offset, out):  # type: ignore[no-untyped-def]
    for y in range(numbers.shape[0]):
        for x in range(numbers.shape[1]):
            number = numbers[y, x]
            value = np.float32(number) * scale + offset
            lost = number == marker or not (abs(value) <= np.float32(3.4028234e38))
            out[y, x] = np.float32(np.nan) if lost else value
