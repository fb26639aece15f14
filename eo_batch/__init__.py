"""eo-batch: region in, map out.

`open_run(path)` opens a finished or unfinished run. Everything else is imported from the rooms where it lives
(see ARCHITECTURE.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eo_batch.version import __version__

__all__ = ["__version__", "open_run"]

if TYPE_CHECKING:
    from eo_batch.notebook import open_run


def __getattr__(name: str) -> Any:
    if name == "open_run":
        from eo_batch.notebook import open_run

        return open_run
    raise AttributeError(f"module 'eo_batch' has no attribute {name!r}")
