"""RSRefSeg: SigLIP finds what a sentence means, SAM draws it (arXiv 2501.06809).

`RSRefSeg` needs torch and transformers and is imported when it is asked for; `RSRefSegConfig` needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_batch.models.rsrefseg.config import RSRefSegConfig

if TYPE_CHECKING:
    from eo_batch.models.rsrefseg.network import ImageFeatures, PromptFeatures, RSRefSeg
    from eo_batch.models.rsrefseg.prompter import AttnPrompter

__all__ = ["AttnPrompter", "ImageFeatures", "PromptFeatures", "RSRefSeg", "RSRefSegConfig"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from eo_batch.models.rsrefseg import network, prompter

        return getattr(prompter if name == "AttnPrompter" else network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
