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
Directive = Annotated[str, Field(max_length=500, pattern=r"^-[^\r\n\x00]*$")]
Word = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,:@+-]*$")]
"""Stands in a header or a command as it is: nothing in it means anything to a shell."""
Folder = Annotated[str, Field(max_length=500, pattern=r"^(~|~?/[A-Za-z0-9_./@+=,-]*)$")]
Image = Annotated[str, Field(max_length=500, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
Label = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
"""A name in Kubernetes (RFC 1123)."""
Tag = Annotated[str, Field(max_length=317, pattern=r"^([A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?)?$")]


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

    queue: Word | None = Field(None, description="partition or queue; default: that of the system")
    account: Word | None = Field(None, description="account or project that is charged")
    walltime: str = Field(
        "01:00:00",
        pattern=r"^[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]$",
        description="longest life of a worker, hours:minutes:seconds; it ends itself a little before, and another is asked for",
    )
    cores: int | None = Field(None, ge=1, le=1024, description="CPU cores of a worker; default: as many as it has threads")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of a worker; it uses one, so ask for more only where one is not given")
    interface: Word | None = Field(
        None, description="network interface between nodes, such as ib0; default: the one to elsewhere"
    )
    setup: list[Line] = Field(default_factory=list, description="lines of shell before the worker starts, such as `module load`")
    directives: list[Directive] = Field(default_factory=list, description="further header lines, without #SBATCH or #PBS")
    log_folder: Folder | None = Field(None, description="where the logs of workers go; default: they are dropped")
    shared_folder: Folder = Field("~", description="folder that all nodes see, for the keys of the connections of one run")

    @property
    def walltime_s(self) -> int:
        """Seconds of `walltime`."""
        hours, minutes, seconds = (int(part) for part in self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds


class KubernetesSpec(Table):
    """`[cluster.kubernetes]`: what is asked of the Dask operator for each worker."""

    image: Image = Field(description="container image with eo-batch and its models, the same versions as here")
    namespace: Label = Field("default", description="namespace with the Dask operator")
    cores: float | None = Field(None, gt=0, le=1024, description="CPU cores of a worker; default: as many as it has threads")
    gpus: int = Field(0, ge=0, le=16, description="GPUs of a worker, as `nvidia.com/gpu`; it uses one")
    secrets: list[Label] = Field(default_factory=list, description="secrets whose keys become environment of the workers")
    service_account: Label | None = Field(None, description="service account of the workers")
    node_labels: dict[Tag, Tag] = Field(default_factory=dict, description="labels that the nodes of the workers must have")
    tolerations: list[Tag] = Field(
        default_factory=list, description="keys of taints that keep no worker away, such as those of spot nodes"
    )


class ClusterSpec(Table):
    """`[cluster]`: who computes. Never changes a result."""

    kind: str = Field("local", description=f"one of {', '.join(NAMES)}")
    workers: int | None = Field(
        None, ge=1, le=1000, description="local: chunks computed at once (default: CPU cores); elsewhere: worker processes"
    )
    threads: int | None = Field(
        None, ge=1, le=64, description="chunks at once in each worker process; default: 1, and 3 where a GPU segments"
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="memory of each worker process; one that needs more is ended. Default: none; 4 where it is asked for",
    )
    start_timeout_s: float = Field(300.0, gt=0, le=604_800, description="how long to wait for the first worker")
    price_per_hour: float | None = Field(None, ge=0, description="what one worker process costs in an hour")
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="of the price, ISO 4217")
    tls: TlsSpec | None = Field(None, description="see `[cluster.tls]`; for tls://")
    batch: BatchSpec = Field(BatchSpec(), description="see `[cluster.batch]`; for slurm and pbs")
    kubernetes: KubernetesSpec | None = Field(None, description="see `[cluster.kubernetes]`; for kubernetes")

    @property
    def gpus(self) -> int:
        """GPUs that are asked for with each worker of SLURM, PBS or Kubernetes."""
        if self.kind == "kubernetes":
            return self.kubernetes.gpus if self.kubernetes else 0
        return self.batch.gpus if self.kind in ("slurm", "pbs") else 0

    @property
    def asked_threads(self) -> int:
        """Threads of each worker of SLURM, PBS or Kubernetes: one that segments on a GPU reads and writes meanwhile."""
        return self.threads or (3 if self.gpus else 1)

    @property
    def asked_gb(self) -> float:
        """Memory that is asked for with each worker of SLURM, PBS or Kubernetes, GB."""
        return self.memory_gb or 4.0

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if not is_kind(kind):
            raise ValueError(f'unknown cluster "{kind}": use one of {", ".join(NAMES)}')
        return kind


class ClusterFile(Table):
    """A file of clusters/."""

    cluster: ClusterSpec = Field(description="see `[cluster]`")
