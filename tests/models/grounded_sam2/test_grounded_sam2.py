"""Grounding DINO's boxes into SAM 2: held against both networks asked by transformers alone, with its own post-processing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyfinders import RGB, SIDE, WORDS, answers, load, make_detector, make_sam2, prompts_of, windows
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, PreTrainedTokenizerFast, Sam2Model
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from eo_batch.core.errors import ConfigError, IntegrityError, ModelError
from eo_batch.models.finder import FinderSegmenter
from eo_batch.models.grounded_sam2.detector import Framing, detect
from eo_batch.models.grounded_sam2.engine import BoxRules
from eo_batch.models.grounded_sam2.masks import TOGETHER
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.instances import LIMIT, join
from eo_batch.models.preparation import Preparation
from eo_batch.models.registry import BUILT_IN
from eo_batch.models.segmenter import explain_prompts, feature_keeper, prompt_warnings

TEXTS = ("water", "solar panel", "the dark lake")
SHARE = 0.6
"""Box threshold under which some of the small network's boxes count and some do not."""


@dataclass(frozen=True)
class Files:
    """Folders of small networks as their authors would publish them; tests must not change them."""

    detector: Path
    masks: Path

    def load(self, **options: Any) -> FinderSegmenter:
        folders = {"detector": str(self.detector), "weights": str(self.masks)}
        return load("grounded-sam2", **{**folders, "box_threshold": SHARE, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("grounded")
    return Files(make_detector(folder / "detector", seed=4), make_sam2(folder / "masks"))


@pytest.fixture(scope="module", autouse=True)
def kept(saved: Files) -> FinderSegmenter:
    """Holds the networks: what a test loads again are the same ones."""
    return saved.load()


@pytest.fixture
def copies(saved: Files, tmp_path: Path) -> Files:
    """To damage."""
    return Files(*(shutil.copytree(folder, tmp_path / folder.name) for folder in (saved.detector, saved.masks)))


def picture_of(image: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(image.astype(np.float64) / 0.25, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))


@cache
def detector_of(saved: Files) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    words = PreTrainedTokenizerFast(tokenizer_file=str(saved.detector / "tokenizer.json"), unk_token="[UNK]")
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
    return GroundingDinoForObjectDetection.from_pretrained(saved.detector).eval(), GroundingDinoProcessor(pictures, words)


@cache
def masks_of(saved: Files) -> Sam2Model:
    return Sam2Model.from_pretrained(saved.masks).eval()


def boxes_by_transformers(saved: Files, image: NDArray[np.float32], text: str, threshold: float) -> tuple[Any, Any]:
    """(scores, boxes) that the library's loader, processors and one full forward find; boxes in shares, surest first."""
    network, processor = detector_of(saved)
    inputs = processor.image_processor(picture_of(image), return_tensors="pt")
    read = processor.tokenizer(f"[CLS] {text}. [SEP]", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        output = network(pixel_values=inputs.pixel_values, pixel_mask=inputs.pixel_mask, input_ids=read.input_ids)
    (found,) = processor.post_process_grounded_object_detection(output, read.input_ids, threshold=threshold, text_threshold=0.25)
    has_word = torch.tensor([any(word in label for word in text.split()) for label in found["text_labels"]], dtype=torch.bool)
    scores, boxes = found["scores"][has_word], found["boxes"][has_word]
    order = torch.argsort(scores, descending=True)
    return scores[order], boxes[order]


def masks_by_transformers(saved: Files, image: NDArray[np.float32], boxes: torch.Tensor) -> torch.Tensor:
    """Mask logits of boxes (box, y, x) as large as the window, from one full forward of the library for each box."""
    picture = np.asarray(picture_of(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = torch.tensor((picture - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225), dtype=torch.float32).permute(2, 0, 1)[None]
    masks = []
    for box in boxes.clamp(0, 1) * SIDE:
        with torch.no_grad():
            output = masks_of(saved)(pixel_values=pixels, input_boxes=box[None, None], multimask_output=False)
        large = torch.nn.functional.interpolate(output.pred_masks[:, 0], image.shape[1:], mode="bilinear", align_corners=False)
        masks.append(large[0, 0])
    return torch.stack(masks) if masks else torch.zeros(0, *image.shape[1:])


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 90)])
def test_a_pixel_is_found_where_a_box_counts_and_its_mask_has_it(saved: Files, height: int, width: int) -> None:
    images = windows(2, height, width)
    got = answers(saved.load(), images, *TEXTS)
    assert got.shape == (2, 3, height, width)
    counted = []
    for number, image in enumerate(images):
        for place, text in enumerate(TEXTS):
            _, boxes = boxes_by_transformers(saved, image, text, SHARE)
            masks = masks_by_transformers(saved, image, boxes)
            right = torch.cat([masks, torch.full((1, height, width), -LIMIT)]).amax(0).clamp(-LIMIT, LIMIT)
            np.testing.assert_allclose(got[number, place], right, atol=2e-3)
            counted.append(len(boxes))
    assert len(set(counted)) > 1


def test_graded_scores_are_bounded_by_the_box_and_its_threshold_is_a_half(saved: Files) -> None:
    image = windows(1)[0]
    got = answers(saved.load(answer="boxes"), image[None], "solar panel")[0, 0]
    scores, boxes = boxes_by_transformers(saved, image, "solar panel", SHARE)
    bounds = torch.logit(scores) - torch.logit(torch.tensor(SHARE))
    right = torch.minimum(masks_by_transformers(saved, image, boxes), bounds[:, None, None]).amax(0).clamp(-LIMIT, LIMIT)
    np.testing.assert_allclose(got, right, atol=2e-3)
    found = answers(saved.load(), image[None], "solar panel")[0, 0] > 0
    assert ((got > 0) == found).all()
    assert got.max() < answers(saved.load(), image[None], "solar panel").max() or scores[0] > 0.97


def test_the_detector_asked_for_kept_maps_answers_as_a_full_forward_to_the_bit(saved: Files) -> None:
    segmenter, images = saved.load(), windows(2, 40, 90)
    network = segmenter.engine.detector
    for text in TEXTS:
        (phrase,) = segmenter.encode_prompts(prompts_of(text))
        for image in images:
            (seen,) = segmenter.encode_images(image[None]).features
            with torch.inference_mode():
                logits, boxes = detect(network, seen.maps[:-3], segmenter.engine.framing.size_of(40, 90), phrase)
                pixels = torch.from_numpy(segmenter.engine.framing(segmenter.stretch.rgb(image[None])[0]))
                whole = network(pixel_values=pixels, input_ids=phrase.ids)
            assert torch.equal(logits, whole.logits)
            assert torch.equal(boxes, whole.pred_boxes)


def test_sam2_asked_for_kept_maps_answers_as_a_full_forward_to_the_bit(saved: Files) -> None:
    from eo_batch.models.grounded_sam2.masks import embed, mask_boxes

    network = saved.load().engine.masks
    pixels, boxes = torch.randn(1, 3, SIDE, SIDE), torch.tensor([[4.0, 6, 40, 50], [0, 0, 64, 64], [10, 10, 12, 30]])
    with torch.inference_mode():
        kept = mask_boxes(network, embed(network, pixels), boxes)
        whole = network(pixel_values=pixels, input_boxes=boxes[None], multimask_output=False).pred_masks[0, :, 0]
    assert torch.equal(kept, whole)


def test_what_no_prompt_changes_is_computed_once(saved: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, calls = saved.load(), []
    segmenter.engine.prompts.clear()
    seen, text = (
        type(segmenter.engine.detector.model.backbone.conv_encoder.model),
        type(segmenter.engine.detector.model.text_backbone),
    )
    for kind, name, what in ((seen, "forward", "swin"), (text, "forward", "bert"), (Sam2Model, "get_image_embeddings", "sam2")):
        own = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *a, _own=own, _what=what, **k: calls.append(_what) or _own(self, *a, **k))
    answers(segmenter, windows(2), *TEXTS)
    assert segmenter.info.shares_image_features
    assert sorted(calls) == ["bert"] * 3 + ["sam2"] * 2 + ["swin"] * 2


def test_nothing_is_found_where_no_box_counts(saved: Files) -> None:
    nothing = answers(saved.load(box_threshold=0.999999), windows(2), *TEXTS)
    assert (nothing == -LIMIT).all()
    wordless = answers(saved.load(box_threshold=0.01, text_threshold=0.999999), windows(2), *TEXTS)
    assert (wordless == -LIMIT).all()


def test_the_surest_boxes_count_when_there_are_too_many(saved: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    image, asked = windows(1)[0], []
    own = Sam2Model.forward
    monkeypatch.setattr(Sam2Model, "forward", lambda self, *a, **k: asked.append(k["input_boxes"].shape[1]) or own(self, *a, **k))
    got = answers(saved.load(box_threshold=0.01, text_threshold=0.01, max_boxes=2), image[None], "water")[0, 0]
    assert asked == [2]
    _, boxes = boxes_by_transformers(saved, image, "water", 0.01)
    assert len(boxes) > 2
    right = masks_by_transformers(saved, image, boxes[:2]).amax(0).clamp(-LIMIT, LIMIT)
    np.testing.assert_allclose(got, right, atol=2e-3)
    asked.clear()
    answers(saved.load(box_threshold=0.01, text_threshold=0.01), image[None], "water")
    assert sum(asked) > TOGETHER >= max(asked)


def test_equally_sure_boxes_are_taken_in_their_order() -> None:
    logits = torch.full((6, 4), -torch.inf)
    logits[:, 1] = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 0.0])
    boxes = torch.arange(6.0)[:, None].expand(6, 4)
    scores, chosen = BoxRules(0.6, 0.6, max_boxes=4).choose(logits, boxes, torch.tensor([False, True, False]))
    assert chosen[:, 0].tolist() == [1, 3, 0, 2]
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_numbers_that_are_none_are_not_taken_for_nothing() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = float("nan")
    scores, _ = BoxRules(0.9, 0.9, max_boxes=4).choose(logits, torch.zeros(3, 4), torch.tensor([False, True]))
    assert scores.isnan().tolist() == [True]
    assert join(scores, torch.zeros(1, 1, 1), (5, 5), apart=False).isnan().all()


def test_prompts_and_windows_together_are_those_apart_to_the_bit(saved: Files) -> None:
    segmenter, images = saved.load(instances=True), windows(3)
    together = answers(segmenter, images[[0, 1, 2, 2]], *TEXTS)
    for number in range(3):
        for place, text in enumerate(TEXTS):
            assert answers(segmenter, images[number : number + 1], text).tobytes() == together[number, place].tobytes()
    assert together[2].tobytes() == together[3].tobytes()
    assert probe_segmenter(segmenter, prompts_of("water"), RGB, window_px=40, batch=2).position_independent


def test_threads_ask_the_same_networks_side_by_side(saved: Files) -> None:
    alone, found = answers(saved.load(), windows(2), *TEXTS[:2]), []
    workers = [
        threading.Thread(target=lambda: found.append(answers(saved.load(), windows(2), *TEXTS[:2]).tobytes())) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [alone.tobytes()] * 3


def test_kept_features_give_the_bytes_of_fresh_ones_in_any_company(saved: Files) -> None:
    segmenter, images = saved.load(), windows(3)
    keeper, words = feature_keeper(segmenter), segmenter.encode_prompts(prompts_of(*TEXTS))
    assert keeper is segmenter
    fresh = segmenter.decode(segmenter.encode_images(images), words)
    kept = [one for some in (images[[0, 1, 0]], images) for one in keeper.dump_features(segmenter.encode_images(some))]
    assert abs(sum(array.nbytes for array in kept[0].values()) - segmenter.info.feature_bytes) <= 16
    again = segmenter.decode(keeper.load_features([kept[number] for number in (5, 0, 4, 4)]), words)
    assert again.tobytes() == fresh[[2, 0, 1, 1]].tobytes()


def test_windows_in_one_call_as_on_a_gpu_answer_as_windows_apart(saved: Files) -> None:
    apart = saved.load()
    together = replace(apart, engine=replace(apart.engine, together=True))
    images = windows(3)[[0, 1, 2, 2]]
    np.testing.assert_allclose(answers(together, images, *TEXTS), answers(apart, images, *TEXTS), atol=2e-3)


def test_half_precision_answers_and_is_another_segmenter(saved: Files) -> None:
    whole, half = (saved.load(precision=kind, box_threshold=0.05) for kind in ("float32", "bfloat16"))
    a, b = (answers(segmenter, windows(2), "water") for segmenter in (whole, half))
    assert np.isfinite(b).all()
    assert np.abs(a - b).mean() < 1.5
    assert whole.info.digest != half.info.digest


def test_prompts_are_asked_as_the_detector_was_trained(saved: Files) -> None:
    segmenter = saved.load()
    (line,) = explain_prompts(segmenter, prompts_of("Solar Panel"))
    assert line.startswith('"Solar Panel" is asked as "solar panel."; read as: solar panel .')
    assert "the Swin backbone and SAM 2's encoder see each window once" in line
    (one,) = segmenter.encode_prompts(prompts_of("solar. panel?"))
    assert one.ids.tolist() == [[101, 1030 + WORDS.index("solar"), 1030 + WORDS.index("panel"), 1012, 102]]
    long = " ".join(["dark lake"] * 10)
    (told,) = [told for told in prompt_warnings(segmenter, prompts_of(long)) if "cut off" in told]
    assert "room for 13" in told
    (cut,) = segmenter.encode_prompts(prompts_of(long))
    assert cut.ids.shape == (1, 16)
    assert cut.ids[0, -2:].tolist() == [1012, 102]
    (unknown,) = prompt_warnings(segmenter, prompts_of("volcano"))
    assert "the vocabulary does not have 1 of its words" in unknown
    with pytest.raises(ConfigError, match="finds no word"):
        segmenter.encode_prompts(prompts_of("..."))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((400, 400), (800, 800)),
        ((800, 1000), (800, 1000)),
        ((300, 900), (444, 1333)),
        ((900, 300), (1333, 444)),
        ((7, 5), (1120, 800)),
    ],
)
def test_pictures_keep_their_proportions_as_the_library_has_them(shape: tuple[int, int], size: tuple[int, int]) -> None:
    from transformers.image_transforms import get_size_with_aspect_ratio

    assert Framing(Preparation(), 800, 1333).size_of(*shape) == size == get_size_with_aspect_ratio(shape, 800, 1333)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"box_threshold": 1.0}, "1 is not between 0 and 1"),
        ({"text_threshold": 0}, "0 is not between 0 and 1"),
        ({"max_boxes": 0}, "0 is not in 1..900"),
        ({"answer": "instances"}, "unknown answer"),
        ({"boxes": 3}, "max_boxes"),
    ],
)
def test_options_that_mean_nothing_are_refused(saved: Files, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        saved.load(**options)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(folder: Path, name: str) -> None:
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state, folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Files], Any], str]] = {
    "no detector": (lambda f: (f.detector / "model.safetensors").unlink(), "weights-missing"),
    "no SAM 2": (lambda f: (f.masks / "config.json").unlink(), "weights-missing"),
    "no tokenizer": (lambda f: (f.detector / "tokenizer.json").unlink(), "no tokenizer"),
    "the one for the other": (lambda f: shutil.copy(f.masks / "config.json", f.detector), 'type "sam2", not "grounding-dino"'),
    "another backbone": (lambda f: change(f.detector / "config.json", backbone_config={"model_type": "resnet"}), "no swin"),
    "no backbone": (lambda f: change(f.detector / "config.json", backbone_config=None, backbone="a/b"), "no swin"),
    "half a detector": (lambda f: drop(f.detector, "model.level_embed"), "missing"),
    "half a SAM 2": (lambda f: drop(f.masks, "mask_decoder.iou_token.weight"), "missing"),
    "a picture of no size": (
        lambda f: change(f.detector / "preprocessor_config.json", size={"shortest_edge": 9e6}),
        "shortest_edge",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_files_that_are_no_such_networks_are_refused(copies: Files, damage: str) -> None:
    do, said = DAMAGE[damage]
    do(copies)
    with pytest.raises(ModelError, match=said):
        copies.load()


def test_files_of_a_tracker_of_videos_are_sam2_too(copies: Files, saved: Files) -> None:
    state = load_file(copies.masks / "model.safetensors")
    save_file(
        {**state, "memory_attention.layer.weight": torch.ones(2), "no_object_pointer": torch.ones(2)},
        copies.masks / "model.safetensors",
    )
    change(copies.masks / "config.json", model_type="sam2_video", num_maskmem=7, memory_attention_hidden_size=256)
    assert answers(copies.load(), windows(1), "water").tobytes() == answers(saved.load(), windows(1), "water").tobytes()


def test_tables_and_copies_that_older_files_hold_change_nothing(copies: Files, saved: Files) -> None:
    state = load_file(copies.detector / "model.safetensors")
    block = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0.attention.self."
    state[f"{block}relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    for name in [name for name in state if name.startswith("bbox_embed.0.")]:
        state |= {f"{start}{name}": state[name].clone() for start in ("model.decoder.",)}
        state |= {name.replace("embed.0", "embed.1"): state[name].clone()}
    save_file(state, copies.detector / "model.safetensors")
    change(copies.detector / "config.json", backbone=None, use_timm_backbone=False, use_pretrained_backbone=False)
    assert answers(copies.load(), windows(1), "water").tobytes() == answers(saved.load(), windows(1), "water").tobytes()


def test_weights_of_either_network_that_change_while_they_are_used_are_noticed(copies: Files) -> None:
    make_sam2(copies.masks, seed=1)  # others than those that are held here already
    segmenter = copies.load()
    with (copies.masks / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\1\0")
    with pytest.raises(IntegrityError, match="weights-altered"):
        answers(segmenter, windows(1), "water")


def test_sizes_that_do_not_go_together_are_told_when_they_are_met(copies: Files) -> None:
    config = json.loads((copies.masks / "config.json").read_text())
    config["vision_config"]["backbone_config"]["window_size_per_stage"] = [1, 1, 1, 1]
    config["vision_config"]["backbone_config"]["window_positional_embedding_background_size"] = [4, 4]
    (copies.masks / "config.json").write_text(json.dumps(config))
    state = load_file(copies.masks / "model.safetensors")
    name = "vision_encoder.backbone.pos_embed_window"
    save_file({**state, name: state[name][:, :, :1, :1].contiguous()}, copies.masks / "model.safetensors")
    with pytest.raises(ModelError, match="cannot compute with the sizes"):
        answers(copies.load(), windows(1), "water")


def test_weights_that_are_not_here_are_named_with_the_command_that_brings_them(
    saved: Files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    for options, name in (({}, "grounding-dino"), ({"detector": str(saved.detector)}, "sam2")):
        with pytest.raises(ModelError, match=f"eo-batch models fetch {name}"):
            load("grounded-sam2", **options)
    assert all(name in BUILT_IN["grounded-sam2"].state for name in ("grounding-dino", "sam2"))
