"""Where pixels are: the grid of a run, its chunks, and the global lattice of model windows.

All positions are *absolute pixel indices*: pixel (row, col) of a grid with resolution r covers
x in [col * r, (col + 1) * r) and y in (-(row + 1) * r, -row * r], in CRS units. The lattice is anchored at the
CRS origin, not at the region or the chunk, so a pixel and a window keep their indices whatever region or chunk
size is asked for. That, and only that, is why chunk size cannot change a result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from eo_batch.core.digest import digest

if TYPE_CHECKING:
    from affine import Affine
    from odc.geo.geobox import GeoBox


_KEY = re.compile(r"t([0-9]{4,9})/y([0-9]{4,9})_x([0-9]{4,9})")


@dataclass(frozen=True, order=True)
class Span:
    """Half-open range of absolute pixel indices, rows or columns."""

    start: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def intersect(self, other: Span) -> Span:
        """Common part; empty (length 0) where there is none."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def within(self, outer: Span) -> slice:
        """Array slice that selects this span in an array that covers `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


@dataclass(frozen=True)
class Window:
    """One model input: square, at lattice position (row, col), covering `rows` x `cols` absolute pixels."""

    row: int
    col: int
    rows: Span
    cols: Span


@dataclass(frozen=True)
class Chunk:
    """Unit of work: time step `t`, chunk row `iy`, chunk column `ix`; what it owns and what it reads."""

    t: int
    iy: int
    ix: int
    rows: Span
    cols: Span
    padded_rows: Span
    padded_cols: Span

    @property
    def key(self) -> str:
        """Name of the chunk in paths and messages, made from integers only: `t0003/y0012_x0044`."""
        return chunk_key(self.t, self.iy, self.ix)

    @property
    def shape(self) -> tuple[int, int]:
        """Interior size (rows, cols) in pixels; smaller than `chunk_px` at the far edges of the grid."""
        return len(self.rows), len(self.cols)

    @property
    def padded_shape(self) -> tuple[int, int]:
        """Size (rows, cols) in pixels of what is read: the union of all windows that touch the interior."""
        return len(self.padded_rows), len(self.padded_cols)


def chunk_key(t: int, iy: int, ix: int) -> str:
    """`t0003/y0012_x0044` for (3, 12, 44)."""
    return f"t{t:04d}/y{iy:04d}_x{ix:04d}"


def chunk_index(key: str) -> tuple[int, int, int] | None:
    """(3, 12, 44) for `t0003/y0012_x0044`; None: not the key of a chunk."""
    found = _KEY.fullmatch(key)
    return None if found is None else (int(found[1]), int(found[2]), int(found[3]))


@dataclass(frozen=True)
class Grid:
    """Pixels of a run.

    Parameters
    ----------
    crs : authority code or WKT, for example "EPSG:32631".
    resolution : CRS units per pixel, both axes.
    rows, cols : absolute pixel indices covered (north to south, west to east).
    chunk_px, window_px, stride_px : sizes in pixels; 0 < stride_px <= window_px.
    """

    crs: str
    resolution: float
    rows: Span
    cols: Span
    chunk_px: int
    window_px: int
    stride_px: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) in pixels."""
        return len(self.rows), len(self.cols)

    @property
    def chunks_yx(self) -> tuple[int, int]:
        """Number of chunks along y and x."""
        return -(-len(self.rows) // self.chunk_px), -(-len(self.cols) // self.chunk_px)

    @property
    def transform(self) -> Affine:
        """Affine from (col, row) of this grid's arrays to CRS coordinates of pixel corners."""
        return self.transform_of(self.rows, self.cols)

    def transform_of(self, rows: Span, cols: Span) -> Affine:
        """Affine from (col, row) of an array that covers `rows` x `cols` to CRS coordinates of pixel corners."""
        from affine import Affine

        r = self.resolution
        return Affine(r, 0.0, cols.start * r, 0.0, -r, -rows.start * r)

    def bounds_of(self, rows: Span, cols: Span) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in CRS units of the pixels `rows` x `cols`."""
        r = self.resolution
        return cols.start * r, -rows.stop * r, cols.stop * r, -rows.start * r

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) in CRS units."""
        return self.bounds_of(self.rows, self.cols)

    def geobox_of(self, rows: Span, cols: Span) -> GeoBox:
        """The same pixels as an `odc.geo.geobox.GeoBox`."""
        from odc.geo.geobox import GeoBox

        return GeoBox((len(rows), len(cols)), self.transform_of(rows, cols), self.crs)

    def chunk(self, t: int, iy: int, ix: int) -> Chunk:
        """Chunk (t, iy, ix).

        Raises
        ------
        IndexError : the grid has no such chunk.
        """
        ny, nx = self.chunks_yx
        if not (0 <= iy < ny and 0 <= ix < nx and t >= 0):
            raise IndexError(f"chunk {chunk_key(t, iy, ix)} is outside a grid of {ny} x {nx} chunks")
        rows, cols = self._interior(self.rows, iy), self._interior(self.cols, ix)
        return Chunk(t, iy, ix, rows, cols, self.padded(rows), self.padded(cols))

    def chunks(self, t: int) -> Iterator[Chunk]:
        """All chunks of time step `t`, row by row; made one at a time."""
        ny, nx = self.chunks_yx
        for iy in range(ny):
            for ix in range(nx):
                yield self.chunk(t, iy, ix)

    def windows(self, chunk: Chunk) -> list[Window]:
        """All lattice windows that touch the interior of `chunk`, row by row: the fixed order of sums."""
        return [
            Window(row, col, self._window_span(row), self._window_span(col))
            for row in self.touching(chunk.rows)
            for col in self.touching(chunk.cols)
        ]

    @cached_property
    def window_counts(self) -> tuple[int, int]:
        """(windows scored by all chunks of one time step, distinct windows among them)."""
        scored_y = sum(len(self.touching(span)) for span in self.interiors(self.rows))
        scored_x = sum(len(self.touching(span)) for span in self.interiors(self.cols))
        return scored_y * scored_x, len(self.touching(self.rows)) * len(self.touching(self.cols))

    @property
    def padded_rows(self) -> Span:
        """Rows that some window of some chunk reads."""
        return self.padded(self.rows)

    @property
    def padded_cols(self) -> Span:
        """Columns that some window of some chunk reads."""
        return self.padded(self.cols)

    @property
    def digest(self) -> str:
        """Digest of everything that decides pixels: chunk size excluded on purpose."""
        return digest(
            {
                "crs": self.crs,
                "resolution": self.resolution,
                "rows": [self.rows.start, self.rows.stop],
                "cols": [self.cols.start, self.cols.stop],
                "window_px": self.window_px,
                "stride_px": self.stride_px,
            }
        )

    def interiors(self, whole: Span) -> Iterator[Span]:
        """Interiors of the chunks along `whole`, which is `rows` or `cols` of this grid, in order."""
        for index in range(-(-len(whole) // self.chunk_px)):
            yield self._interior(whole, index)

    def touching(self, interior: Span) -> range:
        """Lattice positions, along one axis, of the windows that touch `interior`."""
        first = (interior.start - self.window_px) // self.stride_px + 1
        last = (interior.stop - 1) // self.stride_px
        return range(first, last + 1)

    def chunks_touching(self, window: Window) -> list[tuple[int, int]]:
        """(iy, ix) of the chunks whose interior `window` touches, row by row."""
        ny, nx = self.chunks_yx
        along_y, along_x = self._chunks_along(window.rows, self.rows, ny), self._chunks_along(window.cols, self.cols, nx)
        return [(iy, ix) for iy in along_y for ix in along_x]

    def padded(self, interior: Span) -> Span:
        """Union, along one axis, of the windows that touch `interior`."""
        touching = self.touching(interior)
        return Span(self._window_span(touching[0]).start, self._window_span(touching[-1]).stop)

    def _chunks_along(self, span: Span, whole: Span, count: int) -> range:
        first, last = (span.start - whole.start) // self.chunk_px, (span.stop - 1 - whole.start) // self.chunk_px
        return range(max(0, first), min(count, last + 1))

    def _interior(self, whole: Span, index: int) -> Span:
        start = whole.start + index * self.chunk_px
        return Span(start, min(start + self.chunk_px, whole.stop))

    def _window_span(self, index: int) -> Span:
        start = index * self.stride_px
        return Span(start, start + self.window_px)


def stride_of(window_px: int, overlap: float) -> int:
    """Stride in pixels of windows that overlap their neighbours by the share `overlap` (0 <= overlap < 1)."""
    return max(1, round(window_px * (1.0 - overlap)))
