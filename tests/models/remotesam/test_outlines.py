"""Objects of a run parted along outlines: the rule, what may not change it, and two squares that touch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rundigest import footprint_rows, mask_array
from tinysam import RGB, SIDE, load_tiny, make_tiny, prompts_of, tiny_pipeline
from toy import BANDS, NORTH, WEST, make_toy
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from eo_batch.core.arrays import quantise_scores
from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.contours import ContourModel, load_contours
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.remotesam.engine import RemoteSAMEngine
from eo_batch.models.remotesam.segmenter import RemoteSAMSegmenter
from eo_batch.run.driver import start_run
from eo_batch.run.request import load_pipeline

PROMPTS = prompts_of("bright field", "water")
SIZE = 260


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def contours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_contours(tmp_path_factory.mktemp("contours"))


def make_contours(folder: Path, *, seed: int = 3, side: int = 64) -> Path:
    """A small random contour network whose answers lie around 0.25, in the form its authors publish theirs."""
    torch.manual_seed(seed)
    sizes = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "depths": [1, 1, 1, 1]}
    network = SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=1, decoder_hidden_size=16, initializer_range=0.5, **sizes)
    )
    with torch.no_grad():
        network.decode_head.classifier.bias.fill_(math.log(0.25 / 0.75))
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": side, "width": side}}))
    return folder


def windows(n: int = 3, height: int = SIDE // 4, width: int = SIDE // 4, seed: int = 0) -> NDArray[np.float32]:
    """Smooth colours with noise, reflectance."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64
    waves = np.reshape([np.sin(6 * x + k) * np.cos(5 * y - k) for k in range(3 * n)], (n, 3, height, width))
    return (0.12 + 0.08 * waves + rng.normal(0, 0.01, waves.shape)).clip(0, 0.25).astype(np.float32)


def answers(segmenter: RemoteSAMSegmenter, images: NDArray[np.float32], *texts: str) -> NDArray[np.float32]:
    features = segmenter.encode_prompts(prompts_of(*texts) if texts else PROMPTS)
    return segmenter.decode(segmenter.encode_images(images), features)


@pytest.mark.parametrize("threshold", [0.25, 0.3])
def test_an_answer_is_the_least_of_the_logit_and_what_the_outline_leaves(weights: Path, contours: Path, threshold: float) -> None:
    images = windows()
    plain, cut = load_tiny(weights), load_tiny(weights, contours=str(contours), contour_threshold=threshold)
    free, got = answers(plain, images), answers(cut, images)
    pictures = np.rint(images.clip(0, 0.25) / 0.25 * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    share = np.stack([load_contours(contours).contour(picture) for picture in pictures]).astype(np.float64)
    ceiling = np.log(threshold / (1 - threshold)) - np.log(share / (1 - share)) - 0.01
    np.testing.assert_allclose(got, np.minimum(free, ceiling[:, None]), atol=1e-4)
    is_outline = share > threshold
    assert 0.05 < is_outline.mean() < 0.95
    assert (free.max(1)[is_outline] > 0).any(), "there would be nothing to cut"
    codes = quantise_scores(np.ascontiguousarray(got.transpose(1, 0, 2, 3)), np.ones(share.shape, bool))
    assert (codes[:, is_outline] < 125).all()


def test_outlines_are_found_once_per_window_whatever_the_number_of_prompts(
    weights: Path, contours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, images, calls = load_tiny(weights, contours=str(contours)), windows(2), []
    original = ContourModel.logits
    monkeypatch.setattr(ContourModel, "logits", lambda self, picture: calls.append(1) or original(self, picture))
    texts = ("bright field", "water", "the lake")
    filled = answers(segmenter, images[[0, 1, 1, 1]], *texts)
    assert len(calls) == 2  # a window that fills up a batch is not looked at again
    assert filled[1].tobytes() == filled[3].tobytes() == answers(segmenter, images[1:], *texts).tobytes()


def test_windows_and_prompts_together_are_apart_to_the_bit(weights: Path, contours: Path) -> None:
    segmenter, images = load_tiny(weights, contours=str(contours)), windows(3)
    together = answers(segmenter, images)
    for number in range(3):
        for place, text in enumerate(PROMPTS.texts):
            assert answers(segmenter, images[number : number + 1], text).tobytes() == together[number, place].tobytes()
    as_on_a_gpu = replace(segmenter, engine=replace(segmenter.engine, together=True))
    np.testing.assert_allclose(answers(as_on_a_gpu, images), together, atol=1e-4)
    assert probe_segmenter(segmenter, PROMPTS, RGB, window_px=48, batch=3).position_independent


def test_contours_are_part_of_the_identity_of_a_run(weights: Path, contours: Path, tmp_path: Path) -> None:
    plain, cut = load_tiny(weights), load_tiny(weights, contours=str(contours))
    others = [
        load_tiny(weights, contours=str(contours), contour_threshold=0.3),
        load_tiny(weights, contours=str(make_contours(tmp_path / "seed", seed=4))),
        load_tiny(weights, contours=str(make_contours(tmp_path / "side", side=96))),
    ]
    assert len({segmenter.info.digest for segmenter in (plain, cut, *others)}) == 5
    again = load_tiny(weights, contours=str(make_contours(tmp_path / "same")))
    assert again.info.digest == cut.info.digest
    assert again.outlines.model is cut.outlines.model  # one network for all workers of a process


def test_the_memory_of_contours_is_counted(weights: Path, contours: Path) -> None:
    plain, cut = load_tiny(weights).info, load_tiny(weights, contours=str(contours)).info
    assert cut.fixed_bytes - plain.fixed_bytes == load_contours(contours).weight_bytes > 0
    assert cut.call_bytes >= max(plain.call_bytes, 10 * 16 * (64 // 4) ** 2 * 4)  # ten maps of the decoder, float32
    assert cut.pixel_bytes > plain.pixel_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"contours": "a", "contour_threshold": 0.0}, "not between 0 and 1"),
        ({"contours": "a", "contour_threshold": 1}, "not between 0 and 1"),
        ({"contour_threshold": 0.3}, "there are no contours"),
        ({"contour": "a"}, 'Did you mean "contours"'),
    ],
)
def test_wrong_options_are_refused_by_name(weights: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.options") as caught:
        load_tiny(weights, **options)
    assert said in str(caught.value)


def test_contours_that_are_not_there_are_an_error_before_anything_is_computed(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="weights-missing"):
        load_tiny(weights, contours=str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    make_tiny(folder / "weights")
    make_contours(folder / "contours")
    return folder


def run(toy: Path, name: str, *, cut: bool = True, executor: str = "serial", **settings: object) -> Path:
    options = f'contours = "{toy / "contours"}"' if cut else ""
    path, out = toy / f"{name}.toml", toy / f"run-{name}"
    weights = toy / "weights" / "tiny.safetensors"
    path.write_text(tiny_pipeline(weights, size=SIZE, prompts=("bright field", "water"), options=options, **settings))
    assert start_run(load_pipeline(path), out, executor=executor, workers=2).exit_status == 0
    return out


def test_chunks_batches_and_workers_give_the_parts_of_the_whole(toy: Path) -> None:
    whole = run(toy, "whole", chunk_px=512)
    free = run(toy, "free", chunk_px=512, cut=False)
    assert not np.array_equal(mask_array(whole), mask_array(free))
    for name, settings in (
        ("chunks", {"chunk_px": 100}),
        ("batch", {"chunk_px": 512, "batch": 3}),
        ("threads", {"chunk_px": 64, "executor": "local"}),
    ):
        out = run(toy, name, **settings)
        np.testing.assert_array_equal(mask_array(out, "score"), mask_array(whole, "score"))
        assert footprint_rows(out) == footprint_rows(whole)


def test_two_squares_that_touch_become_two_footprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red ground of two squares with a blue line between: a network that finds red, outlines that are blue."""

    def ground(x: NDArray[np.float64], y: NDArray[np.float64], day: int, band: int) -> NDArray[np.uint16]:
        east, south = x - WEST, NORTH - y
        is_red = (abs(east - 1200) < 500) & (abs(south - 1200) < 250)
        return np.where(is_red if BANDS[band] == "nir" else is_red & (abs(east - 1200) < 30), 8000, 1000).astype(np.uint16)

    monkeypatch.setattr("toy.field", ground)
    make_toy(tmp_path, dates=1, size=SIZE)
    make_tiny(tmp_path / "weights")
    make_contours(tmp_path / "contours")
    monkeypatch.setattr(RemoteSAMEngine, "encode_pixels", lambda self, pixels, threads: (pixels,))
    monkeypatch.setattr(RemoteSAMEngine, "answer", lambda self, pixels, prompt, threads: torch.where(pixels[:, 0] > 1, 5.0, -5.0))
    monkeypatch.setattr(ContourModel, "logits", lambda self, picture: np.where(picture[..., 2] > 150, 0, -8).astype(np.float32))
    joined = run(tmp_path, "joined", cut=False, chunk_px=100)
    parts = run(tmp_path, "parts", chunk_px=100)
    per_prompt = [len(footprint_rows(out)) / 2 for out in (joined, parts)]
    assert per_prompt == [1, 2]
    area = [int((mask_array(out) == 1).sum()) / 2 for out in (joined, parts)]
    assert area[0] == pytest.approx(100 * 50, rel=0.02)
    assert area[0] - area[1] == pytest.approx(6 * 50, rel=0.4)
