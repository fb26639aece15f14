"""RSRefSeg as a segmenter: what decides an answer, what may not, features on disk, and every wrong input it can be given."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tinyref import PIECES, RGB, SIDE, load_tiny, make_tiny, prompts_of, tiny_config, upstream_state, write_tokenizer

from eo_batch.core.errors import ConfigError, IntegrityError, ModelError, ResourceError
from eo_batch.core.spec import ModelSpec
from eo_batch.models import engine as engines
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.registry import BUILT_IN, load_segmenter
from eo_batch.models.rsrefseg import RSRefSeg
from eo_batch.models.rsrefseg.pictures import resize_8bit
from eo_batch.models.segmenter import Segmenter, explain_prompts, feature_keeper, prompt_warnings
from eo_batch.models.weights import find_weights, read_weights
from eo_batch.models.weights.checkpoints import write_safetensors

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


@cache
def network() -> RSRefSeg:
    """The network that the weights are of."""
    return RSRefSeg.from_upstream(upstream_state(), tiny_config())


def by_hand(image: NDArray[np.float32], words: list[str]) -> NDArray[np.float32]:
    """Logits, float32 (h, w), of a full forward pass of one image and one prompt."""
    colours = np.rint(np.clip(image.astype(np.float64) / 0.25, 0, 1) * 255).astype(np.uint8)
    picture = resize_8bit(np.ascontiguousarray(colours.transpose(1, 2, 0)), SIDE, SIDE).transpose(2, 0, 1) / 255
    names = [piece for piece, _ in PIECES]
    ids = torch.tensor([names.index(f"\u2581{word}") for word in words] + [1])
    with torch.no_grad():
        low = network()(torch.tensor(picture[None], dtype=torch.float32), [ids])
    full = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return F.interpolate(full, image.shape[1:], mode="bilinear", align_corners=False)[0, 0].numpy()


ASKED = (["bright", "field"], ["the", "ship", "on", "the", "left"], ["water"])


def test_logits_are_those_of_full_forward_passes(weights: Path) -> None:
    images = windows()
    got = answers(load_tiny(weights), images)
    for number, image in enumerate(images):
        for place, words in enumerate(ASKED):
            np.testing.assert_allclose(got[number, place], by_hand(image, words), atol=2e-4)
    assert got.dtype == np.float32
    assert np.abs(got[:, 0] - got[:, 2]).max() > 0.1
    assert (got > 0).any()
    assert (got < 0).any()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 100), (40, 90)])
def test_windows_of_any_shape_are_resized_to_the_network_and_answers_back(weights: Path, height: int, width: int) -> None:
    images = windows(1, height, width)
    got = answers(load_tiny(weights), images)
    assert got.shape == (1, 3, height, width)
    for place, words in enumerate(ASKED):
        np.testing.assert_allclose(got[0, place], by_hand(images[0], words), atol=2e-4)


def test_prompts_together_are_prompts_apart_to_the_bit(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows()
    together = answers(segmenter, images)
    for place, text in enumerate(PROMPTS.texts):
        assert answers(segmenter, images, text).tobytes() == np.ascontiguousarray(together[:, place : place + 1]).tobytes()
    assert answers(segmenter, images, *PROMPTS.texts[::-1]).tobytes() == np.ascontiguousarray(together[:, ::-1]).tobytes()


def test_windows_together_are_windows_apart_to_the_bit(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(4)
    together = answers(segmenter, images)
    for number in range(4):
        assert answers(segmenter, images[number : number + 1]).tobytes() == together[number].tobytes()
    assert answers(segmenter, images[::-1]).tobytes() == np.ascontiguousarray(together[::-1]).tobytes()


def test_the_probe_finds_a_window_the_same_in_any_company(weights: Path) -> None:
    assert probe_segmenter(load_tiny(weights), PROMPTS, RGB, window_px=48, batch=3).position_independent


def test_an_image_is_seen_once_whatever_is_asked_of_it(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, seen, decoded = load_tiny(weights), [], []
    see, decode = RSRefSeg.encode_images, RSRefSeg.decode
    monkeypatch.setattr(RSRefSeg, "encode_images", lambda self, x: seen.append(len(x)) or see(self, x))
    monkeypatch.setattr(RSRefSeg, "decode", lambda self, *a: decoded.append(1) or decode(self, *a))
    filled = answers(segmenter, windows(2)[[0, 1, 1, 1]])
    assert (seen, len(decoded)) == ([1, 1], 2 * len(PROMPTS))
    assert filled[1].tobytes() == filled[3].tobytes()


def test_a_prompt_is_encoded_once_however_often_it_is_asked(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, calls = load_tiny(weights), []
    original = RSRefSeg.encode_prompts
    monkeypatch.setattr(RSRefSeg, "encode_prompts", lambda self, ids: calls.append(len(ids)) or original(self, ids))
    segmenter.engine.prompts.clear()
    for _ in range(3):
        segmenter.encode_prompts(PROMPTS)
        load_tiny(weights).encode_prompts(prompts_of("Water!"))
    assert calls == [1, 1, 1]  # each alone: nothing is padded


def test_features_read_back_give_the_same_bytes_in_any_company(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(3, SIDE, 48)
    keeper = feature_keeper(segmenter)
    assert keeper is not None
    prompts, direct = segmenter.encode_prompts(PROMPTS), answers(segmenter, images)
    dumped = keeper.dump_features(segmenter.encode_images(images[[0, 1, 1]])) + keeper.dump_features(
        segmenter.encode_images(images[2:])
    )
    kept = [{name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in window.items()} for window in dumped]
    again = load_tiny(weights).decode(keeper.load_features([kept[k] for k in (3, 1, 0, 2)]), prompts)
    assert again.tobytes() == direct[[2, 1, 0, 1]].tobytes()
    size = sum(part.nbytes for name, part in dumped[0].items() if name != "shape_yx")
    assert segmenter.info.feature_bytes == size == 4 * (16 * 8 * 8 + 24 * 7 * 7 + 3 * 16 * 7 * 7)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_features_of_half_precision_are_kept_bit_for_bit(weights: Path, precision: str) -> None:
    segmenter, images = load_tiny(weights, precision=precision), windows(2)
    dumped = segmenter.dump_features(segmenter.encode_images(images))
    kept = [{name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in window.items()} for window in dumped]
    again = segmenter.decode(segmenter.load_features(kept), segmenter.encode_prompts(PROMPTS))
    assert again.tobytes() == answers(segmenter, images).tobytes()
    assert 0 < np.sqrt(np.mean((again - answers(load_tiny(weights), images)) ** 2)) / again.std() < 0.2


def test_threads_share_one_network_and_get_the_same_bits(weights: Path) -> None:
    segmenter, images = load_tiny(weights), windows(2)
    alone, found = answers(segmenter, images), []
    workers = [threading.Thread(target=lambda: found.append(answers(load_tiny(weights), images).tobytes())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [alone.tobytes()] * 4
    assert load_tiny(weights).engine is segmenter.engine


def test_a_batch_in_one_call_answers_as_its_windows_do_apart(weights: Path) -> None:
    apart, images = load_tiny(weights), windows(3)[[0, 1, 2, 2]]
    together = replace(apart, engine=replace(apart.engine, together=True))  # as on a GPU
    features = together.encode_images(images)
    assert [len(entry) for entry in features.features] == [4]  # a fixed shape: repeats are not left out
    np.testing.assert_allclose(answers(together, images), answers(apart, images), atol=2e-4)
    again = together.load_features(together.dump_features(features))
    assert [len(entry) for entry in again.features] == [4]


def test_the_network_is_let_go_with_its_last_segmenter(weights: Path) -> None:
    before = set(engines._open)
    segmenter = load_tiny(weights, precision="bfloat16", threads=2)
    made = set(engines._open) - before
    assert len(made) == 1
    del segmenter
    gc.collect()
    assert not made & set(engines._open)


def test_info_says_what_a_run_must_know(weights: Path) -> None:
    info = load_tiny(weights, window_px=32, stretch_high=255, stretch_low=0).info
    assert (info.name, info.bands, info.pixel_range, info.network_px) == ("rsrefseg", RGB, (0.0, 255.0), SIDE)
    assert (info.window_px, info.pixelwise, info.device, info.shares_image_features) == (None, False, "cpu", True)
    assert info.fixed_bytes == sum(tensor.nbytes for tensor in read_weights(weights)[0].values())
    one, two = (info.memory_bytes(bands=3, prompts=1, window_px=32, batch=batch) for batch in (1, 2))
    assert two - one >= info.feature_bytes
    assert 0.25e9 < info.call_bytes * (1024 / SIDE) ** 2 * 768 / 24 < 0.5e9  # at the published sizes 0.3 GB were measured


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
    assert load_tiny(make_tiny(tmp_path / "other", seed="other")).info.digest != load_tiny(weights).info.digest
    write_tokenizer(copy.parent, (*PIECES[:-2], PIECES[-1], PIECES[-2]))
    assert load_tiny(copy).info.digest != load_tiny(weights).info.digest


def test_explain_says_what_is_asked_and_its_pieces(weights: Path) -> None:
    assert explain_prompts(load_tiny(weights), prompts_of("Water", "the white-boats!")) == (
        '"Water" is asked as "water" (class name); read as: \u2581water',
        '"the white-boats!" is asked as "the whiteboats" (sentence); read as: \u2581the \u2581white b o a t s',
    )
    assert explain_prompts(load_tiny(weights, template="the {} in the image"), prompts_of("lake")) == (
        '"lake" is asked as "the lake in the image" (class name); read as: \u2581the \u2581lake \u2581in \u2581the \u2581image',
    )


def test_a_template_is_asked_for_class_names_only(weights: Path) -> None:
    plain, made = load_tiny(weights), load_tiny(weights, template="a {} on the left")
    images = windows(1)
    assert answers(made, images, "lake").tobytes() == answers(plain, images, "a lake on the left").tobytes()
    assert answers(made, images, "the lake").tobytes() == answers(plain, images, "the lake").tobytes()


def test_a_prompt_that_means_a_place_in_the_window_is_told(weights: Path) -> None:
    (line,) = prompt_warnings(load_tiny(weights), PROMPTS)
    assert '"the ship on the left": "on the left" is understood within each window, not within the region' in line
    assert prompt_warnings(load_tiny(weights), PROMPTS, sees_whole=True) == ()


def test_an_over_long_prompt_is_cut_with_its_end_kept_and_told(weights: Path) -> None:
    segmenter, long = load_tiny(weights), "x" * 100
    (line,) = prompt_warnings(segmenter, prompts_of(long))
    assert "is 101 word pieces long, the network has room for 63" in line
    assert 'cut off after "x x x"' in line
    assert prompt_warnings(segmenter, prompts_of("x" * 62)) == ()
    cut = answers(segmenter, windows(1), long)
    assert np.isfinite(cut).all()
    assert cut.tobytes() == answers(segmenter, windows(1), "x" * 62).tobytes()  # a blank, 62 letters, the end
    assert cut.tobytes() != answers(segmenter, windows(1), "x" * 61).tobytes()


def test_words_that_mean_nothing_are_told(weights: Path) -> None:
    assert "does not have 1 of its words" in prompt_warnings(load_tiny(weights), prompts_of("the 水"))[0]


@pytest.mark.parametrize("text", ["!?", "- ... -"])
def test_a_prompt_without_a_word_is_refused(weights: Path, text: str) -> None:
    for segmenter in (load_tiny(weights), load_tiny(weights, prompts="class", template="the {} here")):
        with pytest.raises(ConfigError, match="prompt-invalid") as caught:
            segmenter.encode_prompts(prompts_of("water", text))
        assert text in str(caught.value)


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
        ({"vocabulary": "vocab.txt"}, "tokenizer"),
        ({"precision": "float64"}, "float32, bfloat16, float16"),
        ({"device": "tpu"}, '"auto", "cpu", "cuda"'),
        ({"threads": 0}, "1..256"),
        ({"prompts": "words"}, '"auto", "class", "sentence"'),
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


def test_without_weights_it_is_said_that_none_are_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match="nobody has published") as caught:
        load_segmenter(ModelSpec(name="rsrefseg"), RGB)
    assert caught.value.code == "weights-missing"
    assert "eo-batch models convert FILE --network rsrefseg" in caught.value.fix
    make_tiny(tmp_path / "rsrefseg", name="rsrefseg")
    assert load_segmenter(ModelSpec(name="rsrefseg"), RGB).info.name == "rsrefseg"


def test_a_tokenizer_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    path = make_tiny(tmp_path / "alone")
    path.with_name("tokenizer.json").unlink()
    for options in ({}, {"tokenizer": str(tmp_path)}, {"tokenizer": str(tmp_path / "none.json")}):
        with pytest.raises(ModelError) as caught:
            load_tiny(path, **options)
        assert caught.value.code == "weights-missing"
    with pytest.raises(ModelError, match="eo-batch models fetch siglip"):
        load_tiny(path)


def test_a_tokenizer_may_be_named_lie_in_a_named_folder_or_be_the_fetched_one(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = load_tiny(weights).info.digest
    alone = make_tiny(tmp_path / "alone")
    words = alone.with_name("tokenizer.json").rename(tmp_path / "words.json")
    assert load_tiny(alone, tokenizer=str(words)).info.digest == right
    fetched = tmp_path / "kept" / "siglip" / ("0" * 40)
    fetched.mkdir(parents=True)
    write_tokenizer(fetched)
    (fetched / "fetched.json").write_text("{}")
    assert load_tiny(alone, tokenizer=str(fetched)).info.digest == right
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "kept"))
    assert load_tiny(alone).info.digest == right


def test_a_tokenizer_of_more_words_than_the_network_knows_is_refused(weights: Path, tmp_path: Path) -> None:
    words = write_tokenizer(tmp_path, (*PIECES, ("more", -3.0)))
    with pytest.raises(ModelError, match=f"has {len(PIECES) + 1} words, the network knows {len(PIECES)}"):
        load_tiny(weights, tokenizer=str(words))


def _forget(state: dict[str, torch.Tensor]) -> None:
    del state["prompter.channel.conv.weight"]


def _poison(state: dict[str, torch.Tensor]) -> None:
    state["encoder.text_model.head.weight"][3, 4] = float("nan")


def _rename(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


def _shorten(state: dict[str, torch.Tensor]) -> None:
    name = "sam.vision_encoder.pos_embed"
    state[name] = state[name].half()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_forget, "1 missing: prompter.channel.conv.weight"),
        (_poison, "encoder.text_model.head.weight holds NaN"),
        (_rename, "no checkpoint of this network"),
        (_shorten, "float16 instead of float32"),
    ],
)
def test_wrong_tensors_are_refused_by_name(tmp_path: Path, change: object, said: str) -> None:
    with pytest.raises(ModelError, match="model-load") as caught:
        load_tiny(make_tiny(tmp_path, change=change))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "config", "said"),
    [
        ("", {}, "does not say which network"),
        ("remotesam", {}, 'weights of "remotesam", not of "rsrefseg"'),
        ("rsrefseg", {"embed": 3}, 'there is no size "embed"'),
        ("rsrefseg", {"down_spatial_times": -1}, "config.down_spatial_times"),
        ("rsrefseg", {}, "missing"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, architecture: str, config: dict[str, Any], said: str) -> None:
    metadata = {"architecture": architecture, "config": json.dumps(config)} if architecture else {}
    with pytest.raises(ModelError, match="model-load") as caught:
        load_tiny(make_tiny(tmp_path, metadata=metadata))
    assert said in str(caught.value)


def test_weights_that_somebody_writes_into_give_no_more_answers(tmp_path: Path) -> None:
    path, other = make_tiny(tmp_path, seed="watched"), make_tiny(tmp_path / "other", seed="other")
    segmenter = load_tiny(path)
    answers(segmenter, windows(1), "water")
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    with pytest.raises(IntegrityError, match="weights-altered"):
        answers(segmenter, windows(1), "water")


def test_the_weights_that_are_loaded_are_those_whose_sum_was_made(tmp_path: Path) -> None:
    from eo_batch.models.rsrefseg.engine import open_engine

    path, other = make_tiny(tmp_path, seed="watched too"), make_tiny(tmp_path / "other", seed="other")
    files = find_weights(path)
    other.replace(path)
    with pytest.raises(IntegrityError, match="weights-altered"):
        open_engine(files, device="cpu", precision="float32")


@pytest.mark.parametrize("part", ["encode_images", "encode_prompts", "decode"])
def test_memory_that_runs_out_is_a_model_error_with_advice(weights: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    segmenter = load_tiny(weights)
    segmenter.engine.prompts.clear()

    def full(*arguments: object) -> None:
        raise RuntimeError("can't allocate memory: you tried 8 GB")

    monkeypatch.setattr(RSRefSeg, part, full)
    with pytest.raises(ModelError, match=r"Lower model\.batch") as caught:
        answers(segmenter, windows(1))
    assert (caught.value.code, caught.value.where) == ("model-oom", 'segmenter "rsrefseg"')


def test_reflectance_in_other_units_is_refused(weights: Path) -> None:
    with pytest.raises(ModelError, match="model-input"):
        load_tiny(weights).encode_images(windows(1) * 10000)


def make_clip(folder: Path) -> Path:
    """A small network on CLIP instead of SigLIP, with a tokenizer of whole words between CLIP's marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = ["<|startoftext|>", "<|endoftext|>", "<unk>", "the", "lake", "-", "side"]
    clip = {
        "projection_dim": 24,
        "text_config": {**tower, "vocab_size": len(names), "max_position_embeddings": 8},
        "vision_config": {**tower, "image_size": 28, "patch_size": 4},
    }
    config = tiny_config(clip=clip, siglip=None)
    torch.manual_seed(0)
    path = folder / "clip.safetensors"
    metadata = {"architecture": "rsrefseg", "config": json.dumps(config.as_dict())}
    write_safetensors(path, RSRefSeg.from_config(config).state_dict(), metadata)
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return path


def test_clip_is_read_between_its_marks_with_its_punctuation_and_at_its_length(tmp_path: Path) -> None:
    segmenter = load_tiny(make_clip(tmp_path))
    assert segmenter.tokenizer("The lake-side").ids.tolist() == [0, 3, 4, 5, 6, 1]
    assert segmenter.tokenizer("the lake " * 9).ids.tolist() == [0, 3, 4, 3, 4, 3, 4, 1]
    assert "network has room for 6" in prompt_warnings(segmenter, prompts_of("the lake the lake the lake the"))[0]
    together = answers(segmenter, windows(2), "the lake", "the lake side")
    assert np.isfinite(together).all()
    assert answers(segmenter, windows(2), "the lake side").tobytes() == np.ascontiguousarray(together[:, 1:]).tobytes()


def test_a_tokenizer_of_siglip_is_none_for_clip(tmp_path: Path) -> None:
    path = make_clip(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer of CLIP"):
        load_tiny(path)


def test_naming_the_segmenter_loads_no_network_library() -> None:
    code = (
        "import sys\nfrom eo_batch.models.registry import list_segmenters\nlist_segmenters()\n"
        "import eo_batch.models.rsrefseg.segmenter\nprint(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_list_of_models_says_that_no_trained_weights_are_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    assert "no trained weights are published" in BUILT_IN["rsrefseg"].licence
    assert BUILT_IN["rsrefseg"].state == "weights missing: none to fetch, convert a checkpoint (docs/guides/rsrefseg.md)"
    make_tiny(tmp_path / "rsrefseg", name="rsrefseg")
    assert BUILT_IN["rsrefseg"].state == "ready"
