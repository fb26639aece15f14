"""From a prompt to the sentence that is asked: class words get a template, sentences stay as they are.

Networks are trained on sentences. For class names the authors of RemoteSAM ask "{class} in the image"; which of their
functions a caller uses decides what a text is. Here the option `prompts` decides, and "auto" goes by a rule that can be
checked by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from eo_batch.core.errors import ConfigError
from eo_batch.core.prompts import is_class_name

PromptKind = Literal["auto", "class", "sentence"]
CLASS_TEMPLATE = "{} in the image"
"""Sentence for a class name, as the authors of RemoteSAM ask it."""


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
