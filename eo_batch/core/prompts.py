"""What to look for: prompts, their order, and ids that stay the same from run to run."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from eo_batch.core.digest import digest, sha256
from eo_batch.core.errors import ConfigError

MAX_PROMPT_CHARACTERS = 200
MOST_CLASS_WORDS = 4
"""A text of more words is a sentence."""
_SMALL = """
    a an the this that these those all every each any some no one only
    in on at of to from by with without near along inside outside between beside behind under over above below around next
    and or but not is are was were be has have which who whose where there it its
"""
_SENTENCE_WORDS = frozenset(_SMALL.split())


@dataclass(frozen=True)
class Prompt:
    """One question to the segmenter.

    Parameters
    ----------
    text : normalised text, see `normalise_text`.
    threshold : score in (0, 1) from which a pixel counts as found.
    min_area_m2 : footprints smaller than this are not reported; masks are not touched.
    """

    text: str
    threshold: float = 0.5
    min_area_m2: float = 0.0

    @property
    def id(self) -> str:
        """Stable name made from the text alone: readable, safe in paths, unique by digest: `water-3f9a12`."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.text.lower()).strip("-")[:24].strip("-") or "prompt"
        return f"{slug}-{sha256(self.text.encode())[:6]}"


@dataclass(frozen=True)
class PromptSet:
    """Ordered prompts with distinct texts; the position of a prompt is its index in every array."""

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("prompt-invalid", "no prompt is given", fix="Add at least one [[prompts]] table with a text.")
        seen: dict[str, int] = {}
        for number, prompt in enumerate(self.prompts, 1):
            if prompt.id in seen:
                raise ConfigError(
                    "prompt-invalid",
                    f"prompts {seen[prompt.id]} and {number} are the same after normalisation",
                    where=f'"{prompt.text}"',
                    fix="Remove one of them.",
                )
            seen[prompt.id] = number

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(prompt.id for prompt in self.prompts)

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts in order."""
        return tuple(prompt.text for prompt in self.prompts)

    @property
    def digest(self) -> str:
        """Digest of texts, thresholds and minimum areas, in order."""
        return digest([[p.text, p.threshold, p.min_area_m2] for p in self.prompts])


def normalise_text(text: str, *, number: int) -> str:
    """NFC text with single spaces and no control characters.

    Raises
    ------
    ConfigError : `prompt-invalid` for an empty text, control characters, or more than 200 characters.
    """
    fix = 'Write a short phrase such as "water" or "solar panel".'
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise ConfigError(
            "prompt-invalid",
            f"prompt {number} has {len(text):,} characters (limit {MAX_PROMPT_CHARACTERS})",
            fix=fix,
        )
    clean = " ".join(unicodedata.normalize("NFC", text).split())
    if not clean:
        raise ConfigError("prompt-invalid", f"prompt {number} is empty", fix=fix)
    if any(unicodedata.category(character).startswith("C") and character != "\u200d" for character in clean):
        raise ConfigError("prompt-invalid", f"prompt {number} holds control characters", fix=fix)
    return clean


def is_class_name(text: str) -> bool:
    """The text names a kind of thing: one to four words, none of them a small word that only sentences have, and no punctuation.

    Small words are articles, prepositions, conjunctions, "is" and its like: "solar panel" and "expressway-toll-station" are
    class names, "the solar panel", "roofs with panels" and "a red car." are sentences.
    """
    words = re.findall(r"[^\s,.;:!?]+", text.lower())
    return 0 < len(words) <= MOST_CLASS_WORDS and not re.search(r"[,.;:!?]", text) and not _SENTENCE_WORDS & set(words)


def as_written(number: float) -> float:
    """The number that `number` prints as: a float32 of 0.4 is a little more than 0.4, and would fall on the next stored step."""
    return float(str(number))
