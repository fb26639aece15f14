"""What kept image features cost and save: bytes of a window, and seconds to encode it against seconds to read it back.

    python benchmarks/feature_cache.py                             made-up, tiny and one full-size network
    python benchmarks/feature_cache.py --model rsrefseg --weights FILE_OR_NAME [--option contours=directsam]

Windows are made up and weights come from a formula unless a file is named: neither changes what is computed. Every window goes
through files in `--folder`, and its answer is compared byte for byte. The files were just written, so they are read from the
memory that the system keeps of them; a disk that is slower than that is not measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import CacheSpec, ModelSpec
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter, feature_keeper
from eo_batch.outputs.store import Store
from eo_batch.run.features import kept_features, open_features, window_key, window_path, write_window

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

RGB = ("red", "green", "blue")
PROMPTS = PromptSet((Prompt("water"),))


def remotesam_of(folder: Path, *, is_tiny: bool, window_px: int) -> Segmenter:
    """RemoteSAM with weights by a formula, small or of the published size."""
    from formula import remotesam_state
    from tinysam import WORDS, make_tiny

    from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
    from eo_batch.models.weights.checkpoints import write_safetensors

    if is_tiny:
        weights = make_tiny(folder)
    else:
        config = RemoteSAMConfig()
        weights = folder / "full.safetensors"
        state = remotesam_state(RemoteSAM.from_config(config, is_trainable=False))
        write_safetensors(weights, state, {"architecture": "remotesam", "config": json.dumps(config.as_dict())})
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    options: dict[str, str | int | float | bool] = {"weights": str(weights), "device": "cpu"}
    return load_segmenter(ModelSpec(name="remotesam", window_px=window_px, options=options), RGB)


def rsrefseg_of(folder: Path) -> Segmenter:
    """RSRefSeg with weights by a formula, small."""
    from tinyref import load_tiny, make_tiny

    return load_tiny(make_tiny(folder / "rsrefseg"))


def made_up_cases(folder: Path) -> Iterator[tuple[str, Segmenter, int]]:
    """Name, segmenter and window side of each case."""
    costly = ModelSpec(name="window-mean", window_px=512, options={"cost": 500})
    yield "window-mean, cost 500", load_segmenter(costly, RGB), 512
    yield "RSRefSeg, tiny", rsrefseg_of(folder), 64
    yield "RemoteSAM, tiny", remotesam_of(folder, is_tiny=True, window_px=64), 64
    yield "RemoteSAM, published size", remotesam_of(folder, is_tiny=False, window_px=512), 512


def seconds(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a call gives and how long it takes."""
    start = time.perf_counter()
    answer = call(*arguments)
    return answer, time.perf_counter() - start


def keep(store: Store, segmenter: Segmenter, features: Any, image: NDArray[np.float32]) -> None:
    """Write features of one window as a run does."""
    keeper, key = feature_keeper(segmenter), window_key(image)
    assert keeper is not None
    (window,) = keeper.dump_features(features)
    with store.writer(window_path(segmenter.info.digest, key)) as target:
        write_window(target, window, segmenter=segmenter.info.digest, key=key)


def measure(name: str, segmenter: Segmenter, window_px: int, *, folder: Path, rounds: int) -> None:
    """Print one row; each round takes a new window through encoding, decoding, keeping and reading."""
    random, prompts = np.random.default_rng(0), segmenter.encode_prompts(PROMPTS)
    store = Store(folder / name.replace(" ", "-").replace(",", ""))
    cache = open_features(store, segmenter, CacheSpec(features=True))
    assert cache is not None
    took = []
    for _ in range(rounds + 1):
        image = random.uniform(*segmenter.info.pixel_range, (1, 3, window_px, window_px)).astype(np.float32)
        features, encode_s = seconds(segmenter.encode_images, image)
        answer, decode_s = seconds(segmenter.decode, features, prompts)
        _, keep_s = seconds(keep, store, segmenter, features, image[0])
        again, read_s = seconds(cache.encode, image)
        assert segmenter.decode(again, prompts).tobytes() == answer.tobytes(), "kept features answer otherwise"
        took.append((encode_s, decode_s, keep_s, read_s))
    assert (cache.encoded, cache.loaded) == (0, rounds + 1)
    files, size = kept_features(store)
    encode_s, decode_s, keep_s, read_s = (median(column) for column in zip(*took[1:], strict=True))  # the first warms up
    times = " | ".join(f"{part * 1e3:.1f} ms" for part in (encode_s, decode_s, keep_s, read_s))
    saved = f"{encode_s / read_s:.1f} | {(encode_s + decode_s) / (read_s + decode_s):.2f}"
    print(f"{name} | {window_px} px | {size / files / 1e6:.2f} MB | {times} | {saved}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where files are written; default: a temporary folder")
    parser.add_argument("--model", help="a segmenter instead of the made-up ones")
    parser.add_argument("--weights", help="its weights: a name or a file")
    parser.add_argument("--option", action="append", default=[], help="one more of its options: name=value")
    parser.add_argument("--window-px", type=int, default=512)
    chosen = parser.parse_args()
    print(machine())
    print(
        "segmenter | window | kept | encode | decode one prompt | write | read | encode : read | one more prompt, without : with"
    )
    with TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        if chosen.model:
            options: dict[str, Any] = dict(option.split("=", 1) for option in chosen.option)
            options |= {"weights": chosen.weights} if chosen.weights else {}
            segmenter = load_segmenter(ModelSpec(name=chosen.model, window_px=chosen.window_px, options=options), RGB)
            measure(chosen.model, segmenter, chosen.window_px, folder=folder, rounds=chosen.rounds)
        else:
            for case, segmenter, window_px in made_up_cases(folder):
                measure(case, segmenter, window_px, folder=folder, rounds=chosen.rounds)


if __name__ == "__main__":
    main()
