"""The closed table of published weights: what eo-batch may download, pinned by commit and sha256, with its licence."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from eo_batch.core.errors import ConfigError, PolicyError

VOCABULARY = "vocab.txt"
"""Name of the word pieces of a text encoder, beside its weights."""


@dataclass(frozen=True)
class PublishedFile:
    """One file that somebody published, named so that it can never become another one.

    Parameters
    ----------
    model : name for `eo-batch models fetch`; several files make one model.
    repo, revision, filename : where it is on the hub; the revision is a full commit.
    sha256, bytes : what it must be.
    licence : what is known about the right to use it, a sentence for people.
    source : where these figures come from.
    keep_as : name of the file that it stays here; "": a checkpoint, converted to `MODEL.safetensors` and then removed.
    """

    model: str
    repo: str
    revision: str
    filename: str
    sha256: str
    bytes: int
    licence: str
    source: str
    keep_as: str = ""

    def __post_init__(self) -> None:
        plain = r"[A-Za-z0-9][A-Za-z0-9._-]*"
        rules = {
            "model": plain,
            "repo": f"{plain}/{plain}",
            "revision": "[0-9a-f]{40}",
            "filename": f"{plain}(/{plain})*",
            "sha256": "[0-9a-f]{64}",
            "keep_as": f"({plain})?",
        }
        for name, rule in rules.items():
            if re.fullmatch(rule, getattr(self, name)) is None:
                fix = "Names of published files are relative, plain, and never lead out of their folder."
                raise PolicyError("path-escape", f"{name} {getattr(self, name)!r} is not plain", where=self.model, fix=fix)

    @property
    def is_checkpoint(self) -> bool:
        """It is converted, not kept."""
        return not self.keep_as

    @property
    def local_name(self) -> str:
        """Its name in the weights folder while it is downloaded."""
        return self.keep_as or self.filename.rpartition("/")[2]


PUBLISHED: tuple[PublishedFile, ...] = (
    PublishedFile(
        model="remotesam",
        repo="1e12Leon/RemoteSAM",
        revision="a6d09f44bac5b64be7f74980b15afb2a749b5e92",
        filename="RemoteSAMv1.pth",
        sha256="f85dfa044a527f096b9e41eacfe298040d52e77fca642f46dfe1226745e137e7",
        bytes=2_566_704_235,
        licence="not stated by its authors, neither for the code nor for the weights; the data they were trained on "
        "(RemoteSAM-270K) are cc-by-nc-4.0: no commercial use. Whether you may use them is for you to find out",
        source="hash, size and revision as pinned by public projects that use the file, not compared with the hub",
    ),
    PublishedFile(
        model="remotesam",
        repo="google-bert/bert-base-uncased",
        revision="86b5e0934494bd15c9632b12f734a8a67f723594",
        filename="vocab.txt",
        sha256="07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        bytes=231_508,
        licence="Apache-2.0",
        source="hash, size and revision as pinned by several public projects",
        keep_as=VOCABULARY,
    ),
)
"""Every file that eo-batch fetches. Closed: a name that is not here is never asked of a hub."""


def published_names() -> tuple[str, ...]:
    """Names for `eo-batch models fetch`, in order."""
    return tuple(dict.fromkeys(file.model for file in PUBLISHED))


def published_files(name: str) -> tuple[PublishedFile, ...]:
    """The files of one published model.

    Raises
    ------
    ConfigError : `config-invalid`: no such name.
    """
    files = tuple(file for file in PUBLISHED if file.model == name)
    if files:
        return files
    close = difflib.get_close_matches(name, published_names(), n=1)
    hint = f'Did you mean "{close[0]}"? ' if close else ""
    fix = f"{hint}Known: {', '.join(published_names())}."
    raise ConfigError("config-invalid", f'no published weights are known as "{name}"', where="weights", fix=fix)
