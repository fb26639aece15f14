"""CLIPSeg on a GPU, as a run uses it: windows of a batch in one call, against the same windows one at a time on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tinyclipseg import SIDE, load_tiny, make_tiny, prompts_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use"),
]


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_a_gpu_answers_as_the_cpu_does(tmp_path: Path, precision: str, most: float) -> None:
    make_tiny(tmp_path)
    images = np.random.default_rng(1).random((3, 3, SIDE, SIDE), dtype=np.float32) * 0.25
    answers = []
    for device, numbers in (("cpu", "float32"), ("cuda", precision), ("cuda", precision)):
        segmenter = load_tiny(tmp_path, device=device, precision=numbers)
        answers.append(segmenter.decode(segmenter.encode_images(images), segmenter.encode_prompts(prompts_of("water", "road"))))
    assert np.sqrt(np.mean((answers[1] - answers[0]) ** 2)) / answers[0].std() < most
    assert answers[1].tobytes() == answers[2].tobytes()
