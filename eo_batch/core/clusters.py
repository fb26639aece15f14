"""Who computes, as users write it: `[cluster]` of a pipeline, or a file of its own in clusters/. Never changes a result."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from eo_batch.core.table import Table

NAMES = ("local", "serial", "local:N", "gpus", "slurm", "pbs", "kubernetes", "tcp://HOST:PORT", "tls://HOST:PORT")
"""All that `kind` can be."""
_KIND = re.compile(r"local|serial|local:[1-9][0-9]{0,2}|gpus|slurm|pbs|kubernetes|(tcp|tls)://[A-Za-z0-9._\[\]:-]+:[0-9]{1,5}")

Line = Annotated[str, Field(max_length=500, pattern=r"^[^\r\n\x00]*$")]


def is_kind(text: str) -> bool:
    """`text` names a way to compute, not a file."""
    return _KIND.fullmatch(text) is not None


class TlsSpec(Table):
    """`[cluster.tls]`: files that prove who is who to a scheduler at tls://."""

    ca_file: str = Field(description="certificate authority, PEM")
    cert_file: str = Field(description="certificate of the client, PEM")
    key_file: str = Field(description="key of the client, PEM")


class BatchSpec(Table):
    """`[cluster.batch]`: what is asked of SLURM or PBS for each worker."""

    queue: Line | None = Field(None, description="partition or queue; default: that of the system")
    account: Line | None = Field(None, description="account or project that is charged")
    walltime: str = Field("01:00:00", pattern=r"^([0-9]+-)?[0-9]{1,3}:[0-9]{2}:[0-9]{2}$", description="longest life of a worker")
    cores: int = Field(1, ge=1, le=1024, description="CPU cores of a worker")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of a worker")
    interface: Line | None = Field(None, description="network interface between nodes, such as ib0")
    setup: list[Line] = Field(default_factory=list, description="lines of shell before the worker starts, such as `module load`")
    directives: list[Line] = Field(default_factory=list, description="further lines of the job header, without #SBATCH or #PBS")
    log_folder: Line | None = Field(None, description="where the logs of jobs go; default: they are dropped")
    shared_folder: Line | None = Field(None, description="folder that all nodes see, for keys; default: the home folder")


class KubernetesSpec(Table):
    """`[cluster.kubernetes]`: what is asked of the Dask operator for each worker."""

    image: Line = Field(description="container image with eo-batch and its models")
    namespace: Line = Field("default", description="namespace with the Dask operator")
    cores: float = Field(1.0, gt=0, le=1024, description="CPU cores of a worker")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of a worker")
    secrets: list[Line] = Field(default_factory=list, description="names of secrets whose keys become environment of the workers")
    service_account: Line | None = Field(None, description="service account of the workers")


class ClusterSpec(Table):
    """`[cluster]`: who computes. Never changes a result."""

    kind: str = Field("local", description=f"one of {', '.join(NAMES)}")
    workers: int | None = Field(
        None, ge=1, le=1000, description="local: chunks computed at once (default: CPU cores); elsewhere: worker processes"
    )
    threads: int | None = Field(
        None, ge=1, le=64, description="chunks at once in each worker process; default: 1, and 3 where a GPU segments"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of each worker process; one that needs more is ended")
    start_timeout_s: float = Field(300.0, gt=0, le=86_400, description="how long to wait for the first worker")
    price_per_hour: float | None = Field(None, ge=0, description="what one worker process costs in an hour")
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="of the price, ISO 4217")
    tls: TlsSpec | None = Field(None, description="see `[cluster.tls]`; for tls://")
    batch: BatchSpec = Field(BatchSpec(), description="see `[cluster.batch]`; for slurm and pbs")
    kubernetes: KubernetesSpec | None = Field(None, description="see `[cluster.kubernetes]`; for kubernetes")

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if not is_kind(kind):
            raise ValueError(f'unknown cluster "{kind}": use one of {", ".join(NAMES)}')
        return kind
