"""SAM 3 as a segmenter: held against the network asked by transformers alone and its authors' rule for what is found."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyfinders import RGB, SAM3_SIDE, WORDS, answers, load, make_sam3, prompts_of, windows
from transformers import PreTrainedTokenizerFast, Sam3Model

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.models.finder import FinderSegmenter
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.segmenter import explain_prompts, feature_keeper, prompt_warnings

TEXTS = ("water", "solar panel", "the dark lake")
SEED = 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as its authors would publish it; tests must not change it."""
    return make_sam3(tmp_path_factory.mktemp("sam3"), seed=SEED)


@pytest.fixture(scope="module", autouse=True)
def kept(saved: Path) -> FinderSegmenter:
    """Holds the network: what a test loads again is the same one."""
    return load("sam3", weights=str(saved))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


@cache
def network_of(folder: Path) -> Sam3Model:
    """As the library alone loads it."""
    return Sam3Model.from_pretrained(folder).eval()


def by_transformers(folder: Path, image: NDArray[np.float32], text: str) -> Any:
    """The library's own answer for a window, from files to output: its loader, its tokenizer, plain Pillow, one full forward."""
    colours = np.rint(np.clip(image.astype(np.float64) / 0.25, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    picture = np.asarray(Image.fromarray(colours).resize((SAM3_SIDE, SAM3_SIDE), Image.Resampling.BILINEAR), np.float32)
    pixels = torch.tensor((picture / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>", bos_token="<|startoftext|>"
    )
    read = tokenizer(
        f"<|startoftext|> {text} <|endoftext|>", padding="max_length", max_length=32, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        return network_of(folder)(pixel_values=pixels, input_ids=read.input_ids, attention_mask=read.attention_mask)


def found_by_its_authors(output: Any, shape: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Union of the masks that their processor returns: confidence and mask probability both above a threshold."""
    sure = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
    large = torch.nn.functional.interpolate(output.pred_masks, size=shape, mode="bilinear", align_corners=False).sigmoid()
    return (large[sure > threshold] > threshold).any(0).numpy()


@pytest.mark.parametrize(("height", "width"), [(48, 48), (56, 56), (40, 90)])
def test_what_is_found_is_what_its_authors_find_at_every_threshold(saved: Path, height: int, width: int) -> None:
    images = windows(2, height, width)
    got = answers(load("sam3", weights=str(saved)), images, *TEXTS)
    assert got.shape == (2, 3, height, width)
    shares = []
    for number, image in enumerate(images):
        for place, text in enumerate(TEXTS):
            output = by_transformers(saved, image, text)
            for threshold in (0.2, 0.5, 0.6):
                found = got[number, place] > np.log(threshold / (1 - threshold))
                right = found_by_its_authors(output, (height, width), threshold)
                assert (found != right).mean() < 1e-3  # a probability may lie on the threshold itself
                shares.append(right.mean())
    assert min(shares) < 0.3
    assert max(shares) > 0.6


def test_the_semantic_answer_is_the_map_gated_by_presence(saved: Path) -> None:
    image = windows(1)[0]
    got = answers(load("sam3", weights=str(saved), answer="semantic"), image[None], "water")[0, 0]
    output = by_transformers(saved, image, "water")
    large = torch.nn.functional.interpolate(output.semantic_seg, size=(48, 48), mode="bilinear", align_corners=False)[0, 0]
    limit = np.log(0.95 / 0.05)
    np.testing.assert_allclose(got, torch.minimum(large, output.presence_logits[0, 0]).clamp(-limit, limit), atol=1e-3)
    assert (got != answers(load("sam3", weights=str(saved)), image[None], "water")[0, 0]).any()


def test_the_network_asked_for_kept_features_answers_as_a_full_forward_to_the_bit(saved: Path) -> None:
    segmenter, image = load("sam3", weights=str(saved)), windows(1)[0]
    (words,) = segmenter.encode_prompts(prompts_of("solar panel"))
    with torch.inference_mode():
        found = segmenter.engine.detect(segmenter.encode_images(image[None]).features[0], words)
        own = segmenter.engine.network
        pixels = torch.from_numpy(segmenter.engine.preparation(segmenter.stretch.rgb(image[None])[0]))
        ids = torch.full((1, 32), 2)
        ids[0, :4] = torch.tensor([1, 3 + WORDS.index("solar"), 3 + WORDS.index("panel"), 2])
        whole = own(pixel_values=pixels, input_ids=ids, attention_mask=(torch.arange(32) < 4).long()[None])
    for name in ("pred_masks", "pred_logits", "presence_logits", "semantic_seg"):
        assert torch.equal(found[name], whole[name]), name


def test_objects_are_kept_apart_where_that_is_asked_for(saved: Path) -> None:
    from eo_batch.models.instances import join

    image = windows(1)[0]
    together, apart = (load("sam3", weights=str(saved), instances=way) for way in (False, True))
    output = by_transformers(saved, image, "water")
    sure = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
    got = answers(apart, image[None], "water")[0, 0]
    np.testing.assert_allclose(got, join(sure, output.pred_masks[0], (48, 48), apart=True), atol=1e-3)
    assert (got <= answers(together, image[None], "water")[0, 0] + 1e-6).all()
    assert apart.info.digest != together.info.digest


def test_prompts_together_are_prompts_apart_to_the_bit(saved: Path) -> None:
    segmenter, images = load("sam3", weights=str(saved)), windows()
    together = answers(segmenter, images, *TEXTS)
    for place, text in enumerate(TEXTS):
        assert answers(segmenter, images, text).tobytes() == np.ascontiguousarray(together[:, place : place + 1]).tobytes()


def test_windows_together_are_windows_apart_to_the_bit(saved: Path) -> None:
    segmenter, images = load("sam3", weights=str(saved)), windows(4)
    together = answers(segmenter, images[[0, 1, 2, 3, 3]], *TEXTS)
    for number in range(4):
        assert answers(segmenter, images[number : number + 1], *TEXTS).tobytes() == together[number].tobytes()
    assert together[3].tobytes() == together[4].tobytes()
    assert probe_segmenter(segmenter, prompts_of(*TEXTS), RGB, window_px=40, batch=3).position_independent


def test_an_image_is_seen_once_for_all_prompts_and_a_prompt_read_once_for_all_images(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter, calls = load("sam3", weights=str(saved)), []
    segmenter.engine.prompts.clear()
    for name in ("get_vision_features", "get_text_features"):
        original = getattr(Sam3Model, name)
        monkeypatch.setattr(
            Sam3Model, name, lambda self, *a, _name=name, _own=original, **k: calls.append(_name) or _own(self, *a, **k)
        )
    answers(segmenter, windows(2), *TEXTS)
    answers(segmenter, windows(1, seed=1), *TEXTS)
    assert segmenter.info.shares_image_features
    assert sorted(calls) == ["get_text_features"] * 3 + ["get_vision_features"] * 3


def test_kept_features_give_the_bytes_of_fresh_ones_in_any_company(saved: Path) -> None:
    segmenter, images = load("sam3", weights=str(saved)), windows(3)
    keeper, words = feature_keeper(segmenter), segmenter.encode_prompts(prompts_of(*TEXTS))
    assert keeper is segmenter
    fresh = segmenter.decode(segmenter.encode_images(images), words)
    kept = keeper.dump_features(segmenter.encode_images(images[[0, 1, 0]])) + keeper.dump_features(
        segmenter.encode_images(images)
    )
    for one in kept:
        for array in one.values():
            array.flags.writeable = False
    assert abs(sum(array.nbytes for array in kept[0].values()) - segmenter.info.feature_bytes) <= 16
    order = [5, 0, 4, 4]
    again = segmenter.decode(keeper.load_features([kept[number] for number in order]), words)
    assert again.tobytes() == fresh[[2, 0, 1, 1]].tobytes()


def test_threads_share_one_network_and_get_the_same_bits(saved: Path) -> None:
    alone, found = answers(load("sam3", weights=str(saved)), windows(2), "water"), []
    workers = [
        threading.Thread(target=lambda: found.append(answers(load("sam3", weights=str(saved)), windows(2), "water").tobytes()))
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [alone.tobytes()] * 4


def test_windows_in_one_call_as_on_a_gpu_answer_as_windows_apart(saved: Path) -> None:
    apart = load("sam3", weights=str(saved))
    together = replace(apart, engine=replace(apart.engine, together=True))
    images = windows(3)[[0, 1, 2, 2]]
    assert [len(entry) for entry in together.encode_images(images).features] == [4]
    np.testing.assert_allclose(answers(together, images, *TEXTS), answers(apart, images, *TEXTS), atol=1e-3)
    kept = together.dump_features(together.encode_images(images))
    assert [len(entry) for entry in together.load_features(kept).features] == [4]


def test_half_precision_answers_nearly_the_same_and_is_another_segmenter(saved: Path) -> None:
    whole, half = (load("sam3", weights=str(saved), precision=kind) for kind in ("float32", "bfloat16"))
    a, b = (answers(segmenter, windows(2), *TEXTS) for segmenter in (whole, half))
    assert np.abs(a - b).mean() < 0.15
    assert a.tobytes() != b.tobytes()
    assert whole.info.digest != half.info.digest
    features = half.encode_images(windows(2))
    again = half.load_features(half.dump_features(features))
    words = half.encode_prompts(prompts_of("water"))
    assert half.decode(again, words).tobytes() == half.decode(features, words).tobytes()


def test_a_prompt_that_is_too_long_is_cut_as_the_library_cuts_it_with_a_warning(saved: Path) -> None:
    long, segmenter = " ".join(["dark lake"] * 18), load("sam3", weights=str(saved))
    (told,) = [line for line in prompt_warnings(segmenter, prompts_of(long)) if "cut off" in line]
    assert "36 word pieces long" in told
    assert "room for 30" in told
    got = answers(segmenter, windows(1), long)
    assert got.tobytes() == answers(segmenter, windows(1), long + " water").tobytes()
    output = by_transformers(saved, windows(1)[0], " ".join(["dark lake"] * 15))  # 30 words and their two marks
    assert ((got[0, 0] > 0) != found_by_its_authors(output, (48, 48), 0.5)).mean() < 1e-3


def test_authors_of_prompts_are_told_what_will_not_be_understood(saved: Path) -> None:
    segmenter = load("sam3", weights=str(saved))
    assert prompt_warnings(segmenter, prompts_of("water", "solar panel")) == ()
    left, ship = prompt_warnings(segmenter, prompts_of("lake on the left", "the ship on the dark water of the lake"))
    assert '"on the left" is understood within each window' in left
    assert "reads as a sentence" in ship
    (whole,) = prompt_warnings(segmenter, prompts_of("lake on the left"), sees_whole=True)
    assert "within each window" not in whole
    (line,) = explain_prompts(segmenter, prompts_of("Solar Panel"))
    assert line.startswith('"Solar Panel" is asked as "solar panel"; read as: solar panel')
    assert "once for all prompts" in line
    with pytest.raises(ConfigError, match="finds no word"):
        segmenter.encode_prompts(prompts_of("?!"))


def test_thresholds_that_no_score_passes_or_misses_are_told(saved: Path) -> None:
    segmenter = load("sam3", weights=str(saved))
    low, high = prompt_warnings(segmenter, PromptSet((Prompt("water", 0.04), Prompt("lake", 0.5), Prompt("ship", 0.96))))
    assert 'prompt "water"' in low
    assert low.endswith("a threshold of 0.04 finds everything")
    assert 'prompt "ship"' in high
    assert high.endswith("a threshold of 0.96 finds nothing")
    assert prompt_warnings(segmenter, PromptSet((Prompt("water", 0.06), Prompt("lake", 0.95)))) == ()


def test_the_files_as_published_hold_a_tracker_that_is_not_used(saved: Path, folder: Path) -> None:
    tensors = {f"detector_model.{name}": tensor for name, tensor in load_file(saved / "model.safetensors").items()}
    tensors |= {"tracker_model.memory.weight": torch.ones(3), "tracker_neck.fpn.weight": torch.ones(2)}
    save_file(tensors, folder / "model.safetensors")
    inner = json.loads((saved / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": inner, "tracker_config": {}}))
    images = windows(2)
    plain, published = (answers(load("sam3", weights=str(place)), images, "water") for place in (saved, folder))
    assert plain.tobytes() == published.tobytes()
