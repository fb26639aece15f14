"""From a prompt to the sentence that is asked: class words get a template, sentences stay as they are.

RemoteSAM was trained on sentences. For class names its authors ask "{class} in the image"; which of their functions a caller uses
decides what a text is. Here the option `prompts` decides, and "auto" goes by a rule that can be checked by eye.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from eo_batch.core.errors import ConfigError

PromptKind = Literal["auto", "class", "sentence"]
CLASS_TEMPLATE = "{} in the image"
"""Sentence for a class name, as its authors ask it."""
MOST_CLASS_WORDS = 4
"""A text of more words is a sentence."""
_SMALL = """
    a an the this that these those all every each any some no one only
    in on at of to from by with without near along inside outside between beside behind under over above below around next
    and or but not is are was were be has have which who whose where there it its
"""
_SENTENCE_WORDS = frozenset(_SMALL.split())


@dataclass(frozen=True)
class Question:
    """What the network is asked for one prompt.

    Parameters
    ----------
    text : the prompt.
    sentence : what is asked.
    is_class : the prompt was taken for a class name and put into the template.
    """

    text: str
    sentence: str
    is_class: bool


@dataclass(frozen=True)
class Wording:
    """How prompts become sentences.

    Parameters
    ----------
    kind : "class" or "sentence": what every prompt is; "auto": `is_class_name` decides for each.
    template : sentence for class names; `{}` stands for the name.

    Raises
    ------
    ConfigError : `config-invalid`.
    """

    kind: PromptKind = "auto"
    template: str = CLASS_TEMPLATE

    def __post_init__(self) -> None:
        if self.kind not in get_args(PromptKind):
            fix = 'Use one of: "auto", "class", "sentence".'
            raise ConfigError("config-invalid", f"unknown kind {self.kind!r}", where="model.options.prompts", fix=fix)
        if not isinstance(self.template, str) or self.template.count("{}") != 1 or len(self.template) > 200:
            fix = f'Write one {{}} where the class name belongs, as in "{CLASS_TEMPLATE}".'
            what = f"{self.template!r} is no sentence with one place for a class name"
            raise ConfigError("config-invalid", what, where="model.options.template", fix=fix)

    def ask(self, text: str) -> Question:
        """The question that a prompt stands for."""
        is_class = self.kind == "class" or (self.kind == "auto" and is_class_name(text))
        return Question(text, self.template.replace("{}", text) if is_class else text, is_class)


def is_class_name(text: str) -> bool:
    """The text names a kind of thing: one to four words, none of them a small word that only sentences have, and no punctuation.

    Small words are articles, prepositions, conjunctions, "is" and its like: "solar panel" and "expressway-toll-station" are
    class names, "the solar panel", "roofs with panels" and "a red car." are sentences.
    """
    words = re.findall(r"[^\s,.;:!?]+", text.lower())
    return 0 < len(words) <= MOST_CLASS_WORDS and not re.search(r"[,.;:!?]", text) and not _SENTENCE_WORDS & set(words)
