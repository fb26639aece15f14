"""True area of pixels on the ellipsoid, in integers, so that sums over chunks in any order are exact.

The area of a pixel is |dX/dx x dX/dy| r^2 with X the point on the ellipsoid (Earth-centred coordinates) of a map position;
the derivatives are central differences over one pixel. It is computed on a lattice anchored at the CRS origin and
interpolated bilinearly between, so it is a function of the absolute pixel index alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from eo_batch.core.grid import Grid, Span

LATTICE_M = 10_000.0
"""Lattice step. Areal scale of the usual projections is linear over it to 1e-6 (measured: tests/outputs/test_areas.py)."""
MAX_STEP_PX = 256
_EQUATOR_DEG_M = 111_319.49


@dataclass(frozen=True)
class PixelAreas:
    """Areas of the pixels of `grid` as whole multiples of `unit_m2`."""

    grid: Grid

    @cached_property
    def _crs(self) -> CRS:
        return CRS.from_user_input(self.grid.crs)

    @property
    def _nominal_m(self) -> float:
        """Side of a pixel in metres, roughly."""
        axis = self._crs.axis_info[0]
        metres = axis.unit_conversion_factor * (_EQUATOR_DEG_M * 180 / np.pi if self._crs.is_geographic else 1.0)
        return self.grid.resolution * metres

    @cached_property
    def unit_m2(self) -> float:
        """A power of two near 2^-24 of a nominal pixel, in m2."""
        return float(2.0 ** (round(np.log2(self._nominal_m**2)) - 24))

    @cached_property
    def step_px(self) -> int:
        """Lattice step in pixels."""
        return int(np.clip(LATTICE_M // self._nominal_m, 1, MAX_STEP_PX))

    def lattice(self, rows: Span, cols: Span) -> tuple[NDArray[np.float64], int, int]:
        """Areas at the lattice nodes around `rows` x `cols`.

        Returns
        -------
        float64 (node row, node column) in units; absolute row and column of the first node. Node (i, j) is the centre of
        the pixel (first row + i * step_px, first column + j * step_px).
        """
        step = self.step_px
        row0, col0 = rows.start // step, cols.start // step
        node_rows = np.arange(row0, (rows.stop - 1) // step + 2) * step
        node_cols = np.arange(col0, (cols.stop - 1) // step + 2) * step
        x, y = np.meshgrid((node_cols + 0.5) * self.grid.resolution, -(node_rows + 0.5) * self.grid.resolution)
        return self._area_m2(x, y) / self.unit_m2, row0 * step, col0 * step

    def of(self, rows: Span, cols: Span) -> NDArray[np.int64]:
        """int64 (y, x): area of every pixel of `rows` x `cols` in units (the rule; the tracer does the same inline)."""
        nodes, row0, col0 = self.lattice(rows, cols)
        step = self.step_px
        y, x = np.arange(rows.start, rows.stop) - row0, np.arange(cols.start, cols.stop) - col0
        i, j, fy, fx = y // step, x // step, (y % step / step)[:, None], (x % step / step)[None]
        upper = nodes[i][:, j] * (1 - fx) + nodes[i][:, j + 1] * fx
        lower = nodes[i + 1][:, j] * (1 - fx) + nodes[i + 1][:, j + 1] * fx
        return np.floor(upper * (1 - fy) + lower * fy + 0.5).astype(np.int64)

    @cached_property
    def _to_geodetic(self) -> Transformer:
        return Transformer.from_crs(self._crs, self._crs.geodetic_crs, always_xy=True)

    def _area_m2(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Area in m2 of the pixels with centres at x, y (CRS units); 0 where the projection has no place."""
        half = self.grid.resolution / 2
        along_x = self._on_ellipsoid(x + half, y) - self._on_ellipsoid(x - half, y)
        along_y = self._on_ellipsoid(x, y + half) - self._on_ellipsoid(x, y - half)
        area = np.linalg.norm(np.cross(along_x, along_y), axis=-1)
        return np.where(np.isfinite(area), area, 0.0)

    def _on_ellipsoid(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Earth-centred coordinates in metres, float64 (..., 3), of map positions at height 0."""
        geodetic = self._crs.geodetic_crs
        unit = geodetic.axis_info[0].unit_conversion_factor  # radians; degrees in most, grads in some
        if not self._crs.is_geographic:
            x, y = self._to_geodetic.transform(x, y)
        lon, lat = np.asarray(x) * unit, np.clip(np.asarray(y) * unit, -np.pi / 2, np.pi / 2)
        ellipsoid = self._crs.ellipsoid or CRS.from_epsg(4326).ellipsoid
        a = ellipsoid.semi_major_metre
        f = 1 / ellipsoid.inverse_flattening if ellipsoid.inverse_flattening else 0.0
        e2 = f * (2 - f)
        normal = a / np.sqrt(1 - e2 * np.sin(lat) ** 2)  # radius of curvature in the prime vertical
        parts = (normal * np.cos(lat) * np.cos(lon), normal * np.cos(lat) * np.sin(lon), normal * (1 - e2) * np.sin(lat))
        return np.stack(parts, axis=-1)
