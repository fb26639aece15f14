"""Objects that touch, parted while they are mapped: on an outline no prompt finds anything.

A contour network (`models.contours`) looks at each window once, whatever the number of prompts. What it says bounds the logits
of all prompts from above, as the least of several conditions does elsewhere (fuzzy and: the minimum).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.errors import ConfigError
from eo_batch.models.contours import ContourModel, find_contours, load_contours

OPTION, THRESHOLD = "contours", 0.25
"""Name of the option, and the share from which a pixel counts as outline, as RemoteSAM's authors choose it."""
MARGIN = 0.01
"""A logit this far below 0 is below score 0.5 after scores are rounded to steps of 0.004, too."""


@dataclass(frozen=True)
class Outlines:
    """Where objects end.

    Parameters
    ----------
    model : how likely an outline runs through each pixel of a picture.
    threshold : above this a pixel is never found at score 0.5.
    """

    model: ContourModel
    threshold: float

    def ceiling(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The greatest logits that outlines leave, float32 (n, h, w), of pictures uint8 (h, w, 3).

        logit(threshold) - logit(outline) - MARGIN: one picture at a time, so that none depends on its company.
        """
        room = np.float32(math.log(self.threshold / (1 - self.threshold)) - MARGIN)
        return np.stack([room - self.model.logits(picture) for picture in pictures])

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        return {"weights": self.model.identity, "threshold": self.threshold}


def open_outlines(name_or_path: str, threshold: float, *, device: str) -> Outlines:
    """The contour network of these files; the one that this process already holds, if it does.

    Parameters
    ----------
    name_or_path : as in `load_contours`.
    threshold : between 0 and 1.
    device : "cpu" or "cuda".

    Raises
    ------
    ConfigError : `config-invalid`: the threshold.
    ModelError, PolicyError, ResourceError : as `load_contours`.
    """
    if not 0 < threshold < 1:
        what = f"{threshold:g} is not between 0 and 1"
        raise ConfigError("config-invalid", what, where="model.options.contour_threshold", fix=f"Use {THRESHOLD}.")
    with _opening:
        files = find_contours(name_or_path)
        key = files.sha256, device
        model = _open.get(key)
        if model is None:
            model = _open[key] = load_contours(name_or_path, device=device)
        return Outlines(model, threshold)


_open: WeakValueDictionary[tuple[str, str], ContourModel] = WeakValueDictionary()
_opening = threading.Lock()
