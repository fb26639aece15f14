"""Grounding DINO and SAM 2 in memory, and what is asked of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eo_batch.models.devices import fetched, sent, staged
from eo_batch.models.engine import Engine, open_once
from eo_batch.models.finder import Maps
from eo_batch.models.grounded_sam2.detector import Framing, Phrase, detect, load_detector, look, read_phrase
from eo_batch.models.grounded_sam2.masks import embed, load_masks, mask_boxes
from eo_batch.models.instances import join
from eo_batch.models.preparation import Preparation
from eo_batch.models.refusals import refused
from eo_batch.models.weights.folders import FolderFiles

EMBEDDINGS = 3
"""Maps of SAM 2, behind those of the detector."""
CALL_BYTES = 740
"""Memory per pixel of the larger picture of a call at the published sizes in float32, as measured at 800 and 1,024 px."""
SURE = 1.0
"""Confidence in an accepted box where only its mask is asked for."""


@dataclass(frozen=True)
class BoxRules:
    """Which boxes count, and how they become a score.

    Parameters
    ----------
    box_threshold : a box counts if its best token's score is above this,
    text_threshold : and the score of one of the prompt's own words above this.
    max_boxes : so many of them at most, surest first, then in the detector's order.
    graded : a score is bounded by the box's own, measured so that `box_threshold` becomes 0.5.
    apart : objects that touch are kept apart.
    """

    box_threshold: float
    text_threshold: float
    max_boxes: int
    graded: bool = False
    apart: bool = False

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        return asdict(self)

    def choose(self, logits: Tensor, boxes: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor]:
        """(scores (box,), boxes (box, 4)) that count, surest first.

        Parameters
        ----------
        logits : (box, token), beyond the phrase's tokens -infinity; NaN scores are kept, for the caller to find.
        boxes : (box, 4).
        is_word : bool (token,), of the phrase's tokens.
        """
        scores = torch.sigmoid(logits.float())
        best = scores.amax(1)
        words = scores[:, : len(is_word)].masked_fill(~is_word, 0).amax(1)
        counts = ((best > self.box_threshold) & (words > self.text_threshold)) | best.isnan()
        order = torch.sort(best[counts], descending=True, stable=True).indices[: self.max_boxes]
        return best[counts][order], boxes[counts][order]

    def confidences(self, scores: Tensor) -> Tensor:
        """How sure an object is whose box has this score."""
        if not self.graded:
            return torch.where(scores.isnan(), scores, torch.full_like(scores, SURE))
        base = torch.logit(torch.tensor(self.box_threshold, device=scores.device))
        return torch.sigmoid(torch.logit(scores) - base)


@dataclass(frozen=True, eq=False)
class GroundedEngine(Engine[nn.ModuleDict]):
    """Both networks, how they want their pictures, and the phrases that were asked.

    Parameters
    ----------
    framing, preparation : of pictures for the detector, and for SAM 2.
    prompts : threads and tokens -> their phrase.
    """

    segmenter: str = "grounded-sam2"
    framing: Framing = field(default_factory=lambda: Framing(Preparation(), 800, 1333))
    preparation: Preparation = field(default_factory=Preparation)
    prompts: dict[tuple[int, bytes], Phrase] = field(default_factory=dict)

    @property
    def detector(self) -> Any:
        """`transformers.GroundingDinoForObjectDetection`."""
        return self.network["detector"]

    @property
    def masks(self) -> Any:
        """`transformers.Sam2Model`."""
        return self.network["masks"]

    @property
    def side_px(self) -> int:
        """Side of the larger of the two pictures of a square window."""
        return max(self.preparation.size_yx[0], self.framing.shortest_px)

    @property
    def positions(self) -> int:
        """Tokens of a prompt that it reads, marks included."""
        config = self.detector.config
        return int(min(config.max_text_len, config.text_config.max_position_embeddings))

    @property
    def feature_bytes(self) -> int:
        """Of the maps of one square window, for both networks."""
        side, swin, sam = self.framing.shortest_px, self.detector.config.backbone_config, self.masks.config
        wider = [2 ** (stage - 1) for stage in swin.out_indices]
        numbers = sum((-(-side // (swin.patch_size * times))) ** 2 * swin.embed_dim * times for times in wider)
        fine, middle, coarse = (height * width for height, width in sam.vision_config.backbone_feature_sizes)
        width = sam.mask_decoder_config.hidden_size
        return int((numbers + fine * width // 8 + middle * width // 4 + coarse * width) * self.dtype.itemsize)

    @property
    def call_bytes(self) -> int:
        """Of one call beside the weights and beside what it keeps."""
        return int(CALL_BYTES * self.side_px**2 * self.dtype.itemsize / 4)

    def hear(self, ids: Tensor, *, threads: int) -> Phrase:
        """A prompt as the detector reads it, int64 (tokens,) with its marks; computed at its first asking."""
        key = threads, ids.numpy().tobytes()
        if key not in self.prompts:
            with self.computing(threads, f"{len(ids)} tokens"), refused(self.segmenter):
                self.prompts[key] = read_phrase(self.detector, ids)
        return self.prompts[key]

    def see(self, pictures: Sequence[NDArray[np.uint8]], *, threads: int) -> tuple[Maps, ...]:
        """Maps of pictures (h, w, 3), for the detector and for SAM 2: one entry for all that are computed together.

        Raises
        ------
        ModelError : `model-oom`.
        """

        def both(some: Sequence[NDArray[np.uint8]]) -> Maps:
            framed, squared = (
                staged([prepare(picture)[0] for picture in some], self.device) for prepare in (self.framing, self.preparation)
            )

            def compute() -> Maps:
                with refused(self.segmenter):
                    seen = look(self.detector, sent(framed, self.device).to(self.dtype))
                    return Maps((*seen, *embed(self.masks, sent(squared, self.device).to(self.dtype))))

            return self.call(compute, threads=threads, what=f"pictures of {self.side_px} px", windows=len(some))

        return tuple(both(pictures[some]) for some in self.windows_apart(len(pictures)))

    def answer(self, windows: Maps, words: Phrase, size_yx: tuple[int, int], rules: BoxRules, *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU; see `models.instances`.

        Raises
        ------
        ModelError : `model-oom`; `model-input`: a picture too narrow for the detector.
        """

        def decide() -> Tensor:
            with refused(self.segmenter):
                maps, embeddings = windows.maps[:-EMBEDDINGS], windows.maps[-EMBEDDINGS:]
                logits, boxes = detect(self.detector, maps, self.framing.size_of(*size_yx), words)
                found = [
                    self._answer_one(logits[n], boxes[n], tuple(one[n : n + 1] for one in embeddings), words, size_yx, rules)
                    for n in range(len(windows))
                ]
                return fetched(torch.stack(found))

        return self.call(decide, threads=threads, what="windows and a prompt", windows=len(windows))

    def _answer_one(
        self,
        logits: Tensor,
        boxes: Tensor,
        embeddings: tuple[Tensor, ...],
        words: Phrase,
        size_yx: tuple[int, int],
        rules: BoxRules,
    ) -> Tensor:
        """Logits of one window, (h, w), from what the detector says of it."""
        scores, chosen = rules.choose(logits, boxes, words.is_word)
        if not len(scores) or bool(scores.isnan().any()):
            return join(scores, boxes.new_zeros((len(scores), 1, 1)), size_yx, apart=False)
        centre, half = chosen[:, :2].float(), chosen[:, 2:].float() / 2
        corners = torch.cat([centre - half, centre + half], 1).clamp(0, 1) * self.preparation.size_yx[0]
        masks = mask_boxes(self.masks, embeddings, corners.to(self.dtype))
        return join(rules.confidences(scores), masks, size_yx, apart=rules.apart)


def open_engine(detector: FolderFiles, masks: FolderFiles, *, device: str, precision: str) -> GroundedEngine:
    """Both networks; errors as `models.engine.open_once`."""

    def load(place: torch.device, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
        (finds, framing), (draws, preparation) = load_detector(detector), load_masks(masks)
        network = nn.ModuleDict({"detector": finds, "masks": draws}).eval().to(place, dtype)
        return network, {"framing": framing, "preparation": preparation}

    return open_once(GroundedEngine, (detector, masks), load, device=device, precision=precision)
