"""CLIPSeg from the hub to the map, by commands alone: fetched, planned, run, extended; any chunk size gives the same map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commandline import invoke
from PIL import Image
from rundigest import file_digests, footprint_rows, mask_array, newest_digests
from servers.hub import Hub
from tinyclipseg import load_tiny, make_tiny, prompts_of, tiny_pipeline
from toy import make_toy

from eo_batch.models.weights import published
from eo_batch.models.weights.published import FolderFile, PublishedFolder

REPO, REVISION = "someone/clipseg", "e" * 40
NAMES = ("config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "model.safetensors")
SIZE = 220


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`clipseg` is a small network on a hub on loopback, and was fetched by its name."""
    saved = make_tiny(tmp_path_factory.mktemp("saved"))
    files = tuple(
        FolderFile(name, (saved / name).stat().st_size, hashlib.sha256((saved / name).read_bytes()).hexdigest()) for name in NAMES
    )
    line = PublishedFolder("clipseg", REPO, REVISION, ("clipseg",), files, licence="a test's", source="a test", summary="small")
    with pytest.MonkeyPatch.context() as patch, Hub() as hub:
        patch.setattr(published, "FOLDERS", (line,))
        patch.setenv("EO_BATCH_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.endpoint)
        for name in NAMES:
            hub.publish(REPO, REVISION, name, saved / name, is_large=name == "model.safetensors")
        assert invoke("models", "fetch", "clipseg", "--yes")[0] == 0
        asked = len(hub.asked)
        yield
        assert len(hub.asked) == asked  # a run asks no hub


def run(toy: Path, name: str, *, cluster: str = "serial", prompts: tuple[str, ...] = ("water", "road"), **settings: int) -> Path:
    pipeline, out = toy / f"{name}.toml", toy / f"run-{name}"
    pipeline.write_text(tiny_pipeline("clipseg", size=SIZE, prompts=prompts, **settings))
    status, _, err = invoke("run", pipeline, "--out", out, "--cluster", cluster, "--workers", 2, "--quiet")
    assert status == 0, err
    return out


@pytest.fixture(scope="module")
def whole(toy: Path, fetched: None) -> Path:
    """The oracle: the whole region in one chunk."""
    return run(toy, "whole", chunk_px=512)


def test_the_oracle_has_something_to_compare(whole: Path) -> None:
    for prompt in mask_array(whole, "score"):
        assert np.ptp(prompt[prompt < 251].astype(int)) > 20
    assert not np.array_equal(*mask_array(whole, "score"))
    assert {0, 1} <= set(np.unique(mask_array(whole)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("small", {"chunk_px": 100}), ("batch", {"chunk_px": 512, "batch": 3})],
)
def test_chunks_and_batches_cannot_change_the_map(toy: Path, whole: Path, name: str, settings: dict[str, int]) -> None:
    out = run(toy, name, cluster="local", **settings)
    assert mask_array(out, "score").tobytes() == mask_array(whole, "score").tobytes()
    assert mask_array(out).tobytes() == mask_array(whole).tobytes()
    assert footprint_rows(out) == footprint_rows(whole)


def test_a_prompt_that_is_added_later_gives_the_bytes_of_one_run(toy: Path, whole: Path) -> None:
    out = run(toy, "grown", prompts=("water",), chunk_px=512)
    status, _, err = invoke("add-prompts", out, "road", "--quiet")
    assert status == 0, err
    grown, once = newest_digests(out), file_digests(whole)
    same = [name for name in once if name.startswith(("masks.zarr", "footprints"))]
    assert len(same) > 4
    assert {name: grown.get(name) for name in same} == {name: once[name] for name in same}


def test_one_picture_is_answered_too(toy: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    pixels = np.random.default_rng(3).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    status, out, err = invoke(
        "segment", picture, "--prompt", "water", "--model", "clipseg", "--json", "--out", tmp_path / "answer"
    )
    assert status == 0, err
    segmenter = load_tiny(Path("clipseg"), stretch_low=0, stretch_high=255)
    seen = segmenter.encode_images(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    logits = segmenter.decode(seen, segmenter.encode_prompts(prompts_of("water")))
    assert json.loads(out)["prompts"][0]["pixels"] == int((logits > 0).sum())
