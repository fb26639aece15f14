"""RemoteSAM as a segmenter: what decides an answer, what may not, and every wrong input it can be given."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tinysam import RGB, SIDE, WORDS, load_tiny, make_tiny, prompts_of, tiny_config

from eo_batch.core.errors import ConfigError, IntegrityError, ModelError, ResourceError
from eo_batch.core.spec import ModelSpec
from eo_batch.models import engine as engines
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.registry import BUILT_IN, load_segmenter
from eo_batch.models.remotesam import RemoteSAM
from eo_batch.models.remotesam.engine import open_engine
from eo_batch.models.remotesam.text import TextEncoder
from eo_batch.models.remotesam.trunk import Trunk
from eo_batch.models.segmenter import Segmenter, explain_prompts, prompt_warnings
from eo_batch.models.weights import find_weights, read_weights
from eo_batch.run.images.segment import load as load_for_image

PROMPTS = prompts_of("bright field", "the ship on the left", "water")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def windows(n: int = 3, height: int = SIDE, width: int = SIDE, seed: int = 0) -> NDArray[np.float32]:
    """Smooth colours with noise: reflectance that is a whole step of 1/255 of the stretch, so that rounding is no question."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / SIDE
    waves = [np.sin(6 * x + k) * np.cos(5 * y - k) for k in range(3 * n)]
    colours = 120 + 80 * np.reshape(waves, (n, 3, height, width)) + rng.normal(0, 10, (n, 3, height, width))
    return (np.rint(colours) / 255 * 0.25).astype(np.float32)


def answers(segmenter: Segmenter, images: NDArray[np.float32], *texts: str) -> NDArray[np.float32]:
    features = segmenter.encode_prompts(prompts_of(*texts) if texts else PROMPTS)
    return segmenter.decode(segmenter.encode_images(images), features)


def network_by_hand(weights: Path, image: NDArray[np.float32], words: list[str]) -> NDArray[np.float32]:
    """Foreground minus background, float32 (side, side), straight from the network and plain Pillow."""
    network = RemoteSAM.from_config(tiny_config())
    network.load_state_dict(read_weights(weights)[0])
    colours = np.rint(np.clip(image.astype(np.float64) / 0.25, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    picture = np.asarray(Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64) / 255
    pixels = ((picture - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)[None]
    ids = [WORDS.index(word) for word in ["[CLS]", *words, "[SEP]"]]
    ids, mask = ids + [0] * (20 - len(ids)), [1] * len(ids) + [0] * (20 - len(ids))
    with torch.no_grad():
        background, foreground = network(torch.tensor(pixels, dtype=torch.float32), torch.tensor([ids]), torch.tensor([mask]))[0]
    return (foreground - background).numpy()


def test_logits_are_foreground_minus_background_of_the_network(weights: Path) -> None:
    images = windows()
    got = answers(load_tiny(weights), images)
    asked = ["bright", "field", "in", "the", "image"], ["the", "ship", "on", "the", "left"], ["water", "in", "the", "image"]
    for number, image in enumerate(images):
        for place, words in enumerate(asked):
            np.testing.assert_allclose(got[number, place], network_by_hand(weights, image, words), atol=1e-4)
    assert got.dtype == np.float32
    assert np.abs(got[:, 0] - got[:, 2]).max() > 0.1


@pytest.mark.parametrize(("height", "width"), [(48, 48), (100, 100), (40, 90)])
def test_windows_of_any_shape_are_resized_to_the_network_and_answers_back(weights: Path, height: int, width: int) -> None:
    images = windows(1, height, width)
    got = answers(load_tiny(weights), images, "water")
    assert got.shape == (1, 1, height, width)
    by_hand = network_by_hand(weights, images[0], ["water", "in", "the", "image"])
    rows, columns = np.arange(height) * SIDE // height, np.arange(width) * SIDE // width
    np.testing.assert_allclose(got[0, 0], by_hand[rows][:, columns], atol=1e-4)


def test_prompts_together_are_prompts_apart_to_the_bit(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows()
    together = answers(segmenter, images)
    for place, text in enumerate(PROMPTS.texts):
        assert answers(segmenter, images, text).tobytes() == np.ascontiguousarray(together[:, place : place + 1]).tobytes()


def test_windows_together_are_windows_apart_to_the_bit(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(4)
    together = answers(segmenter, images)
    for number in range(4):
        assert answers(segmenter, images[number : number + 1]).tobytes() == together[number].tobytes()
    assert answers(segmenter, images[::-1]).tobytes() == np.ascontiguousarray(together[::-1]).tobytes()


def test_the_probe_finds_a_window_the_same_in_any_company(weights: Path) -> None:
    report = probe_segmenter(load_tiny(weights), PROMPTS, RGB, window_px=48, batch=3)
    assert report.position_independent


def test_a_window_that_fills_up_a_batch_is_not_computed_again(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, images, calls = load_tiny(weights), windows(2), []
    original = RemoteSAM.decode
    monkeypatch.setattr(RemoteSAM, "decode", lambda self, *a: calls.append(1) or original(self, *a))  # one window each
    filled = answers(segmenter, images[[0, 1, 1, 1]], "water")
    assert len(calls) == 2
    assert filled[1].tobytes() == filled[3].tobytes() == answers(segmenter, images[1:], "water")[0].tobytes()


def test_a_prompt_is_encoded_once_however_often_it_is_asked(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, calls = load_tiny(weights), []
    original = TextEncoder.hidden
    monkeypatch.setattr(TextEncoder, "hidden", lambda self, *a: calls.append(1) or original(self, *a))
    segmenter.engine.prompts.clear()
    for _ in range(3):
        segmenter.encode_prompts(PROMPTS)
        load_tiny(weights).encode_prompts(prompts_of("water"))
    assert len(calls) == len(PROMPTS)


def test_threads_share_one_network_and_get_the_same_bits(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(2)
    alone, found = answers(segmenter, images), []

    def work() -> None:
        found.append(answers(load_tiny(weights), images).tobytes())

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(found) == {alone.tobytes()}
    assert load_tiny(weights).engine is segmenter.engine


def test_a_batch_in_one_call_answers_as_its_windows_do_apart(weights: Path) -> None:
    apart, images = load_tiny(weights), windows(3)[[0, 1, 2, 2]]
    together = replace(apart, engine=replace(apart.engine, together=True))  # as on a GPU
    features = together.encode_images(images)
    assert [len(entry.windows[0].look) for entry in features.features] == [4]  # a fixed shape: repeats are not left out
    np.testing.assert_allclose(answers(together, images), answers(apart, images), atol=1e-4)


def test_the_network_is_let_go_with_its_last_segmenter(weights: Path) -> None:
    before = set(engines._open)
    segmenter = load_tiny(weights, precision="bfloat16")
    made = set(engines._open) - before
    assert len(made) == 1
    del segmenter
    gc.collect()
    assert not made & set(engines._open)


def test_one_image_takes_all_threads_and_a_run_one_per_chunk(weights: Path) -> None:
    spec = ModelSpec(name="remotesam", options={"weights": str(weights)})
    assert load_segmenter(spec, RGB).threads == 1
    assert load_for_image(spec, RGB)[1].threads == len(os.sched_getaffinity(0))
    said = ModelSpec(name="remotesam", options={"weights": str(weights), "threads": 3})
    assert load_for_image(said, RGB)[1].threads == 3
    assert load_for_image("window-mean", RGB)[0].options == {}


def test_bfloat16_answers_nearly_as_float32(weights: Path) -> None:
    images = windows(2)
    exact, rough = answers(load_tiny(weights), images), answers(load_tiny(weights, precision="bfloat16"), images)
    assert rough.dtype == np.float32
    assert 0 < np.sqrt(np.mean((rough - exact) ** 2)) / exact.std() < 0.2


def test_info_says_what_a_run_must_know(weights: Path) -> None:
    info = load_tiny(weights, window_px=32, stretch_high=255, stretch_low=0).info
    assert (info.name, info.bands, info.pixel_range, info.network_px) == ("remotesam", RGB, (0.0, 255.0), SIDE)
    assert (info.window_px, info.pixelwise, info.device) == (None, False, "cpu")
    assert info.fixed_bytes == sum(tensor.nbytes for tensor in read_weights(weights)[0].values())
    features = info.memory_bytes(bands=3, prompts=1, window_px=32, batch=2) - info.memory_bytes(
        bands=3, prompts=1, window_px=32, batch=1
    )
    assert features >= 3 * (SIDE // 4) ** 2 * 16 * 4  # three maps of the first stage, float32


@pytest.mark.parametrize(
    "options",
    [
        {"stretch_high": 0.3},
        {"stretch_gamma": 1.4},
        {"template": "all {} here"},
        {"prompts": "sentence"},
        {"threads": 2},
        {"precision": "bfloat16"},
    ],
)
def test_everything_that_decides_an_answer_is_in_the_digest(weights: Path, options: dict[str, object]) -> None:
    assert load_tiny(weights, **options).info.digest != load_tiny(weights).info.digest


def test_the_digest_names_contents_not_places(weights: Path, tmp_path: Path) -> None:
    copy = make_tiny(tmp_path / "elsewhere")
    assert load_tiny(copy).info.digest == load_tiny(weights).info.digest
    assert load_tiny(make_tiny(tmp_path / "other", salt="other:")).info.digest != load_tiny(weights).info.digest
    (copy.with_name("vocab.txt")).write_text("\n".join([*WORDS[:-2], WORDS[-1], WORDS[-2]]) + "\n")
    assert load_tiny(copy).info.digest != load_tiny(weights).info.digest


def test_explain_says_the_sentence_and_its_pieces(weights: Path) -> None:
    assert explain_prompts(load_tiny(weights), prompts_of("Water", "the lake")) == (
        '"Water" is asked as "Water in the image" (class name); read as: water in the image',
        '"the lake" is asked as "the lake" (sentence); read as: the lake',
    )


def test_a_prompt_that_means_a_place_in_the_window_is_told(weights: Path) -> None:
    (line,) = prompt_warnings(load_tiny(weights), PROMPTS)
    assert '"the ship on the left": "on the left" is understood within each window, not within the region' in line
    assert prompt_warnings(load_tiny(weights), PROMPTS, sees_whole=True) == ()


def test_two_hundred_pieces_are_cut_as_the_original_does_and_told(weights: Path) -> None:
    segmenter, long = load_tiny(weights, prompts="sentence"), "x!" * 100
    (line,) = prompt_warnings(segmenter, prompts_of(long))
    assert "is 200 word pieces long, the network has room for 18" in line
    assert 'cut off after "x ! x"' in line
    cut = answers(segmenter, windows(1), long)
    assert cut.tobytes() == answers(segmenter, windows(1), "x!" * 11)[0:1].tobytes()  # no end mark in either
    assert cut.tobytes() != answers(segmenter, windows(1), "x!" * 9).tobytes()


def test_words_that_mean_nothing_are_told(weights: Path) -> None:
    assert "does not have 1 of its words" in prompt_warnings(load_tiny(weights), prompts_of("runway"))[0]


def test_a_prompt_without_a_word_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="prompt-invalid"):
        load_tiny(weights).encode_prompts(prompts_of("\u200d"))


@pytest.mark.parametrize(
    ("bands", "said"),
    [
        (("pan",), '["pan"]'),
        (("red", "green", "blue", "nir"), '"nir"'),
        (("blue", "green", "red"), "the order matters"),
        (("green", "nir"), "Set bands"),
    ],
)
def test_other_bands_than_red_green_blue_are_refused(weights: Path, bands: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=r"source\.bands") as caught:
        load_tiny(weights, bands=bands)
    assert said in str(caught.value)
    assert 'Set bands = ["red", "green", "blue"]' in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strech_high": 1.0}, 'Did you mean "stretch_high"'),
        ({"precision": "float64"}, "float32, bfloat16, float16"),
        ({"device": "tpu"}, '"auto", "cpu", "cuda"'),
        ({"threads": 0}, "1..256"),
        ({"threads": True}, "is not a whole number"),
        ({"prompts": 3}, "is not a text"),
        ({"template": "no place"}, "{}"),
    ],
)
def test_wrong_options_are_refused_by_name(weights: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.options") as caught:
        load_tiny(weights, **options)
    assert said in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error(weights: Path) -> None:
    with pytest.raises(ResourceError, match="no-gpu"):
        load_tiny(weights, device="cuda")


def test_weights_that_are_not_there_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match="eo-batch models fetch remotesam"):
        load_segmenter(ModelSpec(name="remotesam"), RGB)


def test_a_vocabulary_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    path = make_tiny(tmp_path / "alone")
    path.with_name("vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"vocab\.txt of bert-base-uncased") as caught:
        load_tiny(path)
    assert caught.value.code == "weights-missing"


def test_a_vocabulary_may_be_named(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "words.txt"
    other.write_text("\n".join(WORDS) + "\n")
    assert load_tiny(weights, vocabulary=str(other)).info.digest == load_tiny(weights).info.digest


def test_a_larger_vocabulary_than_the_network_knows_is_refused(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "words.txt"
    other.write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(ModelError, match=f"has {len(WORDS) + 1} words, the network knows {len(WORDS)}"):
        load_tiny(weights, vocabulary=str(other))


def _forget(state: dict[str, torch.Tensor]) -> None:
    del state["classifier.conv1_1.weight"]


def _poison(state: dict[str, torch.Tensor]) -> None:
    state["backbone.layers.2.blocks.1.mlp.fc1.weight"][3, 4] = float("nan")


def _rename(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_forget, "1 missing: classifier.conv1_1.weight"),
        (_poison, "backbone.layers.2.blocks.1.mlp.fc1.weight holds NaN"),
        (_rename, "no checkpoint of this network"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path: Path, change: object, said: str) -> None:
    with pytest.raises(ModelError, match="model-load") as caught:
        load_tiny(make_tiny(tmp_path, change=change))
    assert said in str(caught.value)


def test_weights_that_somebody_writes_into_give_no_more_answers(tmp_path: Path) -> None:
    path, other = make_tiny(tmp_path, salt="watched 0:"), make_tiny(tmp_path / "other", salt="other:")
    segmenter = load_tiny(path)
    images = np.full((1, 3, SIDE, SIDE), 0.1, np.float32)
    features = segmenter.encode_prompts(prompts_of("water"))
    segmenter.decode(segmenter.encode_images(images), features)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    with pytest.raises(IntegrityError, match="weights-altered"):
        segmenter.decode(segmenter.encode_images(images), features)


def test_weights_may_be_replaced_or_removed_while_they_are_used(tmp_path: Path) -> None:
    path, other = make_tiny(tmp_path, salt="watched 1:"), make_tiny(tmp_path / "other", salt="other:")
    segmenter = load_tiny(path)
    images = np.full((1, 3, SIDE, SIDE), 0.1, np.float32)
    features = segmenter.encode_prompts(prompts_of("water"))
    before = segmenter.decode(segmenter.encode_images(images), features)
    os.replace(other, path)
    np.testing.assert_array_equal(segmenter.decode(segmenter.encode_images(images), features), before)
    path.unlink()
    np.testing.assert_array_equal(segmenter.decode(segmenter.encode_images(images), features), before)


def test_the_weights_that_are_loaded_are_those_whose_sum_was_made(tmp_path: Path) -> None:
    path, other = make_tiny(tmp_path, salt="watched 2:"), make_tiny(tmp_path / "other", salt="other:")
    files = find_weights(path)
    os.replace(other, path)
    with pytest.raises(IntegrityError, match="weights-altered"):
        open_engine(files, device="cpu", precision="float32")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "does not say which network"),
        ({"architecture": "rsrefseg", "config": "{}"}, 'weights of "rsrefseg", not of "remotesam"'),
        ({"architecture": "remotesam", "config": '{"embed": 3}'}, 'has no size "embed"'),
        ({"architecture": "remotesam", "config": '{"swin_window": 1048576}'}, "does not describe a RemoteSAM"),
        ({"architecture": "remotesam", "config": '{"depths": 5}'}, "config.depths"),
        ({"architecture": "remotesam", "config": '{"depths": [9, 9, 1000000, 9]}'}, "holds"),
        ({"architecture": "remotesam", "config": '{"window_px": 896}'}, "missing"),
    ],
)
def test_weights_of_another_network_are_refused_before_anything_is_made(
    tmp_path: Path, metadata: dict[str, str], said: str
) -> None:
    with pytest.raises(ModelError, match="model-load") as caught:
        load_tiny(make_tiny(tmp_path, metadata=metadata))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("can't allocate memory: you tried 8 GB"),
    ],
)
@pytest.mark.parametrize(("owner", "part"), [(TextEncoder, "hidden"), (Trunk, "see"), (RemoteSAM, "decode")])
def test_memory_that_runs_out_is_a_model_error_with_advice(
    weights: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, owner: type, part: str
) -> None:
    segmenter = load_tiny(weights)
    segmenter.engine.prompts.clear()

    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(owner, part, full)
    with pytest.raises(ModelError, match=r"Lower model\.batch") as caught:
        answers(segmenter, windows(1))
    assert (caught.value.code, caught.value.exit_status) == ("model-oom", 7)


def test_a_bug_of_the_network_is_not_called_lack_of_memory(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(RemoteSAM, "decode", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        answers(load_tiny(weights), windows(1))


def test_answers_that_change_from_call_to_call_are_found_by_the_probe(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RemoteSAM.decode
    monkeypatch.setattr(RemoteSAM, "decode", lambda self, *a: original(self, *a) * (1 + torch.rand(2, 1, 1) * 1e-3))
    with pytest.raises(IntegrityError, match="nondeterministic-output"):
        probe_segmenter(load_tiny(weights), PROMPTS, RGB, window_px=SIDE, batch=1)


def test_without_torch_the_way_to_get_it_is_told(weights: Path) -> None:
    code = f"""
import sys
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None
from eo_batch.core.spec import ModelSpec
from eo_batch.models.registry import list_segmenters, load_segmenter
entry = next(entry for entry in list_segmenters() if entry.name == "remotesam")
print(entry.is_available, entry.advice)
try:
    load_segmenter(ModelSpec(name="remotesam", options={{"weights": {str(weights)!r}}}), ["red", "green", "blue"])
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == 'False pip install "eo-batch[models]"'
    assert second.startswith("ConfigError config-invalid")
    assert 'Run: pip install "eo-batch[models]"' in second


def test_naming_the_segmenter_loads_no_network_library() -> None:
    code = (
        "import sys\nfrom eo_batch.models.registry import list_segmenters\nlist_segmenters()\n"
        "import eo_batch.models.remotesam.segmenter\nprint(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_licence_is_told_as_it_is() -> None:
    assert BUILT_IN["remotesam"].licence == "not stated upstream"
