"""The closed table of published weights: what eo-batch may download, pinned by commit and sha256, with its licence."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from eo_batch.core.errors import ConfigError, PolicyError

VOCABULARY = "vocab.txt"
"""Name of the word pieces of a text encoder, beside its weights."""
RECORD = "fetched.json"
"""Name of the record of a fetched folder: written last, with the sha256 of every file."""


@dataclass(frozen=True)
class PublishedFile:
    """One file that somebody published, named so that it can never become another one.

    Parameters
    ----------
    model : name for `eo-batch models fetch`; several files make one model.
    repo, revision, filename : where it is on the hub; the revision is a full commit.
    sha256, bytes : what it must be; "" and 0 where nobody has written them down: see `download.announced`.
    licence : what is known about the right to use it, a sentence for people.
    source : where these figures come from.
    keep_as : name of the file that it stays here; "": a checkpoint, converted to `MODEL.safetensors` and then removed.
    blob : git's name of its content (40 digits) where `sha256` is "": all that a hub tells of a small file.
    is_gated : the hub gives it only to accounts that accepted its licence.
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
    blob: str = ""
    is_gated: bool = False

    def __post_init__(self) -> None:
        plain = r"[A-Za-z0-9][A-Za-z0-9._-]*"
        rules = {
            "model": plain,
            "repo": f"{plain}/{plain}",
            "revision": "[0-9a-f]{40}",
            "filename": f"{plain}(/{plain})*",
            "sha256": "([0-9a-f]{64})?",
            "blob": "([0-9a-f]{40})?",
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


@dataclass(frozen=True)
class FolderFile:
    """One file of a published folder.

    Parameters
    ----------
    filename : its name in the repository and here.
    bytes, sha256 : what it must be; 0 and "": nobody whom we could check has written them down, so the hub's word is taken once.
    """

    filename: str
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class PublishedFolder:
    """A network as transformers keeps it: `config.json`, safetensors, and the files that go with them.

    Parameters
    ----------
    name : for `eo-batch models fetch`.
    repo, revision : where it is on the hub; "": the user names the commit.
    architectures : what `model_type` of its config may be.
    files : all that is fetched; nothing else of the repository is ever asked for.
    licence : what is known about the right to use it, a sentence for people.
    source : where these figures come from.
    summary : what it is, a line for people.
    is_gated : the hub gives it only to accounts that accepted its licence.
    """

    name: str
    repo: str
    revision: str
    architectures: tuple[str, ...]
    files: tuple[FolderFile, ...]
    licence: str
    source: str
    summary: str
    is_gated: bool = False

    def __post_init__(self) -> None:
        for file in self.files:
            self.file(file, revision=self.revision or "0" * 40)
            if file.filename.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) or "/" in file.filename:
                raise PolicyError("weights-unsafe", f"{file.filename} is no file that a network is read from", where=self.name)

    @property
    def command(self) -> str:
        """What fetches it."""
        return f"eo-batch models fetch {self.name}" + ("" if self.revision else " --revision COMMIT")

    @property
    def bytes(self) -> int:
        """Of all files whose size is known."""
        return sum(file.bytes for file in self.files)

    def file(self, file: FolderFile, *, revision: str) -> PublishedFile:
        """`file` at a commit, with what is known of it."""
        name = file.filename
        return PublishedFile(
            self.name, self.repo, revision, name, file.sha256, file.bytes, self.licence, self.source, name, is_gated=self.is_gated
        )


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


_AS_PINNED = "commit, sizes and hashes as pinned by public projects that use the files, not compared with the hub"
_SAM_LICENCE = (
    "SAM License (Meta, 19 November 2025): use, change and passing on are allowed, commercially too, with the licence itself; "
    "military and nuclear uses, weapons and espionage are forbidden, trade controls apply. The hub gives the files to accounts "
    "whose request Meta approved"
)

FOLDERS: tuple[PublishedFolder, ...] = (
    PublishedFolder(
        name="clipseg",
        repo="CIDAS/clipseg-rd64-refined",
        revision="999e0328d9e10b484360c477313983f9afdd7050",
        architectures=("clipseg",),
        files=(
            FolderFile("config.json", 4_732, "c023375966d31b3b1392764f7bd91df47098ce19f62f11b0263d8eedcf708bcd"),
            FolderFile("preprocessor_config.json", 380, "4fb09ebcfd7651205ca8299b993c30088e5535ef350a72d46c5c4580eeac0440"),
            FolderFile("vocab.json", 1_059_962, "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349"),
            FolderFile("merges.txt", 524_619, "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a"),
            FolderFile("model.safetensors", 603_049_496, "d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55"),
        ),
        licence="Apache-2.0",
        source=_AS_PINNED,
        summary="CLIPSeg rd64-refined: answers words about photographs, small (arXiv 2112.10003)",
    ),
    PublishedFolder(
        name="siglip",
        repo="google/siglip-so400m-patch14-384",
        revision="9fdffc58afc957d1a03a25b10dba0329ab15c2a3",
        architectures=("siglip",),
        files=(
            FolderFile("config.json", 576, "adc04928d8fd19a61822584fe0cf2e813e5ebac17f3e49fb1ea096860ae6457b"),
            FolderFile("preprocessor_config.json", 368, "f59da2f87c3cd079bd4f8f3037e81b277c60c498e279a8020331f67a5a3157e8"),
            FolderFile("tokenizer.json", 2_399_357, "c6e405cb7c670d56636a9402c81023a55bc6c3c53d89cf02b92f5c5005bfe920"),
            FolderFile("model.safetensors", 3_511_950_624, "ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a"),
        ),
        licence="Apache-2.0",
        source=_AS_PINNED,
        summary="SigLIP so400m, 384 px: pictures and words in one space; RSRefSeg is trained from it (arXiv 2303.15343)",
    ),
    PublishedFolder(
        name="sam-b",
        repo="facebook/sam-vit-base",
        revision="70c1a07f894ebb5b307fd9eaaee97b9dfc16068f",
        architectures=("sam",),
        files=(
            FolderFile("config.json", 6_566, "5ebd0d8643b486f3a716bf17c2a15531eb818b2b96ff0c6c5dcc88fa015161af"),
            FolderFile("preprocessor_config.json", 466, "225545a743c654e3c495ec6f545a0eaba57c8ba3fbbd8483b3cb1c0fc58db517"),
            FolderFile("model.safetensors", 374_979_480, "892c410e496344e527255ccdcb2cb7244a609acb5389c7c4fdba1288f861c579"),
        ),
        licence="Apache-2.0",
        source=_AS_PINNED,
        summary="Segment Anything, ViT-B: RSRefSeg-b is trained from it (arXiv 2304.02643)",
    ),
    PublishedFolder(
        name="sam-l",
        repo="facebook/sam-vit-large",
        revision="6851e0441005b0fb96f2cc4dfac472f3d1b14af1",
        architectures=("sam",),
        files=(
            FolderFile("config.json"),
            FolderFile("preprocessor_config.json"),
            FolderFile("model.safetensors", sha256="a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81"),
        ),
        licence="Apache-2.0",
        source="commit and hash of the weights as pinned by public projects that use them; the two small files are what the hub "
        "announces for this commit",
        summary="Segment Anything, ViT-L: RSRefSeg-l is trained from it (arXiv 2304.02643)",
    ),
    PublishedFolder(
        name="grounding-dino",
        repo="IDEA-Research/grounding-dino-tiny",
        revision="a2bb814dd30d776dcf7e30523b00659f4f141c71",
        architectures=("grounding-dino",),
        files=(
            FolderFile("config.json", 1_644, "eec82c5ab66e16df12a9a212e68ac011779927c2536cf9078658e35d85f0c67a"),
            FolderFile("preprocessor_config.json", 457, "8454179ba95e2ad22947835aad7b45862a601fc0055ab88bf1ee70892d3aea60"),
            FolderFile("tokenizer.json", 711_396, "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66"),
            FolderFile("model.safetensors", 689_359_096, "1a2412ef99bd74bcd3c2a246fa1e48581f8889a1300c9051974741314fc042f3"),
        ),
        licence="Apache-2.0",
        source=_AS_PINNED,
        summary="Grounding DINO tiny: boxes around what words name (arXiv 2303.05499)",
    ),
    PublishedFolder(
        name="sam2",
        repo="facebook/sam2.1-hiera-small",
        revision="ee5bba1d82bb8749febdf90f45e84b687142ba03",
        architectures=("sam2", "sam2_video"),
        files=(
            FolderFile("config.json", 5_698, "97ff9f65b76d107acda4247885f0a5555d0048850ae3c5f97183df289aaecde9"),
            FolderFile("preprocessor_config.json", 683, "6ebf229ee259368ce4a8d4f2fe893a72b053023710853e257253939e601f583d"),
            FolderFile("model.safetensors", 184_305_280, "0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60"),
        ),
        licence="Apache-2.0",
        source=_AS_PINNED,
        summary="SAM 2.1 Hiera-S: masks from boxes (arXiv 2408.00714)",
    ),
    PublishedFolder(
        name="sam3",
        repo="facebook/sam3",
        revision="3c879f39826c281e95690f02c7821c4de09afae7",
        architectures=("sam3", "sam3_video"),
        files=(
            FolderFile("config.json", 25_843, "4616385e4b21f2e5e22c875b65679185cbccfa95de42542b9166f7dc3d57160f"),
            FolderFile("processor_config.json", 1_712, "6420cf2671fa9309ea95bc0144a8b9861666d1c5f43c8db09e410dacda974fce"),
            FolderFile("tokenizer.json", 3_642_073, "6d9109cc838977f3ca94a379eec36aecc7c807e1785cd729660ca2fc0171fb35"),
            FolderFile("model.safetensors", 3_439_938_512, "6d06f0a5f84e435071fe6603e61d0b4cc7b40e0d39d487cfd4d67d8cc11cc14a"),
        ),
        licence=_SAM_LICENCE,
        source=_AS_PINNED,
        summary="SAM 3: every instance of a concept (arXiv 2511.16719)",
        is_gated=True,
    ),
    PublishedFolder(
        name="directsam",
        repo="chendelong/DirectSAM-EntitySeg-1024px-0501",
        revision="",
        architectures=("segformer",),
        files=(FolderFile("config.json"), FolderFile("preprocessor_config.json"), FolderFile("model.safetensors")),
        licence="not stated on the page of the weights. Whether you may use them is for you to find out",
        source="what the hub announces for this commit: trust on first use, not a pin",
        summary="DirectSAM: outlines that part touching objects, for `segment --contours directsam` (arXiv 2402.14327)",
    ),
)
"""Every folder that eo-batch fetches. Closed, as `PUBLISHED` is."""


def folder_names() -> tuple[str, ...]:
    """Names of published folders for `eo-batch models fetch`, in order."""
    return tuple(folder.name for folder in FOLDERS)


def published_folder(name: str) -> PublishedFolder | None:
    """The published folder of this name, or of this name on the hub; None where there is none."""
    return next((folder for folder in FOLDERS if name in (folder.name, folder.repo)), None)


def fetch_command(name: str) -> str:
    """What fetches the weights of this name."""
    folder = published_folder(name)
    return f"eo-batch models fetch {name}" if folder is None else folder.command
