"""The promises of a run, kept by networks that find objects: any chunk size, batch and company give the same map."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import invoke
from rundigest import file_digests, footprint_rows, mask_array, newest_digests
from tinyfinders import finder_pipeline, make_detector, make_sam2, make_sam3
from toy import make_toy

SIZE = 110
PROMPTS = ("solar panel", "water")
KINDS = ("sam3", "grounded-sam2")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    make_sam3(folder / "sam3", seed=5)
    make_detector(folder / "grounding-dino", seed=4)
    make_sam2(folder / "sam2")
    return folder


def run(toy: Path, kind: str, *, prompts: tuple[str, ...] = PROMPTS, **settings: Any) -> Path:
    """A run by command, made once."""
    options: dict[str, Any] = {"instances": True}
    if kind == "sam3":
        options |= {"weights": str(toy / "sam3")}
    else:
        options |= {"weights": str(toy / "sam2"), "detector": str(toy / "grounding-dino")}
    name = "-".join([kind, *prompts, *(f"{key}{value}" for key, value in settings.items())]).replace(" ", "_")
    out = toy / f"run-{name}"
    if not out.exists():
        path = toy / f"{name}.toml"
        path.write_text(finder_pipeline(kind, options, size=SIZE, prompts=prompts, **settings))
        status, _, err = invoke("run", path, "--out", out, "--cluster", "serial", "--quiet")
        assert status == 0, err
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_any_chunk_size_and_batch_give_the_map_of_the_whole(toy: Path, kind: str) -> None:
    whole, parts = run(toy, kind, chunk_px=128), run(toy, kind, chunk_px=64, batch=3)
    scores = mask_array(whole, "score")
    assert scores.tobytes() == mask_array(parts, "score").tobytes()
    assert footprint_rows(whole) == footprint_rows(parts)
    assert len(footprint_rows(whole)) > 1
    assert all(np.ptp(prompt[prompt < 251]) > 20 for prompt in scores)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_together_are_runs_apart(toy: Path, kind: str) -> None:
    together = mask_array(run(toy, kind, chunk_px=128), "score")
    apart = run(toy, kind, prompts=PROMPTS[1:], chunk_px=128)
    assert mask_array(apart, "score")[0].tobytes() == together[1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_added_later_give_the_bytes_of_one_run(toy: Path, kind: str, tmp_path: Path) -> None:
    out = Path(shutil.copytree(run(toy, kind, prompts=PROMPTS[:1], chunk_px=128), tmp_path / "run"))
    status, _, err = invoke("add-prompts", out, *PROMPTS[1:], "--cluster", "serial", "--quiet")
    assert status == 0, err
    assert newest_digests(out) == file_digests(run(toy, kind, chunk_px=128))
