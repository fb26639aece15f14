"""What networks have in common that find objects by name: pictures in, objects out, one logit per pixel and prompt in a run.

Every window is looked at once and every prompt is read once; a prompt is asked of a window alone, so prompts together are prompts
apart. On a CPU windows are computed one at a time, so none depends on its company.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import PromptSet, is_class_name
from eo_batch.models.phrases import find_positions
from eo_batch.models.refusals import BANDS
from eo_batch.models.segmenter import SegmenterInfo
from eo_batch.models.stretch import Stretch
from eo_batch.models.tokens import TokenisedText, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEAST = 0.05
"""Scores of found objects end here and at 1 - LEAST: overlapping windows are blended by their logits, and none shall outvote the
others by far."""
PICTURE_BYTES = 30
"""Memory per pixel of a window as it comes: stretched values and colours."""
ANSWER_BYTES = 24
"""The same while an answer of the network becomes logits: the best so far, who has it, what is compared, and the result."""


@dataclass(frozen=True)
class Maps:
    """What no prompt changes of windows that are computed together: maps of features, each (n, channel, y, x).

    They get the order in memory that kept ones have when they are read back: another order can be another order of sums.
    """

    maps: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(one.contiguous() for one in self.maps))

    def __len__(self) -> int:
        return len(self.maps[0])


@dataclass(frozen=True)
class FinderImages:
    """A batch of windows.

    Parameters
    ----------
    features : entries of one window or several, as they are computed together.
    places : for each window of the batch, its place among the windows of `features`.
    shape_yx : of the windows as they came.
    """

    features: tuple[Maps, ...]
    places: tuple[int, ...]
    shape_yx: tuple[int, int]


class Rules(Protocol):
    """How found objects become a score."""

    def as_dict(self) -> dict[str, Any]:
        """What decides an answer."""
        ...


class FinderEngine(Protocol):
    """Networks in memory."""

    @property
    def together(self) -> bool:
        """Windows of a batch are computed in one call."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        ...

    @property
    def side_px(self) -> int:
        """Longest side of the pictures that it looks at."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Of all weights and tables."""
        ...

    @property
    def call_bytes(self) -> int:
        """Of one call beside that and beside what it keeps."""
        ...

    @property
    def feature_bytes(self) -> int:
        """Of what is kept of a window for all prompts."""
        ...

    def distinct(self, contents: list[bytes]) -> tuple[tuple[int, ...], list[int]]:
        """For each window its place among those that are computed, and which those are."""
        ...

    def join(self, windows: list[tuple[Tensor, ...]], *, threads: int) -> list[tuple[Tensor, ...]]:
        """Kept features of single windows, each (1, ...), on the device: one entry for all that are computed together."""
        ...

    def hear(self, ids: Tensor, *, threads: int) -> Any:
        """What no window changes of a prompt, int64 (tokens,)."""
        ...

    def see(self, pictures: Sequence[NDArray[np.uint8]], *, threads: int) -> tuple[Maps, ...]:
        """What no prompt changes of pictures (h, w, 3) of one shape: one entry for all that are computed together."""
        ...

    def answer(self, windows: Maps, words: Any, size_yx: tuple[int, int], rules: Any, *, threads: int) -> Tensor:
        """Logits of the windows of one entry, float32 (n, h, w) on the CPU."""
        ...


@dataclass(frozen=True)
class Sayings:
    """What people are told of a network.

    Parameters
    ----------
    name, algorithm : as in `SegmenterInfo`.
    question : how a prompt is asked; `{}` stands for it, in lower case.
    shared : what is computed once for all prompts, a clause.
    parts : characters that would part a prompt into several: they are read as blanks.
    looks_for : what it looks for, a clause; sentences say more than that.
    least : its scores end here and at 1 - least.
    """

    name: str
    algorithm: str
    question: str
    shared: str
    parts: str = ""
    looks_for: str = "looks for every object that a name names"
    least: float = 0.0


@dataclass(frozen=True)
class FinderSegmenter:
    """The protocols `Segmenter`, `FeatureKeeper`, `Explainer` and `Warner` around networks that find objects.

    Parameters
    ----------
    says : what people are told of it.
    engine : the networks, shared with other segmenters of this process.
    tokenizer, stretch, rules : how prompts and pixels become what the networks read, and their objects a score.
    threads : of one call on a CPU; decides the order of sums, so part of the identity.
    sha256 : of the files.
    window_px : side of the windows of the run, for what `plan` says of memory.
    """

    says: Sayings
    engine: FinderEngine
    tokenizer: Tokenizer
    stretch: Stretch
    rules: Rules
    threads: int
    sha256: tuple[str, ...]
    window_px: int
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "info", _info(self))

    def encode_prompts(self, prompts: PromptSet) -> tuple[Any, ...]:
        """Text features of each prompt, in order.

        Raises
        ------
        ConfigError : `prompt-invalid`: a prompt without a word.
        """
        import torch

        return tuple(self.engine.hear(torch.from_numpy(self._read(text).ids), threads=self.threads) for text in prompts.texts)

    def encode_images(self, images: NDArray[np.float32]) -> FinderImages:
        """What no prompt changes, of windows float32 (n, 3, h, w), any h and w.

        Raises
        ------
        ModelError : `model-input`, `model-oom`.
        """
        pictures = list(self.stretch.rgb(images))
        places, kept = self.engine.distinct([picture.tobytes() for picture in pictures])
        features = self.engine.see([pictures[number] for number in kept], threads=self.threads)
        return FinderImages(features, places, (images.shape[2], images.shape[3]))

    def decode(self, image_features: FinderImages, prompt_features: tuple[Any, ...]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w), one prompt at a time; see `models.instances`.

        Raises
        ------
        ModelError : `model-oom`.
        """
        shape, done = image_features.shape_yx, 0
        distinct = np.empty((max(image_features.places) + 1, len(prompt_features), *shape), np.float32)
        for windows in image_features.features:
            for place, words in enumerate(prompt_features):
                answer = self.engine.answer(windows, words, shape, self.rules, threads=self.threads)
                distinct[done : done + len(windows), place] = answer.numpy()
            done += len(windows)
        return distinct[list(image_features.places)]

    def dump_features(self, image_features: FinderImages) -> list[dict[str, NDArray[Any]]]:
        """The maps of each window, and its shape."""
        from eo_batch.models.kept import array_of

        shape = np.array(image_features.shape_yx, np.int64)
        dumped = [
            {f"map{number}": array_of(one[place]) for number, one in enumerate(entry.maps)} | {"shape_yx": shape}
            for entry in image_features.features
            for place in range(len(entry))
        ]
        return [dict(dumped[place]) for place in image_features.places]

    def load_features(self, windows: Sequence[Mapping[str, NDArray[Any]]]) -> FinderImages:
        """Image features, as `encode_images` gives them, of windows as `dump_features` gave them."""
        from eo_batch.models.kept import tensor_of

        names = [f"map{number}" for number in range(len(windows[0]) - 1)]
        places, kept = self.engine.distinct([b"".join(window[name].tobytes() for name in names) for window in windows])
        entries = self.engine.join(
            [tuple(tensor_of(windows[number][name])[None] for name in names) for number in kept], threads=self.threads
        )
        height, width = (int(length) for length in windows[0]["shape_yx"])
        return FinderImages(tuple(Maps(maps) for maps in entries), places, (height, width))

    def explain(self, prompts: PromptSet) -> tuple[str, ...]:
        """What each prompt is asked as, and what of it is computed once for all: one line per prompt."""
        return tuple(
            f'"{text}" is asked as "{self._question(text)}"; read as: {" ".join(self._read(text).read)}; {self.says.shared}'
            for text in prompts.texts
        )

    def warnings(self, prompts: PromptSet, *, sees_whole: bool = False) -> tuple[str, ...]:
        """What an author may not expect: places that mean a window, sentences, prompts that are cut, words that are not known,
        thresholds that no score can pass or miss.
        """
        lines = []
        for prompt in prompts:
            lines += self._warn(prompt.text, sees_whole=sees_whole)
            if not self.says.least <= prompt.threshold <= 1 - self.says.least:
                what = "everything" if prompt.threshold < 0.5 else "nothing"
                lines.append(
                    f'prompt "{prompt.text}": scores of this network end at {self.says.least:g} and {1 - self.says.least:g}; '
                    f"a threshold of {prompt.threshold:g} finds {what}"
                )
        return tuple(lines)

    def _question(self, text: str) -> str:
        plain = "".join(" " if letter in self.says.parts else letter for letter in text.lower())
        return self.says.question.replace("{}", " ".join(plain.split()))

    def _read(self, text: str) -> TokenisedText:
        if not any(letter.isalnum() for letter in text):
            fix = "Write what to look for, such as water or solar panel; punctuation alone is no prompt."
            what = f'the segmenter "{self.says.name}" finds no word in "{text}"'
            raise ConfigError("prompt-invalid", what, where="prompts", fix=fix)
        return self.tokenizer(self._question(text))

    def _warn(self, text: str, *, sees_whole: bool) -> list[str]:
        read, lines = self._read(text), []
        positions = () if sees_whole else find_positions(text)
        if positions:
            named = ", ".join(f'"{phrase}"' for phrase in positions)
            lines.append(
                f'prompt "{text}": {named} is understood within each window, not within the region; '
                "on the map it will not be what the words mean"
            )
        elif not is_class_name(text):
            lines.append(
                f'prompt "{text}" reads as a sentence: this network {self.says.looks_for}, '
                "and is likely to pass over what else a sentence says"
            )
        if read.is_cut:
            lines.append(
                f'prompt "{text}" is {len(read.pieces)} word pieces long, the network has room for {len(read.read)}: '
                f'it is cut off after "{" ".join(read.read[-3:])}"'
            )
        unknown = read.read.count("[UNK]")
        if unknown:
            lines.append(f'prompt "{text}": the vocabulary does not have {unknown} of its words; they mean nothing')
        return lines


def _info(segmenter: FinderSegmenter) -> SegmenterInfo:
    engine, stretch = segmenter.engine, segmenter.stretch
    on_cpu = engine.device.type == "cpu"
    settings = {
        "weights": list(segmenter.sha256),
        "rules": segmenter.rules.as_dict(),
        "stretch": stretch.as_dict(),
        "precision": str(engine.dtype),
        "device": engine.device.type,
        "threads": segmenter.threads if on_cpu else 0,
    }
    fixed, call, pixel = 0, 0, PICTURE_BYTES  # what a GPU holds is not counted
    if on_cpu:
        fixed, call = engine.weight_bytes, engine.call_bytes + ANSWER_BYTES * segmenter.window_px**2
        pixel += -(-engine.feature_bytes // segmenter.window_px**2)
    return SegmenterInfo(
        name=segmenter.says.name,
        algorithm=segmenter.says.algorithm,
        digest=digest([segmenter.says.algorithm, settings]),
        bands=BANDS,
        pixel_range=(float(stretch.low), float(stretch.high)),
        network_px=engine.side_px,
        shares_image_features=True,
        device=engine.device.type,
        fixed_bytes=fixed,
        call_bytes=call,
        pixel_bytes=pixel,
        prompt_pixel_bytes=4,
        feature_bytes=engine.feature_bytes,
    )
