"""One image, some prompts: answers equal upstream's, whatever the image is shown as, and say where nothing was seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError, ModelError, ResourceError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.segmenter import SegmenterInfo
from eo_batch.products.rules import BoxRules, TaskRules
from eo_batch.run.images.segment import decide_scores, image_grid, is_whole, prompt_set, segment_image, side_of
from eo_batch.run.told.events import Event
from eo_batch.sources.picture import RGB, Picture

SIDE = 896


class FieldSegmenter:
    """Answers each prompt with a fixed field of logits at its own side, given back at the window's shape as upstream does."""

    def __init__(self, fields: Mapping[str, NDArray[np.float32]]) -> None:
        self.fields, self.seen = fields, []
        self.info = SegmenterInfo(name="field", algorithm="field/1", digest="0", network_px=SIDE, pixel_range=(0.0, 0.25))

    def encode_prompts(self, prompts: PromptSet) -> list[NDArray[np.float32]]:
        return [self.fields[text] for text in prompts.texts]

    def encode_images(self, images: NDArray[np.float32]) -> tuple[int, ...]:
        self.seen.append(images.copy())
        return images.shape

    def decode(self, image_features: tuple[int, ...], prompt_features: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        n, _, h, w = image_features
        rows, cols = (np.floor(np.arange(side) * (SIDE / side)).astype(int) for side in (h, w))
        return np.stack([np.stack([field[rows][:, cols] for field in prompt_features])] * n)


def field_of(blobs: list[list[float]]) -> NDArray[np.float32]:
    """Logits of ellipses, float32 (896, 896)."""
    down, across = np.mgrid[:SIDE, :SIDE] + 0.5
    field = np.full((SIDE, SIDE), -6.0)
    for cx, cy, rx, ry, phi, height in blobs:
        a = ((across - cx) * np.cos(phi) + (down - cy) * np.sin(phi)) / rx
        b = (-(across - cx) * np.sin(phi) + (down - cy) * np.cos(phi)) / ry
        field = np.maximum(field, height * (1 - a**2 - b**2))
    return field.astype(np.float32)


def discs(height: int = 90, width: int = 130, *, at: tuple[tuple[int, int, int], ...] = ((20, 20, 10), (90, 60, 15))) -> Any:
    """White discs (x, y, radius) on dark green, uint8 (y, x, 3): what "cloud" finds is what is white."""
    image = np.full((height, width, 3), (15, 40, 20), np.uint8)
    y, x = np.mgrid[:height, :width]
    for cx, cy, r in at:
        image[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = (225, 225, 230)
    return image


def ask(image: Any, prompts: Any = "cloud", **options: Any) -> Any:
    return segment_image(image, prompts, **{"model": "spectral", **options})


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tasks_a", "tasks_b"])
def test_every_task_answers_as_upstream_did(shared: Path, name: str) -> None:
    folder = shared.parent / "golden" / "remotesam"
    if not folder.is_dir():
        pytest.skip("no reference vectors beside the real scenes")
    case = {case["name"]: case for case in json.loads((folder / "tasks.json").read_text())["cases"]}[name]
    with np.load(folder / f"{name}.npz") as file:
        arrays = dict(file)
    fields = {text: field_of(blobs) for text, blobs in case["blobs"].items()}
    fields[case["refer_sentence"]] = field_of(case["refer_blobs"])
    image, width = np.zeros((case["H"], case["W"], 3), np.uint8), case["W"]
    answer = segment_image(image, list(fields), model=FieldSegmenter(fields), rules=TaskRules.upstream())
    assert answer.fit == "whole"
    for index, text in enumerate(case["classes"]):
        expected = np.unpackbits(arrays[f"mask_{index}"], axis=1)[:, :width].astype(bool)
        np.testing.assert_array_equal(answer.masks[index], expected)
        np.testing.assert_allclose(answer.scores[index][::4, ::4], arrays[f"prob_s4_{index}"], atol=1e-6)
        boxes = [[*box.bounds, box.score] for box in answer.boxes[text]]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), np.reshape(case["detection"][text] or [], (-1, 5)), atol=1e-5)
        assert answer.best_class.scores[text] == pytest.approx(case["multi_class_scores"][text], abs=1e-6)
        # Upstream's mean is over the pixels of the network, ours over those of the image.
        assert answer.labels.scores[text] == pytest.approx(case["multi_label_scores"][text], abs=2e-4)
    refer = np.unpackbits(arrays["mask_refer"], axis=1)[:, :width].astype(bool)
    np.testing.assert_array_equal(answer.masks[-1], refer)
    assert list(answer.places[case["refer_sentence"]].bounds) == case["visual_grounding"]
    assert {text: answer.counts[text] for text in case["classes"]} == case["counting"]
    asked_alone = segment_image(image, case["classes"], model=FieldSegmenter(fields), rules=TaskRules.upstream())
    assert list(asked_alone.labels.names) == case["multi_label"]
    assert asked_alone.best_class.names == (case["multi_class"],)


@pytest.mark.shared
@pytest.mark.parametrize(("threshold", "key"), [(0.25, "detection_epoc_thr025"), (0.7, "detection_epoc_thr07")])
def test_contours_part_objects_as_upstream_did(shared: Path, threshold: float, key: str) -> None:
    file = shared.parent / "golden" / "remotesam" / "tasks.json"
    if not file.is_file():
        pytest.skip("no reference vectors beside the real scenes")
    case = json.loads(file.read_text())["cases"][0]
    contour = np.full((case["H"], case["W"]), 0.05, np.float32)
    for x0, y0, x1, y1, value in case["contour_rects"]:
        contour[y0:y1, x0:x1] = value
    fields = {text: field_of(blobs) for text, blobs in case["blobs"].items()}
    rules = TaskRules.upstream(contour_threshold=threshold)
    image = np.zeros((*contour.shape, 3), np.uint8)
    answer = segment_image(image, list(fields), model=FieldSegmenter(fields), rules=rules, contour=contour)
    for text, expected in case[key].items():
        boxes = [[*box.bounds, box.score] for box in answer.boxes[text]]
        np.testing.assert_allclose(np.reshape(boxes, (-1, 5)), np.reshape(expected or [], (-1, 5)), atol=1e-5)


def test_a_small_remotesam_answers_an_image_as_the_network_does_by_hand(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from PIL import Image
    from tinysam import SIDE as side
    from tinysam import WORDS, make_tiny, tiny_config

    from eo_batch.models.remotesam import RemoteSAM
    from eo_batch.models.weights import read_weights

    weights = make_tiny(tmp_path)
    image = np.random.default_rng(1).integers(0, 256, (70, 110, 3), np.uint8)
    answer = segment_image(image, ["water", "ship"], model=ModelSpec(name="remotesam", options={"weights": str(weights)}))
    assert (answer.fit, answer.scores.shape) == ("whole", (2, 70, 110))
    network = RemoteSAM.from_config(tiny_config())
    network.load_state_dict(read_weights(weights)[0])
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)) / 255
    pixels = ((small - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1)[None]
    for index, text in enumerate(("water", "ship")):
        ids = [WORDS.index(word) for word in ("[CLS]", text, "in", "the", "image", "[SEP]")]
        padded, mask = ids + [0] * (20 - len(ids)), [1] * len(ids) + [0] * (20 - len(ids))
        with torch.no_grad():
            logits = network(torch.tensor(pixels, dtype=torch.float32), torch.tensor([padded]), torch.tensor([mask]))
        share = torch.softmax(logits, dim=1)[0, 1].numpy()
        at_image = share[np.arange(70) * side // 70][:, np.arange(110) * side // 110]
        np.testing.assert_allclose(answer.scores[index], at_image, atol=1e-4)


def test_contours_come_from_a_network_as_the_image_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from eo_batch.models.contours import load_contours

    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
    SegformerForSemanticSegmentation(SegformerConfig(num_labels=1, **sizes)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}}))
    image = np.random.default_rng(2).integers(0, 256, (90, 150, 3), np.uint8)
    expected = load_contours(tmp_path).contour(image)
    whole = ask(image, fit="whole", contour=tmp_path)
    np.testing.assert_allclose(whole.contour, expected, atol=1e-6)
    windows = ask(image, fit="windows", contour=str(tmp_path))
    assert windows.contour.shape == (90, 150)
    assert np.isfinite(windows.contour).all()
    assert np.abs(windows.contour - expected).max() > 1e-6


def test_windows_and_the_whole_image_agree_to_the_bit_where_pixels_stand_alone() -> None:
    image = discs(200, 333)
    whole = ask(image, fit="whole")
    windows = ask(image, fit="windows", model=ModelSpec(name="spectral", window_px=64, batch=3))
    assert (whole.window_px, windows.window_px) == (None, 64)
    np.testing.assert_array_equal(whole.masks, windows.masks)
    np.testing.assert_allclose(whole.scores, windows.scores, atol=1e-6)


def test_what_is_found_is_what_was_painted() -> None:
    answer = ask(discs())
    y, x = np.mgrid[:90, :130]
    painted = ((x - 20) ** 2 + (y - 20) ** 2 < 100) | ((x - 90) ** 2 + (y - 60) ** 2 < 225)
    np.testing.assert_array_equal(answer.masks[0], painted)
    assert answer.counts == {"cloud": 2}
    assert {box.bounds for box in answer.boxes["cloud"]} == {(11, 11, 30, 30), (76, 46, 105, 75)}
    assert answer.places["cloud"].bounds == (11, 11, 105, 75)
    assert answer.caption(regions=0) == "This image features 2 clouds."


def test_pixels_reach_the_segmenter_in_the_units_it_names() -> None:
    segmenter = FieldSegmenter({"ship": field_of([])})
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    segment_image(image, "ship", model=segmenter)
    (seen,) = segmenter.seen
    assert seen.shape == (1, 3, 30, 40)
    np.testing.assert_array_equal(np.rint(seen[0] / np.float32(0.25) * 255), np.moveaxis(image, -1, 0))


def test_no_window_reaches_over_the_first_pixels_and_all_pixels_are_covered() -> None:
    for shape in ((1, 1), (50, 300), (97, 96), (640, 129)):
        grid = image_grid(shape, window_px=64, overlap=0.25)
        chunk = grid.chunk(0, 0, 0)
        covered = np.zeros(shape, int)
        for window in grid.windows(chunk):
            rows, cols = chunk.rows.intersect(window.rows), chunk.cols.intersect(window.cols)
            covered[rows.within(chunk.rows), cols.within(chunk.cols)] += 1
        assert covered.min() >= 1
        assert covered[0, 0] == 1
        assert chunk.shape == shape
    small = image_grid((32, 32), window_px=64, overlap=0.25)
    assert len(small.windows(small.chunk(0, 0, 0))) == 1


def test_the_image_is_whole_up_to_twice_the_side_of_the_network() -> None:
    network = SegmenterInfo(name="n", algorithm="n/1", digest="0", network_px=100)
    assert is_whole("auto", (200, 30), 512, network)
    assert not is_whole("auto", (201, 30), 512, network)
    assert is_whole("whole", (5000, 5000), 512, network)
    assert not is_whole("windows", (20, 20), 512, network)
    square = SegmenterInfo(name="s", algorithm="s/1", digest="0", window_px=64)
    assert is_whole("auto", (64, 64), 64, square)
    assert not is_whole("auto", (64, 65), 64, square)
    with pytest.raises(ConfigError, match="64 px only"):
        is_whole("whole", (64, 65), 64, square)
    with pytest.raises(ConfigError, match="unknown fit"):
        is_whole("full", (64, 65), 64, square)


def test_windows_have_the_side_that_is_asked_for_or_the_networks() -> None:
    network = SegmenterInfo(name="n", algorithm="n/1", digest="0", network_px=100)
    assert side_of(network, ModelSpec(name="n")) == 100
    assert side_of(network, ModelSpec(name="n", window_px=64)) == 64


def test_what_was_not_observed_is_no_answer() -> None:
    image = discs()
    valid = np.ones(image.shape[:2], bool)
    valid[:40, :40] = False
    pixels = np.moveaxis(image, -1, 0).astype(np.float32) / np.float32(255)
    for fit in ("whole", "windows"):
        answer = ask(Picture("p", pixels, valid, RGB), fit=fit)
        np.testing.assert_array_equal(np.isnan(answer.scores[0]), ~valid)
        np.testing.assert_array_equal(answer.codes[0] == 254, ~valid)
        assert not answer.masks[0][~valid].any()
        assert answer.counts == {"cloud": 1}
        assert answer.found_share(0) == pytest.approx(answer.masks[0].sum() / valid.sum())


def test_an_image_without_any_observation_has_an_empty_answer() -> None:
    blank = Picture("p", np.zeros((3, 8, 9), np.float32), np.zeros((8, 9), bool), RGB)
    answer = ask(blank, ["cloud"])
    told = answer.as_dict()
    assert told["prompts"][0]["found_share"] is None
    assert (answer.counts, answer.best_class.names) == ({"cloud": 0}, ())
    json.dumps(told, allow_nan=False)


def test_one_pixel_can_be_asked_about() -> None:
    for fit in ("whole", "windows"):
        answer = ask(np.full((1, 1, 3), 230, np.uint8), fit=fit)
        assert answer.boxes["cloud"][0].bounds == (0, 0, 1, 1)


def test_an_answer_is_plain_json_whatever_the_rules() -> None:
    for rules in (TaskRules(), TaskRules.upstream(), TaskRules(boxes=BoxRules(oriented=True)), TaskRules(nms_iou=None)):
        answer = ask(discs(), rules=rules)
        told = json.loads(json.dumps(answer.as_dict(seed=3), allow_nan=False))
        assert told["prompts"][0]["count"] == 2
        assert len(told["prompts"][0]["boxes"]) == 2
        assert told["width"] == 130


def test_only_the_tasks_asked_for_are_told() -> None:
    told = ask(discs()).as_dict(["count"])
    assert set(told["prompts"][0]) == {"text", "id", "count"}
    assert "caption" not in told


def test_a_pixel_at_the_threshold_is_not_found() -> None:
    logits = np.array([[[0.0, 1e-7, -1e-7, np.nan, 90.0, -200.0]]], np.float32)
    scores, masks = decide_scores(logits, prompt_set("a"))
    np.testing.assert_array_equal(masks[0, 0], [False, True, False, False, True, False])
    np.testing.assert_allclose(scores[0, 0], [0.5, 0.5, 0.5, np.nan, 1, 0], atol=1e-6)
    _, strict = decide_scores(logits, prompt_set("a", threshold=0.999))
    assert strict.sum() == 1


def test_classes_can_be_parted_so_that_no_pixel_has_two() -> None:
    fields = {"ship": field_of([[300, 300, 100, 100, 0, 5]]), "boat": field_of([[340, 300, 100, 100, 0, 3]])}
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    apart = segment_image(image, list(fields), model=FieldSegmenter(fields), rules=TaskRules(overlap="best"))
    free = segment_image(image, list(fields), model=FieldSegmenter(fields))
    assert free.masks.all(axis=0).any()
    assert not apart.masks.all(axis=0).any()
    np.testing.assert_array_equal(apart.masks.any(axis=0), free.masks.any(axis=0))


def test_progress_is_told_window_by_window() -> None:
    told: list[Event] = []
    ask(discs(300, 300), fit="windows", model=ModelSpec(name="spectral", window_px=64, batch=4), listener=told.append)
    windows = [event for event in told if event.kind == "window"]
    assert windows[0].done == 0
    assert windows[-1].done == windows[-1].total == 49
    assert [event.done for event in windows] == sorted(event.done for event in windows)


def test_questions_that_make_no_sense_are_refused() -> None:
    image = discs()
    for options, code in (
        ({"prompts": []}, "prompt-invalid"),
        ({"prompts": [" "]}, "prompt-invalid"),
        ({"prompts": ["cloud", " cloud "]}, "prompt-invalid"),
        ({"prompts": ["x" * 201]}, "prompt-invalid"),
        ({"threshold": 0.0}, "config-invalid"),
        ({"threshold": 1.0}, "config-invalid"),
        ({"fit": "best"}, "config-invalid"),
        ({"contour": np.zeros((3, 3), np.float32)}, "config-invalid"),
        ({"contour": np.zeros(image.shape[:2], np.uint8)}, "config-invalid"),
        ({"contour": np.full(image.shape[:2], np.nan)}, "config-invalid"),
        ({"model": "spectra"}, "config-invalid"),
    ):
        with pytest.raises(ConfigError) as caught:
            ask(image, **options)
        assert caught.value.code == code


def test_bands_that_the_model_needs_are_asked_of_the_image() -> None:
    with pytest.raises(ConfigError, match=r"bands of the image.*--bands"):
        ask(discs(), "water")


def test_a_model_of_colours_finds_them_among_other_bands(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tinysam import make_tiny

    spec = ModelSpec(name="remotesam", options={"weights": str(make_tiny(tmp_path))})
    pixels = np.random.default_rng(0).random((4, 40, 50)).astype(np.float32)
    many = Picture("p", pixels, np.ones((40, 50), bool), ("blue", "nir", "red", "green"))
    plain = Picture("p", pixels[[2, 3, 0]], many.valid, RGB)
    np.testing.assert_array_equal(ask(many, "water", model=spec).scores, ask(plain, "water", model=spec).scores)
    with pytest.raises(ConfigError, match=r"bands of the image.*--bands"):
        ask(Picture("p", pixels, many.valid, ("blue", "nir", "swir16", "green")), "water", model=spec)


def test_answers_that_are_not_finite_are_refused() -> None:
    field = np.full((SIDE, SIDE), np.nan, np.float32)
    with pytest.raises(ModelError, match="model-not-finite"):
        segment_image(discs(), "ship", model=FieldSegmenter({"ship": field}))


def test_an_answer_that_would_not_fit_in_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    free = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ResourceError, match="plan-too-big"):
        ask(discs())
