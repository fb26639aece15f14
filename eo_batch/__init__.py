"""eo-batch: region in, map out.

`open_run(path)` opens a finished or unfinished run, `segment_image(image, prompts)` asks about one image. Everything else is
imported from the rooms where it lives (see ARCHITECTURE.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_batch.version import __version__

__all__ = ["__version__", "open_run", "segment_image"]

if TYPE_CHECKING:
    from eo_batch.notebook import open_run, segment_image


def __getattr__(name: str) -> Any:
    if name in ("open_run", "segment_image"):
        from eo_batch import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module 'eo_batch' has no attribute {name!r}")
