"""RemoteSAM: one network that answers a sentence about an image with a mask (arXiv 2505.18022).

`RemoteSAM` needs torch and is imported when it is asked for; `RemoteSAMConfig` needs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_batch.models.remotesam.config import RemoteSAMConfig

if TYPE_CHECKING:
    from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures, RemoteSAM

__all__ = ["ImageFeatures", "PromptFeatures", "RemoteSAM", "RemoteSAMConfig"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from eo_batch.models.remotesam import network

        return getattr(network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
