"""Kept image features: they save work and never change a byte, whatever happens to their files."""

from __future__ import annotations

import errno
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from rundigest import file_digests
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ConfigError, PolicyError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import CacheSpec, ModelSpec
from eo_batch.models.probe import WindowMean
from eo_batch.models.spectral import load_spectral
from eo_batch.outputs.disk import Disk
from eo_batch.outputs.places import place_of
from eo_batch.outputs.store import Store
from eo_batch.run import features as module
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.features import FeatureCache, kept_features, open_features, read_window, window_key, write_window
from eo_batch.run.later.extend import add_prompts
from eo_batch.run.request import load_pipeline
from eo_batch.run.told.events import Event
from eo_batch.run.told.status import run_status
from eo_batch.run.verify import verify_run

PROMPTS = PromptSet((Prompt("water"), Prompt("building")))
SIZE = 260
KEEP = "[cache]\nfeatures = true"


@dataclass(frozen=True)
class Counting(WindowMean):
    """Notes the batches that it encodes."""

    batches: list[int] = field(default_factory=list)

    def encode_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return super().encode_images(images)


def windows(*seeds: int) -> NDArray[np.float32]:
    """One distinct window for each distinct seed, float32 (n, 1, 16, 16)."""
    return np.stack([np.random.default_rng(seed).random((1, 16, 16), dtype=np.float32) for seed in seeds])


def cache_in(folder: Path | Store, **settings: Any) -> FeatureCache:
    store = folder if isinstance(folder, Store) else Store(folder)
    cache = open_features(store, Counting(("green",), window_px=16), CacheSpec(features=True, **settings))
    assert cache is not None
    return cache


def answer(cache: FeatureCache, images: NDArray[np.float32]) -> bytes:
    return cache.segmenter.decode(cache.encode(images), cache.segmenter.encode_prompts(PROMPTS)).tobytes()


def expected(images: NDArray[np.float32]) -> bytes:
    plain = WindowMean(("green",))
    return plain.decode(plain.encode_images(images), plain.encode_prompts(PROMPTS)).tobytes()


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "features").rglob("*") if path.is_file())


def test_batches_of_kept_and_new_windows_give_the_bytes_of_fresh_ones(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    for seeds in ((0, 1, 2), (0, 1, 2), (2, 3, 0), (4, 4, 4), (5, 4, 4)):
        assert answer(cache, windows(*seeds)) == expected(windows(*seeds)), seeds
    assert (cache.encoded, cache.loaded) == (6, 6)
    assert len(files_of(tmp_path)) == 6


def test_what_is_missing_is_encoded_in_batches_of_the_one_size(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    answer(cache, windows(0, 1, 2))
    answer(cache, windows(0, 3, 1))
    answer(cache, windows(3, 2, 1))
    assert cache.segmenter.batches == [3, 3]  # type: ignore[attr-defined]


def test_another_process_finds_what_one_kept(tmp_path: Path) -> None:
    answer(cache_in(tmp_path), windows(0, 1))
    later = cache_in(tmp_path)
    assert answer(later, windows(1, 0)) == expected(windows(1, 0))
    assert later.segmenter.batches == []  # type: ignore[attr-defined]


def test_features_of_another_segmenter_are_not_taken(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((1, 2, 16, 16), dtype=np.float32)
    one, other = (WindowMean(("green", "nir"), band, window_px=16) for band in (0, 1))
    for segmenter in (one, other):
        cache = FeatureCache(Store(tmp_path), segmenter, segmenter)
        assert cache.encode(images).tobytes() == segmenter.encode_images(images).tobytes()
        assert (cache.encoded, cache.loaded) == (1, 0)
    assert len({path.parent.parent.name for path in files_of(tmp_path)}) == 2


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + b"0",
        lambda data: b"\x93NUMPY" + data,
    ],
    ids=["empty", "short", "half", "bit", "checksum", "long", "foreign"],
)
def test_a_damaged_file_is_noticed_told_and_made_anew(tmp_path: Path, harm: Any) -> None:
    answer(cache_in(tmp_path), windows(0, 1))
    victim = files_of(tmp_path)[0]
    whole = victim.read_bytes()
    victim.write_bytes(harm(whole))
    cache = cache_in(tmp_path)
    assert answer(cache, windows(0, 1)) == expected(windows(0, 1))
    assert (cache.damaged, cache.encoded, cache.loaded) == (1, 1, 1)
    assert [note for note in cache.take_notes() if victim.name in note and "damaged" in note]
    assert cache.take_notes() == ()
    assert victim.read_bytes() == whole


def test_a_file_under_the_name_of_another_window_is_not_taken(tmp_path: Path) -> None:
    answer(cache_in(tmp_path), windows(0, 1))
    one, other = files_of(tmp_path)
    other.write_bytes(one.read_bytes())
    assert answer(cache_in(tmp_path), windows(0, 1)) == expected(windows(0, 1))


def test_pickled_objects_are_never_opened(tmp_path: Path) -> None:
    body = io.BytesIO()
    body.write(module.MAGIC + b'{"arrays":["logits"],"segmenter":"s","window":"w"}\n')
    np.lib.format.write_array(body, np.array([Path("x")], object), version=(1, 0), allow_pickle=True)
    data = body.getvalue() + sha256(body.getvalue()).hexdigest().encode()
    assert read_window(data, segmenter="s", key="w") is None


class Meeting(Disk):
    """Lets two writers reach the moment before the new name at the same time."""

    def __init__(self, root: Path) -> None:
        super().__init__(place_of(root))
        self.barrier = threading.Barrier(2, timeout=20)

    def _rename(self, source: Path, target: Path) -> None:
        self.barrier.wait()
        super()._rename(source, target)


def test_two_workers_may_write_the_same_window_at_once(tmp_path: Path) -> None:
    cache = cache_in(Store(Meeting(tmp_path)))
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: answer(cache, windows(7)), range(2)))
    assert answers == [expected(windows(7))] * 2
    assert cache.encoded == 2
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert answer(cache_in(tmp_path), windows(7)) == expected(windows(7))


class Failing(Disk):
    """Every operation of one kind fails from the n-th on."""

    def __init__(self, root: Path, operation: str, first: int, number: int) -> None:
        super().__init__(place_of(root))
        self.countdown = first
        whole = getattr(self, operation)

        def fail(*arguments: Any) -> Any:
            self.countdown -= 1
            if self.countdown < 0:
                raise OSError(number, "made to fail")
            return whole(*arguments)

        setattr(self, operation, fail)


@pytest.mark.parametrize("operation", ["_mkdir", "_open_new", "_write", "_fsync", "_fsync_directory", "_rename", "_read"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_no_fault_of_the_disk_reaches_the_answers(tmp_path: Path, operation: str, number: int) -> None:
    for first in range(4):
        folder = tmp_path / str(first)
        answer(cache_in(folder), windows(0))
        cache = cache_in(Store(Failing(folder, operation, first, number)))
        for seeds in ((0, 1), (1, 2), (2, 3), (0, 3)):
            assert answer(cache, windows(*seeds)) == expected(windows(*seeds))
        assert cache.take_notes() or first > 2
        assert all(path.suffix == ".features" for path in files_of(folder))
        later = cache_in(folder)
        assert answer(later, windows(0, 1, 2, 3)) == expected(windows(0, 1, 2, 3))
        assert later.damaged == 0


def test_a_full_disk_is_told_once_and_nothing_more_is_tried(tmp_path: Path) -> None:
    class Full(Disk):
        tried = 0

        def _write(self, file: BinaryIO, data: bytes) -> None:
            self.tried += 1
            raise OSError(errno.ENOSPC, "full")

    disk = Full(place_of(tmp_path))
    cache = cache_in(Store(disk))
    for seed in range(5):
        assert answer(cache, windows(seed, seed + 1)) == expected(windows(seed, seed + 1))
    (note,) = cache.take_notes()
    assert note.startswith("no more features are kept: disk-full")
    assert disk.tried == 1


def test_space_that_the_results_need_is_left_to_them(tmp_path: Path) -> None:
    class Tight(Store):
        def free_bytes(self) -> int:
            return module.SPARED_BYTES

    cache = cache_in(Tight(tmp_path))
    assert answer(cache, windows(0, 1)) == expected(windows(0, 1))
    assert len(cache.take_notes()) == 1
    assert files_of(tmp_path) == []


def test_the_cache_stays_within_its_limit_also_in_a_later_process(tmp_path: Path) -> None:
    size = 16 * 16 * 4
    for _ in range(2):
        cache = cache_in(tmp_path, features_gb=4 * size / 1e9)
        for seed in range(6):
            assert answer(cache, windows(seed)) == expected(windows(seed))
        assert any("features_gb" in note for note in cache.take_notes())
    assert 2 <= len(files_of(tmp_path)) <= 4


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "features").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyError, match="path-escape"):
        cache_in(tmp_path / "run")


def test_a_segmenter_without_features_worth_keeping_is_refused() -> None:
    segmenter = load_spectral(ModelSpec(), ("green", "nir"))
    with pytest.raises(ConfigError, match=r'cache\.features.*"spectral" cannot be kept'):
        open_features(Store("nowhere"), segmenter, CacheSpec(features=True))
    assert open_features(Store("nowhere"), segmenter, CacheSpec()) is None


KINDS = st.sampled_from(["bool", "u1", "<u2", "<i4", "<i8", "<f2", "<f4", "<f8"])
ARRAYS = KINDS.flatmap(lambda kind: arrays(kind, array_shapes(min_dims=0, max_dims=4)))


@given(st.dictionaries(st.text(max_size=9), ARRAYS, max_size=3), st.data())
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_bit_for_bit_and_any_other_bit_is_noticed(window: dict[str, NDArray[Any]], data: st.DataObject) -> None:
    turned = {name: np.array(part, order="F") for name, part in window.items()}
    file = io.BytesIO()
    write_window(file, turned, segmenter="s" * 64, key="w" * 64)
    found = read_window(file.getvalue(), segmenter="s" * 64, key="w" * 64)
    assert found is not None
    assert {name: (part.dtype, part.shape, part.tobytes()) for name, part in found.items()} == {
        name: (part.dtype, part.shape, part.tobytes()) for name, part in window.items()
    }
    harmed = bytearray(file.getvalue())
    harmed[data.draw(st.integers(0, len(harmed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert read_window(bytes(harmed), segmenter="s" * 64, key="w" * 64) is None


def test_windows_with_the_same_numbers_in_other_shapes_have_other_names() -> None:
    numbers = np.arange(64, dtype=np.float32)
    shapes = [(1, 8, 8), (1, 4, 16), (4, 4, 4), (2, 4, 8)]
    assert len({window_key(numbers.reshape(shape)) for shape in shapes}) == 4
    assert window_key(numbers.reshape(1, 8, 8)[:, ::-1]) == window_key(numbers.reshape(1, 8, 8)[:, ::-1].copy())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    return folder


def run_toy(
    toy: Path, name: str, *, executor: str = "local", prompts: tuple[str, ...] = ("bright", "dark"), extra: str = KEEP
) -> tuple[Path, list[Event]]:
    """A run of the toy region and what it told."""
    path = toy / f"{name}.toml"
    path.write_text(toy_pipeline(size=SIZE, chunk_px=64, prompts=prompts, extra=extra))
    told: list[Event] = []
    summary = start_run(load_pipeline(path), toy / name, executor=executor, workers=2, listener=told.append)
    assert summary.exit_status == 0
    return toy / name, told


def results_of(run: Path) -> dict[str, str]:
    """Digests of all but the request, which holds the pipeline as it was written."""
    return {name: value for name, value in file_digests(run).items() if not name.endswith("request.json")}


@pytest.fixture(scope="module")
def golden(toy: Path) -> Path:
    """A run that keeps nothing."""
    return run_toy(toy, "golden", executor="serial", extra="")[0]


def test_a_run_is_the_same_with_and_without_kept_features(toy: Path, golden: Path) -> None:
    run, told = run_toy(toy, "kept")
    assert results_of(run) == results_of(golden)
    files, size = kept_features(Store(run))
    (plan,) = (event.data for event in told if event.kind == "plan")
    assert 0 < files <= plan["windows_distinct"] <= plan["windows"] < plan["windows_alone"]
    assert 0.95 * plan["features"] <= size * plan["windows_distinct"] / files <= 1.05 * plan["features"]
    assert kept_features(Store(golden)) == (0, 0)
    assert verify_run(run).ok
    rows = [dict(run_status(folder).rows()) for folder in (run, golden)]
    assert rows[0]["feature cache"] == f"{size / 1e6:.1f} MB of {files} windows in features/"
    assert "feature cache" not in rows[1]


def test_a_resumed_run_with_damaged_missing_and_whole_features_is_the_same(toy: Path, golden: Path) -> None:
    run, _ = run_toy(toy, "harmed", executor="serial")
    for number, path in enumerate(files_of(run)):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(path.read_bytes()[:-7])
    for path in [run / "COMPLETE.json", *sorted((run / "receipts").rglob("*.json"))[::2]]:
        path.unlink()
    told: list[Event] = []
    assert resume_run(run, workers=2, listener=told.append).complete
    assert results_of(run) == results_of(golden)
    assert sum("is damaged" in event.text for event in told if event.kind == "warning") == 1


def test_a_run_whose_disk_has_room_for_results_alone_is_the_same_and_says_so_once(
    toy: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPARED_BYTES", 10**18)
    run, told = run_toy(toy, "tight")
    assert results_of(run) == results_of(golden)
    assert [event.text for event in told if event.kind == "warning"] == [
        "no more features are kept: less than 1000000000 GB are free, and the results need them"
    ]


def test_further_prompts_encode_no_window_that_was_kept(toy: Path, golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = run_toy(toy, "extended", prompts=("bright",))
    encoded: list[int] = []
    whole = FeatureCache.encode

    def watch(cache: FeatureCache, images: NDArray[np.float32]) -> Any:
        before = cache.encoded
        features = whole(cache, images)
        encoded.append(cache.encoded - before)
        return features

    monkeypatch.setattr(FeatureCache, "encode", watch)
    assert add_prompts(run, "dark", workers=2).exit_status == 0
    assert len(encoded) > 10
    assert sum(encoded) == 0
    for name in ("footprints.parquet", "COMPLETE.json"):
        assert results_of(run)[name] == results_of(golden)[name]


def test_deleting_the_folder_takes_nothing_from_a_run(toy: Path, golden: Path) -> None:
    run, _ = run_toy(toy, "dropped", executor="serial")
    for path in files_of(run):
        path.unlink()
    assert verify_run(run).ok
    assert results_of(run) == results_of(golden)
