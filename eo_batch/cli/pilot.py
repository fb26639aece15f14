"""`eo-batch plan --pilot N`: compute some chunks, and say what the run will take, with a range."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from typing import TYPE_CHECKING

from eo_batch.cli.progress import Progress
from eo_batch.cli.report import print_json, print_table, say
from eo_batch.core.errors import ConfigError

if TYPE_CHECKING:
    from eo_batch.run.request import Request
    from eo_batch.run.told.events import Event


def price_by_pilot(
    request: Request,
    *,
    chunks: int,
    out: str | None,
    cluster: str | None,
    workers: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a pilot and print it; the exit status.

    Parameters
    ----------
    out : where the run begins; None: in a temporary folder that is deleted.

    Raises
    ------
    EoBatchError : as `start_run`; or workers cannot see a temporary folder.
    """
    from eo_batch.run.clusters import choose_cluster
    from eo_batch.run.cost.pilot import run_pilot
    from eo_batch.run.crew import crew_of
    from eo_batch.run.driver import RunSummary

    chosen = choose_cluster(request.spec.cluster, cluster, workers, base=request.folder)
    if out is None and not crew_of(chosen).is_here:
        fix = "Give --out: a folder that all workers see, or s3://BUCKET/PREFIX. The run begins there, and nothing is lost."
        what = f"workers of {chosen.kind} do not see a temporary folder of this machine"
        raise ConfigError("config-invalid", what, where="--pilot", fix=fix)
    folder = tempfile.TemporaryDirectory(prefix="eo-batch-pilot-") if out is None else nullcontext(out)
    with folder as where, Progress(as_json=False, quiet=quiet or as_json) as progress:

        def tell(event: Event) -> None:
            if out is not None or not event.text.startswith("interrupted:"):  # a folder that goes cannot be resumed
                progress.tell(event)

        found = run_pilot(request, where, chunks=chunks, executor=cluster, workers=workers, listener=tell)
    if isinstance(found, RunSummary):
        if not found.interrupted:
            say("no chunk of the pilot could be made: there is nothing to tell a price from")
        elif out is None:
            say("interrupted: nothing is kept; the same command begins anew")
        return found.exit_status
    if as_json:
        print_json(found.as_dict())
    else:
        print_table(found.rows(), title=f"pilot of {request.spec.name}")
    if out is not None:
        left = found.total - found.chunks
        say(f"{left:,} chunks are left; `eo-batch resume {out}` goes on, and computes none twice")
    return 0
