"""Which cluster a command means: the pipeline's, a kind, or the name or path of a file in clusters/."""

from __future__ import annotations

import difflib

from eo_batch.core.clusters import NAMES, ClusterSpec, is_kind
from eo_batch.core.errors import ConfigError


def choose_cluster(own: ClusterSpec, named: str | None, workers: int | None) -> ClusterSpec:
    """The cluster of one sitting.

    Parameters
    ----------
    own : `[cluster]` of the pipeline.
    named : what the user says instead: a kind of cluster; None: nothing.
    workers : as `ClusterSpec.workers`; None: as the cluster says.

    Raises
    ------
    ConfigError : `config-invalid`: nothing of that name.
    """
    chosen = own
    if named is not None:
        if not is_kind(named):
            close = difflib.get_close_matches(named, NAMES, n=1)
            hint = f'Did you mean "{close[0]}"? ' if close else ""
            fix = f"{hint}Use one of: {', '.join(NAMES)}."
            raise ConfigError("config-invalid", f'unknown cluster "{named}"', where="cluster.kind or --cluster", fix=fix)
        chosen = chosen.model_copy(update={"kind": named})
    return chosen if workers is None else chosen.model_copy(update={"workers": workers})
