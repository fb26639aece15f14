"""RSRefSeg 2: SigLIP 2 finds what a sentence means, SAM 2.1 draws it, a cascade of attention stands between (arXiv 2507.06231).

`RSRefSeg2` needs torch and transformers and is imported when it is asked for; `RSRefSeg2Config` needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_batch.models.rsrefseg2.config import RSRefSeg2Config

if TYPE_CHECKING:
    from eo_batch.models.rsrefseg2.network import ImageFeatures, PromptFeatures, RSRefSeg2
    from eo_batch.models.rsrefseg2.prompter import CascadedPrompter

__all__ = ["CascadedPrompter", "ImageFeatures", "PromptFeatures", "RSRefSeg2", "RSRefSeg2Config"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from eo_batch.models.rsrefseg2 import network, prompter

        return getattr(prompter if name == "CascadedPrompter" else network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
