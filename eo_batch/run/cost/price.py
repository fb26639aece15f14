"""What windows and prompts cost, measured: what a segmenter computes once per window, and what each prompt adds."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import CacheSpec
from eo_batch.models.segmenter import FeatureKeeper, Segmenter
from eo_batch.outputs.store import Store
from eo_batch.run.features import kept_features, read_window, write_window

QUICK_S = 2.0
"""A batch that takes longer is not measured twice."""
DISK_MB_S = 200.0
"""Assumed rate of the disk that features are kept on, megabytes per second, reading and writing."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Price:
    """Seconds of one worker. Linear: what was measured with some prompts prices any number of them.

    Parameters
    ----------
    run_s : once per process: encoding the prompts.
    window_s : of each window, whatever the prompts.
    prompt_s : of each prompt in each window.
    keep_s, load_s : of each window whose features are written, and read instead of computed.
    feature_bytes : of one window on disk; 0 where no features are kept.
    """

    run_s: float
    window_s: float
    prompt_s: float
    keep_s: float = 0.0
    load_s: float = 0.0
    feature_bytes: int = 0

    def windows_s(self, windows: int, *, prompts: int, loaded: int = 0) -> float:
        """Seconds of `windows` windows, of which `loaded` are not encoded but read."""
        encoded = windows - loaded
        return encoded * (self.window_s + self.keep_s) + loaded * self.load_s + windows * prompts * self.prompt_s

    def prompt_share(self, prompts: int) -> float:
        """What one prompt more adds to the seconds of a window with `prompts` prompts, as a share of them."""
        whole = self.windows_s(1, prompts=prompts)
        return self.prompt_s / whole if whole > 0 else 0.0


def measure_price(
    segmenter: Segmenter,
    prompts: PromptSet,
    bands: Sequence[str],
    *,
    window_px: int,
    batch: int,
    keeper: FeatureKeeper | None = None,
    clock: Clock = time.perf_counter,
) -> Price:
    """Price of a segmenter: one batch of made-up windows, and a second one where that is quick: the first call may warm up.

    Where prompts share the features of a window, its price is what encoding takes, and decoding is divided among the prompts.
    Where they do not, each prompt bears its part of everything.

    Parameters
    ----------
    keeper : the segmenter, where features are kept; their price is measured in memory, their way to the disk is assumed.
    clock : seconds, monotonic.
    """
    start = clock()
    features = segmenter.encode_prompts(prompts)
    run_s = clock() - start
    # distinct windows: equal ones may be answered once
    shape = (batch, len(bands), window_px, window_px)
    images = np.random.default_rng(0).uniform(*segmenter.info.pixel_range, shape).astype(np.float32)
    encode = decode = np.inf
    for _ in range(2):
        start = clock()
        image_features = segmenter.encode_images(images)
        middle = clock()
        segmenter.decode(image_features, features)
        end = clock()
        encode, decode = min(encode, middle - start), min(decode, end - middle)
        if end - start > QUICK_S:
            break
    if not segmenter.info.shares_image_features:
        return Price(run_s, 0.0, (encode + decode) / batch / len(prompts))
    kept = _measure_keeping(segmenter, keeper, images, clock) if keeper else (0.0, 0.0, 0)
    return Price(run_s, encode / batch, decode / batch / len(prompts), *kept)


@dataclass(frozen=True)
class Kept:
    """Features on disk: windows that are there, bytes that will be added, windows that will be read and not encoded."""

    windows: int = 0
    bytes_to_write: int = 0
    loaded: int = 0


def kept_of(price: Price, cache: CacheSpec, segmenter: str, *, windows: int, distinct: int, out: str | Path | None) -> Kept:
    """Features that a run finds and keeps in `out`, if its chunks ask for `windows` windows, `distinct` different ones.

    Parameters
    ----------
    segmenter : digest of the one that asks.
    """
    if not price.feature_bytes:
        return Kept()
    here = kept_features(Store(out), segmenter=segmenter)[0] if out is not None else 0
    most = distinct
    if cache.features_gb is not None:
        most = min(most, int(cache.features_gb * 1e9) // price.feature_bytes)
    here = min(here, distinct)
    twice = windows - distinct  # the second chunk finds them, where there was room for them
    loaded = here + (twice * max(most, here) // distinct if twice else 0)
    return Kept(here, max(most - here, 0) * price.feature_bytes, loaded)


def _measure_keeping(
    segmenter: Segmenter, keeper: FeatureKeeper, images: NDArray[np.float32], clock: Clock
) -> tuple[float, float, int]:
    """Seconds to keep and to load a window, and its bytes."""
    image_features = segmenter.encode_images(images)
    start = clock()
    files = []
    for window in keeper.dump_features(image_features):
        file = io.BytesIO()
        write_window(file, window, segmenter=segmenter.info.digest, key="")
        files.append(file.getvalue())
    middle = clock()
    windows = [read_window(data, segmenter=segmenter.info.digest, key="") for data in files]
    keeper.load_features([window for window in windows if window is not None])
    end = clock()
    size = max(map(len, files))
    disk_s = size / (DISK_MB_S * 1e6)
    return (middle - start) / len(files) + disk_s, (end - middle) / len(files) + disk_s, size
