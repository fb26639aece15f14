"""The segmenter that needs no weights: published spectral indices with published thresholds, pixel by pixel.

The table of concepts is in `spectral_concepts.py`. Everything here is elementwise float32 arithmetic, so a pixel's logit
depends on that pixel alone: not on its window, its batch or its chunk.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import PromptSet
from eo_batch.core.spec import ModelSpec
from eo_batch.models.segmenter import SegmenterInfo, band_names
from eo_batch.models.spectral_concepts import CONCEPTS, LOGIT_AT_MARGIN, Concept, Condition, Rule
from eo_batch.models.spectral_indices import ALTERNATIVES, FLOOR, INDICES

ALGORITHM = "spectral/1"
"""Raise the number when a formula changes: thresholds and words are in the digest anyway."""


@dataclass(frozen=True)
class SpectralImages:
    """A batch of windows, and the indices computed for it so far.

    Parameters
    ----------
    planes : float32 (n, band, h, w), raised to `FLOOR`.
    positions : band -> place on the band axis.
    indices : index name -> float32 (n, h, w); filled as prompts ask, so each index is computed once per batch.
    """

    planes: NDArray[np.float32]
    positions: dict[str, int]
    indices: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def band(self, name: str) -> NDArray[np.float32]:
        """Plane of a band, float32 (n, h, w)."""
        return self.planes[:, self.positions[name]]

    def index(self, name: str) -> NDArray[np.float32]:
        """Plane of an index, float32 (n, h, w)."""
        if name not in self.indices:
            self.indices[name] = INDICES[name].compute(self.band)
        return self.indices[name]


@dataclass(frozen=True)
class SpectralSegmenter:
    """Concept of each prompt by its words, rule by the bands that are there, logit by the rule.

    Parameters
    ----------
    bands : common names, in the order of the band axis; values are surface reflectance.
    """

    bands: tuple[str, ...]
    info: SegmenterInfo = field(init=False)

    def __post_init__(self) -> None:
        info = SegmenterInfo(
            name="spectral",
            algorithm=ALGORITHM,
            digest=_identity(),
            pixelwise=True,
            shares_image_features=True,
            pixel_bytes=4 * (len(self.bands) + 8),
            prompt_pixel_bytes=8,
        )
        object.__setattr__(self, "info", info)

    def encode_prompts(self, prompts: PromptSet) -> tuple[Rule, ...]:
        """The rule that answers each prompt.

        Raises
        ------
        ConfigError : `prompt-invalid` for words that no concept knows; `config-invalid` where bands are missing.
        """
        return tuple(self._rule(find_concept(text), text) for text in prompts.texts)

    def encode_images(self, images: NDArray[np.float32]) -> SpectralImages:
        """Reflectance raised to `FLOOR`; indices follow on demand."""
        positions = {band: place for place, band in enumerate(self.bands)}
        for wanted, stand_ins in ALTERNATIVES.items():
            found = next((band for band in stand_ins if band in positions), None)
            if found is not None:
                positions[wanted] = positions[found]
        return SpectralImages(np.maximum(images, FLOOR), positions)

    def decode(self, image_features: SpectralImages, prompt_features: tuple[Rule, ...]) -> NDArray[np.float32]:
        """Logits, float32 (n, prompt, h, w)."""
        n, _, h, w = image_features.planes.shape
        logits = np.empty((n, len(prompt_features), h, w), np.float32)
        for place, rule in enumerate(prompt_features):
            out = logits[:, place]
            for number, condition in enumerate(rule.conditions):
                answer = _logit(condition, image_features)
                if number:
                    np.minimum(out, answer, out=out)
                else:
                    out[...] = answer
        return logits

    def explain(self, prompts: PromptSet) -> tuple[str, ...]:
        """How each prompt will be answered, one line per prompt."""
        return tuple(self._explain(text) for text in prompts.texts)

    def _explain(self, text: str) -> str:
        concept = find_concept(text)
        rule = self._rule(concept, text)
        tests = " and ".join(f"{c.index} {c.side} {c.threshold:g}" for c in rule.conditions)
        if _words(text) in map(_words, concept.narrower):
            return f'"{text}" is answered with all {concept.name}, as reflectance alone cannot tell them apart: {tests}'
        return f'"{text}" is answered as {concept.name}: {tests}'

    def _rule(self, concept: Concept, text: str) -> Rule:
        have = set(self.bands) | {wanted for wanted, some in ALTERNATIVES.items() if set(some) & set(self.bands)}
        for rule in concept.rules:
            if have.issuperset(rule.bands):
                return rule
        choices = " or ".join(band_names(rule.bands) for rule in concept.rules)
        raise ConfigError(
            "config-invalid",
            f'prompt "{text}" needs other bands than {band_names(self.bands)}',
            where="source.bands",
            why=f'"spectral" finds {concept.name} from {choices}',
            fix="Add the missing bands to source.bands.",
        )


def find_concept(text: str) -> Concept:
    """Concept that a prompt names; case, hyphens, articles and plurals do not matter.

    Raises
    ------
    ConfigError : `prompt-invalid`, with the known concepts and the nearest word.
    """
    words = {_words(word): concept for concept in CONCEPTS for word in (concept.name, *concept.synonyms, *concept.narrower)}
    asked = _words(text)
    if asked in words:
        return words[asked]
    close = difflib.get_close_matches(asked, words, n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    names = ", ".join(concept.name for concept in CONCEPTS)
    raise ConfigError(
        "prompt-invalid",
        f'the segmenter "spectral" knows no "{text}"',
        where="prompts",
        fix=f"{hint}It knows: {names} (and the synonyms in docs/reference/spectral.md).",
    )


def load_spectral(model: ModelSpec, bands: Sequence[str]) -> SpectralSegmenter:
    """The segmenter that `[model] name = "spectral"` asks for; it has no options.

    Raises
    ------
    ConfigError : `config-unknown-key` for any option.
    """
    if model.options:
        raise ConfigError(
            "config-unknown-key", f'unknown key "{min(model.options)}"', where="model.options", fix="spectral has no options."
        )
    return SpectralSegmenter(tuple(bands))


def _identity() -> str:
    """Digest of what decides an answer: numbers and words, not the prose about them."""
    table = [[c.name, c.synonyms, c.narrower, [list(map(_numbers, rule.conditions)) for rule in c.rules]] for c in CONCEPTS]
    return digest([ALGORITHM, float(FLOOR), LOGIT_AT_MARGIN, sorted(ALTERNATIVES.items()), table])


def _numbers(condition: Condition) -> tuple[str, str, float, float]:
    return condition.index, condition.side, condition.threshold, condition.margin


def _logit(condition: Condition, images: SpectralImages) -> NDArray[np.float32]:
    slope = LOGIT_AT_MARGIN / condition.margin * (1 if condition.side == "above" else -1)
    return (images.index(condition.index) - np.float32(condition.threshold)) * np.float32(slope)


def _words(text: str) -> str:
    """Text in the form in which words are compared: lower case, no hyphens or articles, each word in the singular."""
    words = re.sub(r"[-_/]+", " ", text.lower()).replace("'", "").split()
    words = [word for word in words if word not in ("the", "a", "an", "all", "of")] or words
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("shes", "ches", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
