"""Pixels of one band of one file on the grid of a run: opened under contract, tried again, never turned into nodata.

A read is decided by (file, band, grid, rule) and absolute pixel indices alone. Where the file's pixels coincide with the
grid's, they are read as they are; elsewhere `resample.py` finds them. Open files, headers and lattices are kept per process;
GDAL datasets never leave the thread that opened them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from eo_batch.core.errors import AssetError
from eo_batch.core.grid import Grid, Span
from eo_batch.core.logs import redact_logs
from eo_batch.core.records import BandAsset
from eo_batch.sources.access import AssetAccess
from eo_batch.sources.asset_errors import TRANSIENT, Retry, with_retries
from eo_batch.sources.gates import SlowHosts, Turns, gate_of, server_of
from eo_batch.sources.open_files import forget, open_limit, opened_files
from eo_batch.sources.raster import GDAL_ENV, Header, Placement, check_scale, choose_level, open_raster, place, read_header
from eo_batch.sources.resample import Pixels, Positions, average_blocks, decode, positions, resample

redact_logs("rasterio")

T = TypeVar("T")

MAX_HEADERS = 20_000
MAX_LATTICES = 16
MAX_LATTICE_BYTES = 16 * 2**20
READ_PX = 4 * 2**20
"""Source pixels held at once by one read; longer reads go strip by strip."""


@dataclass(frozen=True)
class DropRule:
    """Which numbers of a cloud mask are dropped: `classes` lists values, `bits` bit numbers of which none may be set."""

    kind: Literal["classes", "bits"]
    drop: tuple[int, ...]


@dataclass(frozen=True)
class BandRead:
    """What to read: a band asset, for whom, and by which rule.

    Parameters
    ----------
    asset : the file and the meaning of its numbers.
    owner : `band "nir" of item X`, for messages.
    nearest : nearest neighbour instead of bilinear.
    drop : for cloud masks: pixels become 1 (keep), 0 (drop) or NaN (the mask says nothing); scale and offset are not used.
    group : assets of one group must hold numbers of one kind (whole or real), or "" to not compare.
    """

    asset: BandAsset
    owner: str
    nearest: bool = False
    drop: DropRule | None = None
    group: str = ""


@dataclass
class _Lru:
    """Bounded table of a process, safe for threads."""

    size: int
    entries: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable) -> Any:
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
            return self.entries.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        with self.lock:
            self.entries[key] = value
            while len(self.entries) > self.size:
                self.entries.popitem(last=False)


_HEADERS, _LATTICES = _Lru(MAX_HEADERS), _Lru(MAX_LATTICES)
_KINDS: dict[tuple[str, str], tuple[str, str, str]] = {}
_LOCK = threading.Lock()
_OPEN = threading.local()


@dataclass(frozen=True)
class AssetReader:
    """Reads bands of files on one grid. Picklable: what it keeps is kept per process, under `token`.

    Parameters
    ----------
    token : names the run's inputs, so that two sources in one process share nothing.
    access : the door to files.
    grid : of the run.
    requests_at_once : simultaneous reads per host, as long as it does not ask for fewer.
    retry : patience.
    refused : files that cannot be used, and why, as this process has found out; nobody spends time on them again.
    slow_hosts : what is to be told of hosts that asked for slower reads.
    """

    token: str
    access: AssetAccess
    grid: Grid
    requests_at_once: int = 8
    retry: Retry = field(default_factory=Retry)
    _versions: dict[str, str] = field(default_factory=dict, repr=False, compare=False)
    refused: dict[Hashable, AssetError] = field(default_factory=dict, repr=False, compare=False)
    slow_hosts: SlowHosts = field(default_factory=SlowHosts, repr=False, compare=False)

    def read(self, wanted: BandRead, rows: Span, cols: Span, *, out: Pixels) -> int:
        """Fill `out` with the pixels of `wanted` at the grid pixels `rows` x `cols`.

        Parameters
        ----------
        out : float32 (y, x); becomes NaN where not observed.

        Returns
        -------
        Bytes of pixels decoded.

        Raises
        ------
        AssetError, PolicyError : the file cannot be read, or is not what was announced.
        """
        header, placement = self._placement(wanted)
        work = _Work(self, wanted, header, placement)
        if placement.aligned_yx is not None:
            work.read_aligned(placement.aligned_yx, rows, cols, out)
        else:
            out.fill(np.nan)
            work.read_resampled(self._positions(header, placement, rows, cols), out)
        return work.bytes_read

    def _placement(self, wanted: BandRead) -> tuple[Header, Placement]:
        key = (self.token, self.grid.digest, wanted.asset.href, wanted.asset.index, wanted.nearest)
        known = _HEADERS.get(key)
        if known is None:
            if key in self.refused:
                raise copy(self.refused[key])
            try:
                known = self._first_look(wanted)
            except AssetError as error:
                if error.code not in TRANSIENT and len(self.refused) < MAX_HEADERS:
                    self.refused[key] = copy(error)
                raise
            _HEADERS.put(key, known)
        header, placement = known
        return header, placement

    def _first_look(self, wanted: BandRead) -> tuple[Header, Placement]:
        """What a file says of itself. What fails here fails for every chunk; a damaged block does so for those it touches."""
        header = self.attempt(wanted, -1, lambda dataset: read_header(dataset, wanted.asset.index, wanted.owner))
        self._check_kind(wanted, header)
        overview, block_px = choose_level(header, self.grid, nearest=wanted.nearest, where=wanted.owner)
        level = header
        if overview >= 0:
            level = self.attempt(wanted, overview, lambda dataset: read_header(dataset, wanted.asset.index, wanted.owner))
        return header, place(header, level, self.grid, overview=overview, block_px=block_px, where=wanted.owner)

    def _check_kind(self, wanted: BandRead, header: Header) -> None:
        if not wanted.group:
            return
        kind = "real" if np.dtype(header.dtype).kind == "f" else "whole"
        with _LOCK:
            first = _KINDS.setdefault((self.token, wanted.group), (kind, header.dtype, wanted.owner))
        if first[0] != kind:
            what = f"holds {header.dtype} numbers, but {first[2]} holds {first[1]}"
            raise AssetError("asset-contract", what, where=wanted.owner, fix="Leave one of the two items out.")

    def _positions(self, header: Header, placement: Placement, rows: Span, cols: Span) -> Positions:
        georeference = placement.georeference
        key = (self.grid.crs, self.grid.resolution, header.crs, georeference.inverse[:6], rows, cols)
        known = _LATTICES.get(key)
        if known is None:
            known = positions(georeference, rows, cols)
            if known.exact_u.nbytes < MAX_LATTICE_BYTES:
                _LATTICES.put(key, known)
        assert isinstance(known, Positions)
        return known

    def attempt(self, wanted: BandRead, overview: int, use: Callable[[Any], T]) -> T:
        """Answer of `use` on the open dataset of a level, tried again as `retry` says."""
        href, last = wanted.asset.href, [""]

        def once() -> T:
            with rasterio.Env(**GDAL_ENV):
                self._check_version(href)
                dataset, last[0] = self._dataset(href, overview)
                return use(dataset)

        return with_retries(
            once,
            where=wanted.owner,
            path=lambda: last[0] or self._last_path(href),
            on_fault=lambda: self._forget(href),
            on_denied=lambda: self.access.expired(href, last[0]),
            retry=self.retry,
            turns=Turns(
                gate_of(server_of(href)),
                at_once=self.requests_at_once,
                tries=self.retry.tries,
                tell=self.slow_hosts.note,
            ),
        )

    def _check_version(self, href: str) -> None:
        """Refuse (`asset-contract`) a remote file that was replaced since this reader met it: pixels of two must not mix."""
        version = self.access.version(href)
        first = self._versions.setdefault(href, version) or version
        if version and version != first:
            fix = "Start a new run, or leave the item out."
            raise AssetError("asset-contract", f"the file was replaced during the run ({first} became {version})", fix=fix)

    def _forget(self, href: str) -> None:
        forget(self.token, href)
        self.access.check_again(href)

    def _dataset(self, href: str, overview: int) -> tuple[Any, str]:
        opened = opened_files()
        key = (self.token, href, overview)
        if key in opened:
            opened.move_to_end(key)
            dataset, path = opened[key]
            return dataset, path
        limit = open_limit()
        while len(opened) >= limit:
            opened.popitem(last=False)[1][0].close()
        path = self.access.open_path(href)
        _OPEN.path = path
        dataset = open_raster(path, href, overview)
        opened[key] = dataset, path
        return dataset, path

    def _last_path(self, href: str) -> str:
        return str(getattr(_OPEN, "path", href))


@dataclass
class _Work:
    """One read in progress."""

    reader: AssetReader
    wanted: BandRead
    header: Header
    placement: Placement
    bytes_read: int = 0

    def read_aligned(self, first: tuple[int, int], rows: Span, cols: Span, out: Pixels) -> None:
        """Fill `out` with the pixels of a raster whose first pixel is grid pixel `first`."""
        height, width = (int(np.ceil(n)) for n in self.placement.extent)
        have_rows = rows.intersect(Span(first[0], first[0] + height))
        have_cols = cols.intersect(Span(first[1], first[1] + width))
        if have_rows != rows or have_cols != cols:
            out.fill(np.nan)
        if len(have_rows) and len(have_cols):
            self._raster(
                Span(have_rows.start - first[0], have_rows.stop - first[0]),
                Span(have_cols.start - first[1], have_cols.stop - first[1]),
                out[have_rows.within(rows), have_cols.within(cols)],
            )

    def read_resampled(self, at: Positions, out: Pixels) -> None:
        """Write the observed pixels among those of `at` into `out`."""
        needs = self._needs(at)
        if needs is None:
            return
        rows, cols = needs
        if len(rows) * len(cols) > READ_PX and max(out.shape) > 1:
            for part in _halves(at):
                self.read_resampled(part, out[part.rows.within(at.rows), part.cols.within(at.cols)])
            return
        source = scratch("source", (len(rows), len(cols)))
        self._raster(rows, cols, source)
        resample(
            source,
            at,
            origin=(rows.start, cols.start),
            extent=self.placement.extent,
            nearest=self.wanted.nearest,
            out=out,
        )

    def _needs(self, at: Positions) -> tuple[Span, Span] | None:
        """Rows and columns of the raster that the pixels of `at` may use."""
        box = at.source_box()
        if box is None:
            return None
        height, width = (int(np.ceil(n)) for n in self.placement.extent)
        u0, v0, u1, v1 = np.clip(box, -1e9, 1e9)
        if u1 < -1 or v1 < -1 or u0 > width + 1 or v0 > height + 1:
            return None
        rows = Span(int(np.floor(v0)) - 2, int(np.ceil(v1)) + 3).intersect(Span(0, height))
        cols = Span(int(np.floor(u0)) - 2, int(np.ceil(u1)) + 3).intersect(Span(0, width))
        return (rows, cols) if len(rows) and len(cols) else None

    def _raster(self, rows: Span, cols: Span, out: Pixels) -> None:
        """Physical pixels `rows` x `cols` of the raster (after averaging) into `out`, strip by strip."""
        block = self.placement.block_px
        strip = max(1, READ_PX // (len(cols) * block * block))
        strip = strip // 1024 * 1024 or strip
        start = rows.start
        while start < rows.stop:
            stop = min(rows.stop, (start // strip + 1) * strip)
            target = out[start - rows.start : stop - rows.start]
            if block == 1:
                self._level(Span(start, stop), cols, target)
            else:
                target[:] = self._averaged(Span(start, stop), cols)
            start = stop

    def _averaged(self, rows: Span, cols: Span) -> Pixels:
        block = self.placement.block_px
        height, width = (round(n * block) for n in self.placement.extent)
        level_rows = Span(rows.start * block, min(rows.stop * block, height))
        level_cols = Span(cols.start * block, min(cols.stop * block, width))
        source = np.empty((len(level_rows), len(level_cols)), np.float32)
        self._level(level_rows, level_cols, source)
        return average_blocks(source, block)

    def _level(self, rows: Span, cols: Span, out: Pixels) -> None:
        asset = self.wanted.asset
        window = Window(cols.start, rows.start, len(cols), len(rows))
        nodata = self.header.nodata if asset.nodata is None else asset.nodata
        is_masked = self.header.is_masked and nodata is None

        def read(dataset: Any) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
            numbers = dataset.read(asset.index, window=window)
            return numbers, dataset.read_masks(asset.index, window=window) if is_masked else None

        numbers, mask = self.reader.attempt(self.wanted, self.placement.overview, read)
        if numbers.shape != out.shape:
            raise AssetError("asset-contract", "changed its size while it was read", where=self.wanted.owner)
        self.bytes_read += numbers.nbytes
        if self.wanted.drop is not None:
            out[:] = _keep(numbers, self.wanted.drop, nodata, self.wanted.owner)
        else:
            scale = self.header.scale if np.isnan(asset.scale) else asset.scale
            offset = self.header.offset if np.isnan(asset.offset) else asset.offset
            check_scale(scale, offset, self.wanted.owner)
            decode(numbers, nodata=nodata, scale=scale, offset=offset, out=out)
        if mask is not None:
            out[mask == 0] = np.nan


def scratch(name: str, shape: tuple[int, int]) -> Pixels:
    """Memory of this thread for an intermediate step, float32 of any content; fresh pages cost more than the work on them."""
    buffers: dict[str, Pixels] = _OPEN.__dict__.setdefault("buffers", {})
    wanted = shape[0] * shape[1]
    held = buffers.get(name)
    if held is None or held.size < wanted or held.size > 4 * wanted:
        held = buffers[name] = np.empty(wanted, np.float32)
    return held[:wanted].reshape(shape)


def _keep(numbers: NDArray[Any], rule: DropRule, nodata: float | None, owner: str) -> Pixels:
    if numbers.dtype.kind == "f":
        raise AssetError("asset-contract", f"is a cloud mask of {numbers.dtype} numbers, expected whole ones", where=owner)
    if numbers.dtype.itemsize <= 2:
        values = np.arange(2 ** (8 * numbers.dtype.itemsize), dtype=f"u{numbers.dtype.itemsize}").view(numbers.dtype)
        table = _keep_values(values, rule, nodata)
        return table[numbers.view(f"u{numbers.dtype.itemsize}")]
    return _keep_values(numbers, rule, nodata)


def _keep_values(numbers: NDArray[Any], rule: DropRule, nodata: float | None) -> Pixels:
    if rule.kind == "classes":
        dropped = np.isin(numbers, rule.drop)
    else:
        bits = sum(1 << bit for bit in rule.drop if bit < 8 * numbers.dtype.itemsize)
        unsigned = numbers.view(f"u{numbers.dtype.itemsize}")
        dropped = (unsigned & unsigned.dtype.type(bits)) != 0
    kept = np.where(dropped, np.float32(0), np.float32(1))
    if nodata is not None:
        kept[numbers == nodata] = np.nan
    return kept


def _halves(at: Positions) -> tuple[Positions, Positions]:
    if len(at.rows) >= len(at.cols):
        middle = at.rows.start + len(at.rows) // 2
        return at.part(Span(at.rows.start, middle), at.cols), at.part(Span(middle, at.rows.stop), at.cols)
    middle = at.cols.start + len(at.cols) // 2
    return at.part(at.rows, Span(at.cols.start, middle)), at.part(at.rows, Span(middle, at.cols.stop))
