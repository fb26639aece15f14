"""Image features kept on disk: a window is encoded once, and prompts that come later pay `decode` alone.

    RUN/features/<16 digits of the segmenter's digest>/<aa>/<sha256 of the window>.features

A cache, never a result: a file is found by what the segmenter saw, and trusted only after its own checksum. One that is
missing, damaged or half there means that the window is encoded again. Who needs the space deletes `RUN/features`.
"""

from __future__ import annotations

import io
import json
import math
import threading
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from eo_batch.core.digest import canonical_json
from eo_batch.core.errors import ConfigError, PolicyError, StoreError
from eo_batch.core.spec import CacheSpec
from eo_batch.models.segmenter import FeatureKeeper, Segmenter, feature_keeper
from eo_batch.outputs.store import Store

FOLDER = "features"
MAGIC = b"eo-batch features 1\n"
DIGEST_CHARACTERS = 64
SPARED_BYTES = 1_000_000_000
"""Free space that is left to the results: below it no features are written."""

Window = Mapping[str, NDArray[Any]]
"""Features of one window: names and arrays, as `FeatureKeeper.dump_features` gives them."""


class _Writable(Protocol):
    def write(self, data: bytes, /) -> Any: ...


class FeatureCache:
    """Features of the windows of one run and one segmenter; used by all workers of a process at once.

    Parameters
    ----------
    store : of the run.
    segmenter, keeper : the segmenter, and the same as one whose features can be kept.
    limit_bytes : size of the folder at which nothing more is written; None: none. Processes that write at once may each
        overshoot it by what the others wrote since they began.
    """

    def __init__(self, store: Store, segmenter: Segmenter, keeper: FeatureKeeper, *, limit_bytes: int | None = None) -> None:
        self.store, self.segmenter, self.keeper = store, segmenter, keeper
        self.encoded = self.loaded = self.damaged = 0
        self._room = None if limit_bytes is None else limit_bytes - kept_features(store)[1]
        self._writes = True
        self._notes: list[str] = []
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def encode(self, images: NDArray[np.float32]) -> Any:
        """Image features of a batch, float32 (n, band, y, x): those of windows that were seen before are read, not computed.

        What is computed is computed in batches of this same size, whose last window repeats.
        """
        keys = [window_key(image) for image in images]
        known = {key: self._get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, window in known.items() if window is None]
        if len(missing) == len(known):
            features = self.segmenter.encode_images(images)
            self._keep(dict(zip(keys, self._dump(features), strict=False)))
        else:
            if missing:
                computed = self._compute(images, missing, [keys.index(key) for key in missing])
                self._keep(computed)
                known.update(computed)
            features = self.keeper.load_features([window for window in (known[key] for key in keys) if window is not None])
        with self._lock:
            self.encoded += len(missing)
            self.loaded += len(known) - len(missing)
        return features

    def take_notes(self) -> tuple[str, ...]:
        """What people should know and were not told yet; each kind of trouble once."""
        with self._lock:
            notes, self._notes = tuple(self._notes), []
        return notes

    def _compute(self, images: NDArray[np.float32], missing: list[str], places: list[int]) -> dict[str, dict[str, NDArray[Any]]]:
        """Features of the windows at `places`, computed in a batch as large as every other."""
        some = images[places + places[-1:] * (len(images) - len(places))]
        return dict(zip(missing, self.keeper.dump_features(self.segmenter.encode_images(some)), strict=False))

    def _dump(self, features: Any) -> list[dict[str, NDArray[Any]]]:
        return self.keeper.dump_features(features) if self._writes else []

    def _get(self, key: str) -> Window | None:
        path = window_path(self.segmenter.info.digest, key)
        try:
            data = self.store.get(path)
        except FileNotFoundError:
            return None
        except (StoreError, PolicyError) as error:
            self._note("unreadable", f"{error} Windows whose features cannot be read are computed again.")
            return None
        window = read_window(data, segmenter=self.segmenter.info.digest, key=key)
        if window is None:
            with self._lock:
                self.damaged += 1
            self._note("damaged", f"{path} is damaged: windows whose features are damaged are computed again")
        return window

    def _keep(self, windows: Mapping[str, Window]) -> None:
        """Write features; whatever prevents it, the run goes on without them."""
        for key, window in windows.items():
            size = sum(part.nbytes for part in window.values())
            if not self._may_write(size):
                return
            path = window_path(self.segmenter.info.digest, key)
            try:
                with self.store.writer(path, expected=size) as target:
                    write_window(target, window, segmenter=self.segmenter.info.digest, key=key)
            except (StoreError, PolicyError) as error:
                self._stop(f"no more features are kept: {error}")

    def _may_write(self, size: int) -> bool:
        with self._lock:
            if not self._writes:
                return False
            if self._room is not None and size > self._room:
                reason = "cache.features_gb is used up"
            else:
                if self._room is not None:
                    self._room -= size
                reason = ""
        try:
            free = self.store.free_bytes()
            if not reason and free is not None and free < SPARED_BYTES + size:
                reason = f"less than {SPARED_BYTES / 1e9:.0f} GB are free, and the results need them"
        except StoreError as error:
            reason = str(error)
        if reason:
            self._stop(f"no more features are kept: {reason}")
        return not reason

    def _stop(self, note: str) -> None:
        with self._lock:
            self._writes = False
        self._note("stopped", note)

    def _note(self, kind: str, text: str) -> None:
        """Tell people of the first of each kind: there may be one for every window."""
        with self._lock:
            if kind not in self._told:
                self._told.add(kind)
                self._notes.append(text)


def open_features(store: Store, segmenter: Segmenter, cache: CacheSpec) -> FeatureCache | None:
    """The cache that `[cache]` asks for; None where it asks for none.

    Raises
    ------
    ConfigError : `config-invalid`: features of this segmenter cannot be kept.
    PolicyError : `path-escape`: `RUN/features` is a symbolic link.
    """
    keeper = check_keeps(segmenter, cache)
    if keeper is None:
        return None
    store.exists(FOLDER)  # refuses a link out of the run before the first window
    limit = None if cache.features_gb is None else int(cache.features_gb * 1e9)
    return FeatureCache(store, segmenter, keeper, limit_bytes=limit)


def check_keeps(segmenter: Segmenter, cache: CacheSpec) -> FeatureKeeper | None:
    """The segmenter as one whose features are kept; None where nobody wants it.

    Raises
    ------
    ConfigError : `config-invalid`: they cannot be kept.
    """
    if not cache.features:
        return None
    keeper = feature_keeper(segmenter)
    if keeper is None:
        raise ConfigError(
            "config-invalid",
            f'the features of segmenter "{segmenter.info.name}" cannot be kept',
            where="cache.features",
            why="it says so itself" if segmenter.info.shares_image_features else "its prompts share none",
            fix="Leave cache.features out, or set it to false.",
        )
    return keeper


def kept_features(store: Store, *, segmenter: str | None = None) -> tuple[int, int]:
    """Files and bytes of kept features.

    Parameters
    ----------
    segmenter : digest: only of this one.
    """
    sizes = [_size(store, path) for path in store.list(f"{FOLDER}/{segmenter[:16]}" if segmenter else FOLDER)]
    return len(sizes), sum(sizes)


def window_key(image: NDArray[np.float32]) -> str:
    """Name of a window made from all that a segmenter sees of it: shape and pixels, float32 (band, y, x)."""
    content = sha256(canonical_json([image.dtype.str, image.shape]))
    content.update(np.ascontiguousarray(image).data)
    return content.hexdigest()


def window_path(segmenter: str, key: str) -> str:
    """Where features of a window are kept."""
    return f"{FOLDER}/{segmenter[:16]}/{key[:2]}/{key}.features"


def write_window(target: _Writable, window: Window, *, segmenter: str, key: str) -> None:
    """Write features of a window: what they belong to, its arrays in numpy's own format without pickle, a sha256 of it all."""
    checksum = sha256()

    class Summed:
        """Passes bytes on and sums them; what numpy needs of a file."""

        def write(self, data: bytes) -> None:
            checksum.update(data)
            target.write(data)

    summed = Summed()
    head = {"segmenter": segmenter, "window": key, "arrays": sorted(window)}
    summed.write(MAGIC + canonical_json(head) + b"\n")
    for name in head["arrays"]:
        npy.write_array(summed, np.asarray(window[name], order="C"), version=(1, 0), allow_pickle=False)  # type: ignore[arg-type]
    target.write(checksum.hexdigest().encode())


def read_window(data: bytes, *, segmenter: str, key: str) -> dict[str, NDArray[Any]] | None:
    """Features that `write_window` wrote; None where a bit is not as it was, or where they belong to something else."""
    content, checksum = memoryview(data)[:-DIGEST_CHARACTERS], data[-DIGEST_CHARACTERS:]
    if sha256(content).hexdigest().encode() != checksum or not data.startswith(MAGIC):
        return None
    file = io.BytesIO(data)
    file.seek(len(MAGIC))
    try:
        head = json.loads(file.readline())
        if (head["segmenter"], head["window"]) != (segmenter, key):
            return None
        window = {name: _read_array(file, content) for name in head["arrays"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return window if file.tell() == len(content) else None


def _read_array(file: io.BytesIO, content: memoryview) -> NDArray[Any]:
    if npy.read_magic(file) != (1, 0):
        raise ValueError("another version of the format")
    shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    if is_fortran or dtype.kind not in "biuf":
        raise ValueError("not written by this module")
    array = np.frombuffer(content, dtype, count=math.prod(shape), offset=file.tell()).reshape(shape).copy()
    file.seek(array.nbytes, io.SEEK_CUR)
    return array


def _size(store: Store, path: str) -> int:
    try:
        return store.size(path)
    except FileNotFoundError:  # deleted meanwhile
        return 0
