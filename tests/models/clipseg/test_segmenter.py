"""CLIPSeg as a segmenter: its answers are those of plain transformers; what decides them, what may not, and every wrong input."""

from __future__ import annotations

import json
import shutil
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
from tinyclipseg import MARKS, MEAN, PAIRS, RGB, SIDE, STD, load_tiny, make_tiny, prompts_of
from transformers import CLIPSegForImageSegmentation, CLIPTokenizer
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoderLayer, CLIPSegEncoderLayer, CLIPSegTextModel

from eo_batch.core.errors import ConfigError, IntegrityError, ModelError
from eo_batch.models.clipseg.engine import TOLERATED
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.registry import BUILT_IN
from eo_batch.models.segmenter import Segmenter, explain_prompts, feature_keeper, prompt_warnings
from eo_batch.models.weights.published import FOLDERS

PROMPTS = prompts_of("water", "a road beside a field", "field of roads!")
END = 512 + len(PAIRS) + 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network as its authors would publish it; tests must not change it."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "copy")


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
def of_transformers(folder: Path) -> tuple[Any, Any]:
    return CLIPSegForImageSegmentation.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)


def by_transformers(folder: Path, image: NDArray[np.float32], text: str) -> NDArray[np.float32]:
    """What the library alone answers about a window: its tokenizer, padded and masked, its network; plain Pillow, one resize."""
    network, tokenizer = of_transformers(folder)
    read = tokenizer(text, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    colours = np.rint(np.clip(image.astype(np.float64) / 0.25, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    picture = np.asarray(Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64) / 255
    pixels = torch.tensor(((picture - MEAN) / STD).transpose(2, 0, 1)[None], dtype=torch.float32)
    with torch.no_grad():
        logits = network(input_ids=read.input_ids, attention_mask=read.attention_mask, pixel_values=pixels).logits
        whole = torch.nn.functional.interpolate(logits.reshape(1, 1, SIDE, SIDE), image.shape[1:], mode="bilinear")
    return whole[0, 0].numpy()


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (100, 100), (40, 90)])
def test_answers_are_those_of_transformers_alone(saved: Path, height: int, width: int) -> None:
    images = windows(2, height, width)
    got = answers(load_tiny(saved), images)
    assert (got.shape, got.dtype) == ((2, 3, height, width), np.float32)
    for number, image in enumerate(images):
        for place, text in enumerate(PROMPTS.texts):
            np.testing.assert_allclose(got[number, place], by_transformers(saved, image, text), atol=2e-5)
    assert np.abs(got[:, 0] - got[:, 1]).max() > 0.1
    assert np.abs(got[0] - got[1]).max() > 0.1


@pytest.mark.parametrize(
    "settings", [{"use_complex_transposed_convolution": False}, {"extract_layers": [4, 1], "conditional_layer": 1}]
)
def test_other_decoders_answer_as_transformers_alone_too(tmp_path: Path, settings: dict[str, Any]) -> None:
    make_tiny(tmp_path, **settings)
    (image,) = windows(1)
    np.testing.assert_allclose(
        answers(load_tiny(tmp_path), image[None], "water")[0, 0], by_transformers(tmp_path, image, "water"), atol=2e-5
    )


TEXTS = (
    "water",
    "WATER",
    " a  road\tbeside\na field ",
    "it's 2024, isn't it?",
    "Straße ñandú 水 🌊",
    "e\u0301tang",
    "fieldroad",
    "a-b_c",
    "don't 'll 12345",
    "Ωmega",
    "\u00a0non\u2003breaking",
)


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_read_as_transformers_reads_them(saved: Path, text: str) -> None:
    expected = of_transformers(saved)[1](text).input_ids
    got = load_tiny(saved).tokenizer(text).ids.tolist()
    assert got == (expected if len(expected) <= 16 else [*expected[:15], END])


def test_a_mark_that_somebody_writes_into_a_prompt_is_text(saved: Path) -> None:
    assert load_tiny(saved).tokenizer("water <|endoftext|> road").ids.tolist().count(END) == 1


def test_a_tokenizer_in_one_file_reads_the_same(saved: Path, folder: Path) -> None:
    of_transformers(saved)[1].save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
    one, two = load_tiny(folder), load_tiny(saved)
    for text in TEXTS:
        assert one.tokenizer(text).ids.tolist() == two.tokenizer(text).ids.tolist()
    assert answers(one, windows(1)).tobytes() == answers(two, windows(1)).tobytes()


def test_prompts_together_are_prompts_apart_to_the_bit(saved: Path) -> None:
    segmenter, images = load_tiny(saved), windows()
    together = answers(segmenter, images)
    for place, text in enumerate(PROMPTS.texts):
        assert answers(segmenter, images, text).tobytes() == np.ascontiguousarray(together[:, place : place + 1]).tobytes()


def test_windows_together_are_windows_apart_to_the_bit(saved: Path) -> None:
    segmenter, images = load_tiny(saved), windows(4)
    together = answers(segmenter, images)
    for number in range(4):
        assert answers(segmenter, images[number : number + 1]).tobytes() == together[number].tobytes()
    assert answers(segmenter, images[::-1]).tobytes() == np.ascontiguousarray(together[::-1]).tobytes()


def test_the_probe_finds_a_window_the_same_in_any_company(saved: Path) -> None:
    assert probe_segmenter(load_tiny(saved), PROMPTS, RGB, window_px=48, batch=3).position_independent


def test_a_batch_in_one_call_answers_as_its_windows_do_apart(saved: Path) -> None:
    apart, images = load_tiny(saved), windows(3)[[0, 1, 2, 2]]
    together = replace(apart, engine=replace(apart.engine, together=True))  # as on a GPU
    assert [len(entry) for entry in together.encode_images(images).features] == [4]
    np.testing.assert_allclose(answers(together, images), answers(apart, images), atol=1e-4)


def test_kept_features_answer_with_the_same_bytes(saved: Path) -> None:
    segmenter, images = load_tiny(saved), windows(3, 80, 70)
    keeper = feature_keeper(segmenter)
    assert keeper is not None
    kept = [
        {name: np.frombuffer(part.tobytes(), part.dtype).reshape(part.shape) for name, part in window.items()}
        for window in keeper.dump_features(segmenter.encode_images(images[[0, 1, 2, 1]]))
    ]
    sizes = [sum(part.nbytes for part in window.values()) for window in kept]
    assert all(abs(size - segmenter.info.feature_bytes) < 100 for size in sizes)
    prompts = segmenter.encode_prompts(PROMPTS)
    again = segmenter.decode(keeper.load_features([kept[2], kept[0], kept[3], kept[0]]), prompts)
    assert again.tobytes() == answers(segmenter, images[[2, 0, 1, 0]]).tobytes()


def test_what_no_prompt_changes_is_computed_once_and_no_more_of_it_than_is_needed(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {CLIPSegEncoderLayer: 0, CLIPSegTextModel: 0, CLIPSegDecoderLayer: 0}
    segmenter = load_tiny(saved)
    segmenter.engine.prompts.clear()
    for kind in calls:

        def counted(self: Any, *a: Any, kind: Any = kind, original: Any = kind.forward, **k: Any) -> Any:
            calls[kind] += 1
            return original(self, *a, **k)

        monkeypatch.setattr(kind, "forward", counted)
    features = segmenter.encode_prompts(PROMPTS)
    assert calls == {CLIPSegEncoderLayer: 3 * 2, CLIPSegTextModel: 3, CLIPSegDecoderLayer: 0}
    seen = segmenter.encode_images(windows(3)[[0, 1, 2, 0]])  # a window that fills up a batch is not looked at again
    assert calls[CLIPSegEncoderLayer] == 3 * 2 + 3 * 4  # of 5 layers the decoder reads the 4th at most
    segmenter.decode(seen, features)
    assert calls == {CLIPSegEncoderLayer: 18, CLIPSegTextModel: 3, CLIPSegDecoderLayer: 3 * 3 * 3}
    load_tiny(saved).encode_prompts(PROMPTS)
    assert calls[CLIPSegTextModel] == 3
    load_tiny(saved, threads=2).encode_prompts(PROMPTS)  # other sums
    assert calls[CLIPSegTextModel] == 6


def test_a_template_words_every_prompt_and_is_part_of_the_identity(saved: Path) -> None:
    plain, worded = load_tiny(saved), load_tiny(saved, template="a road of {}")
    images = windows(1)
    assert answers(worded, images, "Water").tobytes() == answers(plain, images, "a road of water").tobytes()
    assert worded.info.digest != plain.info.digest
    assert 'is asked as "a road of water"' in explain_prompts(worded, prompts_of("water"))[0]


@pytest.mark.parametrize(
    "options", [{"stretch_high": 0.3}, {"stretch_gamma": 1.4}, {"threads": 2}, {"precision": "bfloat16"}, {"template": "the {}"}]
)
def test_what_changes_an_answer_changes_the_identity(saved: Path, options: dict[str, Any]) -> None:
    assert load_tiny(saved, **options).info.digest != load_tiny(saved).info.digest


def test_other_weights_and_other_words_change_the_identity(saved: Path, folder: Path) -> None:
    before = load_tiny(saved).info.digest
    assert load_tiny(folder).info.digest == before
    merges = (folder / "merges.txt").read_text()
    (folder / "merges.txt").write_text(merges.removesuffix(f"{PAIRS[-1]}\n"))
    assert load_tiny(folder).info.digest != before
    (folder / "merges.txt").write_text(merges)
    tensors = {name: tensor.clone() for name, tensor in load_file(saved / "model.safetensors").items()}
    tensors["decoder.film_mul.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    assert load_tiny(folder).info.digest != before


def test_bfloat16_answers_nearly_as_float32(saved: Path) -> None:
    exact, rough = answers(load_tiny(saved), windows(2)), answers(load_tiny(saved, precision="bfloat16"), windows(2))
    assert rough.dtype == np.float32
    assert 0 < np.sqrt(np.mean((rough - exact) ** 2)) / exact.std() < 0.2


def test_info_says_what_a_run_must_know(saved: Path) -> None:
    info = load_tiny(saved, window_px=32, stretch_high=255, stretch_low=0).info
    assert (info.name, info.bands, info.pixel_range, info.network_px) == ("clipseg", RGB, (0.0, 255.0), SIDE)
    assert (info.window_px, info.pixelwise, info.shares_image_features, info.device) == (None, False, True, "cpu")
    assert info.fixed_bytes == sum(tensor.nbytes for tensor in load_file(saved / "model.safetensors").values())
    assert info.feature_bytes == 3 * 17 * 16 * 4
    entry = BUILT_IN["clipseg"]
    assert (entry.licence, entry.weights, entry.has_threads) == ("Apache-2.0", ("clipseg",), True)


def test_a_long_prompt_is_cut_before_its_end_mark_and_its_author_is_told(saved: Path) -> None:
    segmenter, long = load_tiny(saved), "field " * 20
    ids = segmenter.tokenizer(long).ids
    assert (len(ids), ids[-1]) == (16, END)
    (line,) = [line for line in prompt_warnings(segmenter, prompts_of(long)) if "cut off" in line]
    assert "20 word pieces long, the network has room for 14" in line
    images = windows(1)
    assert answers(segmenter, images, long).tobytes() == answers(segmenter, images, "field " * 14).tobytes()


def test_places_in_a_picture_are_warned_of_where_a_run_shows_windows(saved: Path) -> None:
    segmenter, prompts = load_tiny(saved), prompts_of("the road on the left", "water")
    assert any('"on the left" is understood within each window' in line for line in prompt_warnings(segmenter, prompts))
    assert not any("each window" in line for line in segmenter.warnings(prompts, sees_whole=True))
    assert prompt_warnings(segmenter, prompts_of("water")) == ()


@pytest.mark.parametrize("text", ["?", "...", "- -"])
def test_a_prompt_without_a_word_is_refused(saved: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="prompt-invalid"):
        load_tiny(saved).encode_prompts(prompts_of(text))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"templat": "{}"}, 'Did you mean "template"'),
        ({"template": "no place"}, "one place"),
        ({"template": "{} {}"}, "one place"),
        ({"precision": "float64"}, "unknown precision"),
        ({"threads": 0}, "threads"),
        ({"threads": "two"}, "whole number"),
        ({"stretch_high": -1}, "stretch_high"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_wrong_options_are_told_with_their_key(saved: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_tiny(saved, **options)


@pytest.mark.parametrize("bands", [("green", "nir"), ("blue", "green", "red"), ("red", "green", "blue", "nir")])
def test_other_bands_than_a_colour_picture_are_refused(saved: Path, bands: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="sees colour pictures"):
        load_tiny(saved, bands=bands)


def test_missing_weights_are_told_with_the_command_that_brings_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match="weights-missing: .*eo-batch models fetch clipseg"):
        load_tiny(Path("clipseg"))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"model_type": "clip"}, 'type "clip", not "clipseg"'),
        ("config.json", {"extract_layers": [0, 9]}, "extract_layers"),
        ("config.json", {"extract_layers": [1, 1, 2]}, "extract_layers"),
        ("config.json", {"extract_layers": []}, "extract_layers"),
        ("config.json", {"conditional_layer": 3}, "conditional_layer"),
        ("config.json", {"reduce_dim": 10_000_000}, "model-load"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 96}}, "a square of whole patches"),
        ("preprocessor_config.json", {"size": 72}, "a square of whole patches"),
        ("preprocessor_config.json", {"size": 1_000_000}, "size is not one of"),
        ("preprocessor_config.json", {"do_normalize": False}, "do_normalize"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std"),
    ],
)
def test_a_folder_that_describes_no_such_network_is_refused(folder: Path, name: str, change: dict[str, Any], said: str) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    with pytest.raises(ModelError, match=said):
        load_tiny(folder)


def test_sizes_that_do_not_go_together_are_told_when_they_are_met(folder: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "decoder_num_attention_heads": 3}))
    with pytest.raises(ModelError, match="model-load: .*cannot compute with the sizes"):
        answers(load_tiny(folder), windows(1))


def with_end(folder: Path, number: int) -> Path:
    """The folder, its config telling another number for the end mark."""
    said = json.loads((folder / "config.json").read_text())
    said["text_config"]["eos_token_id"] = number
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def test_a_network_that_looks_elsewhere_for_the_end_of_a_prompt_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"at number 9, its tokenizer writes {END}"):
        load_tiny(with_end(folder, 9))


def test_the_number_that_older_configs_give_for_the_end_answers_the_same(saved: Path, folder: Path) -> None:
    older = answers(load_tiny(with_end(folder, 2)), windows(1), "water")
    assert older.tobytes() == answers(load_tiny(saved), windows(1), "water").tobytes()


def test_a_folder_without_words_is_refused(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"weights-missing: .*tokenizer.json, or the vocab.json and merges.txt"):
        load_tiny(folder)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vocab.json", "[]", "no vocabulary of byte pairs"),
        ("vocab.json", "{", "no vocabulary of byte pairs"),
        ("vocab.json", '{"a": "b"}', "no vocabulary of byte pairs"),
        ("vocab.json", '{"a": -1}', "no vocabulary of byte pairs"),
        ("vocab.json", '{"a": 0}', "no <|startoftext|>, <|endoftext|>"),
        ("vocab.json", "\udcff", "no vocabulary of byte pairs"),
        ("merges.txt", "a b c\n", "a line that is no pair"),
        ("merges.txt", "zz yy\n", "does not belong to its vocabulary"),
        ("tokenizer.json", "{}", "is no tokenizer"),
    ],
)
def test_damaged_words_are_refused(folder: Path, name: str, content: str, said: str) -> None:
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=said.replace("|", r"\|")):
        load_tiny(folder)


def test_more_words_than_the_network_knows_are_refused(folder: Path) -> None:
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(words | {"more": END + 1}))
    with pytest.raises(ModelError, match=f"has {END + 2} words, the network knows {END + 1}"):
        load_tiny(folder)
    assert set(MARKS) <= set(words)


def test_weights_that_somebody_writes_into_end_the_run(folder: Path) -> None:
    segmenter = load_tiny(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(bytes(64))
    with pytest.raises(IntegrityError, match="weights-altered"):
        answers(segmenter, windows(1))


def test_the_pinned_weights_have_the_size_of_this_network_and_of_the_tables_that_are_tolerated() -> None:
    from transformers import CLIPSegConfig

    vision = {"patch_size": 16, "image_size": 224}
    with torch.device("meta"):
        network = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config=vision, use_complex_transposed_convolution=True))
    shapes = {name: ("F32", list(tensor.shape), 4 * tensor.numel()) for name, tensor in network.state_dict().items()}
    tables = {name: ("I64", [1, count], 8 * count) for name, count in zip(TOLERATED, (77, 197), strict=True)}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in [*sorted(tables.items()), *sorted(shapes.items())]:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    described = len(json.dumps(header, separators=(",", ":")))
    published = next(file for file in FOLDERS[0].files if file.filename == "model.safetensors")
    assert published.bytes == 8 + -(-described // 8) * 8 + end
