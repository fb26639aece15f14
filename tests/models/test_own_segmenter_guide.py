"""The segmenter of the guide works as it stands there."""

from __future__ import annotations

import re

import numpy as np
from conftest import ROOT

from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.inference import probe_segmenter
from eo_batch.models.segmenter import Segmenter


def test_the_example_of_the_guide_is_a_segmenter_that_passes_the_probe() -> None:
    text = (ROOT / "docs" / "guides" / "own-segmenter.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    space: dict[str, object] = {}
    exec(compile(code, "own-segmenter.md", "exec"), space)
    segmenter = space["make"](ModelSpec(options={"gain": 10}), ["red", "green"])  # type: ignore[operator]
    assert isinstance(segmenter, Segmenter)
    prompts = PromptSet((Prompt("roof"), Prompt("road")))
    probe_segmenter(segmenter, prompts, ["red", "green"], window_px=32, batch=2)
    images = np.full((1, 2, 4, 4), 0.3, np.float32)
    logits = segmenter.decode(segmenter.encode_images(images), segmenter.encode_prompts(prompts))
    np.testing.assert_allclose(logits, np.ones((1, 2, 4, 4)), rtol=1e-5)
