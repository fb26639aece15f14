"""Workers in pods of Kubernetes, by the Dask operator: a scheduler pod and a group of worker pods for one sitting.

Pods talk to each other without encryption, as the operator has them do: keep strangers out of the namespace by a network policy.
What travels between here and the cluster goes through the Kubernetes API. An operator that hears nothing removes the pods.
"""

from __future__ import annotations

import uuid
from typing import Any

from eo_batch.core.clusters import ClusterSpec, KubernetesSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.core.hrefs import redact
from eo_batch.run.executors.local import ONE_THREAD
from eo_batch.run.executors.pool import PoolExecutor

IDLE_S = 900
"""A scheduler without work for so long is removed by the operator: the driver has died."""
SCHEDULER = {"cpu": "1", "memory": "2G"}


class KubernetesExecutor(PoolExecutor):
    """Client of a Dask cluster made for this sitting in Kubernetes; it is removed when the executor ends."""

    def _open(self) -> Any:
        wanted = asked(self._cluster)
        try:
            from dask_kubernetes.operator import KubeCluster
        except ImportError:
            fix = 'Run: pip install "eo-batch[kubernetes]"'
            raise ConfigError(
                "config-invalid", 'cluster "kubernetes" needs dask-kubernetes', why="not installed", fix=fix
            ) from None
        from distributed import Client

        timeout_s = int(min(self._cluster.start_timeout_s, 3600))
        try:
            made = cluster_resource(self._cluster, f"eo-batch-{uuid.uuid4().hex[:10]}")
            cluster = KubeCluster(
                custom_cluster_spec=made,
                namespace=wanted.namespace,
                quiet=True,
                resource_timeout=timeout_s,
                shutdown_on_close=True,
            )
        except Exception as error:  # kr8s, httpx, the operator: whatever they raise, it is about the same thing
            fix = "Check that kubectl reaches the cluster, that the Dask operator runs there, and [cluster.kubernetes]."
            what = "no Dask cluster could be made"
            raise ResourceError("cluster-unreachable", what, where="kubernetes", why=redact(error)[:500], fix=fix) from None
        try:
            return Client(cluster, set_as_default=False)
        except BaseException:
            cluster.close()
            raise

    def _why_none(self) -> str:
        return f"see kubectl --namespace {asked(self._cluster).namespace} get pods"


def asked(spec: ClusterSpec) -> KubernetesSpec:
    """`[cluster.kubernetes]`.

    Raises
    ------
    ConfigError : `config-invalid`: there is none, and an image cannot be guessed.
    """
    if spec.kubernetes is None:
        fix = "Write a file with [cluster.kubernetes] and image: eo-batch clusters show kubernetes."
        raise ConfigError("config-invalid", "nothing says which image the workers run", where="cluster.kubernetes.image", fix=fix)
    return spec.kubernetes


def cluster_resource(spec: ClusterSpec, name: str) -> dict[str, Any]:
    """The `DaskCluster` that is asked for: what the operator's library makes, and what it has no words for."""
    from dask_kubernetes.operator import make_cluster_spec

    wanted, threads = asked(spec), spec.asked_threads
    memory = f"{int(spec.asked_gb * 1e9)}"
    command = ["python", "-m", "distributed.cli.dask_worker", "--nthreads", str(threads), "--memory-limit", memory]
    made: dict[str, Any] = make_cluster_spec(
        name,
        image=wanted.image,
        n_workers=spec.workers or 1,
        env=dict.fromkeys(ONE_THREAD, "1"),
        worker_command=command,
        resources={"requests": dict(SCHEDULER), "limits": {"memory": SCHEDULER["memory"]}},
        idle_timeout=IDLE_S,
    )
    pod = made["spec"]["worker"]["spec"]
    asks = {"cpu": f"{wanted.cores or threads:g}", "memory": memory}
    gpus = {"nvidia.com/gpu": str(wanted.gpus)} if wanted.gpus else {}
    container = pod["containers"][0]
    container["resources"] = {"requests": {**asks, **gpus}, "limits": {"memory": memory, **gpus}}
    container["envFrom"] = [{"secretRef": {"name": secret}} for secret in wanted.secrets]
    if wanted.service_account:
        pod["serviceAccountName"] = wanted.service_account
    if wanted.node_labels:
        pod["nodeSelector"] = dict(wanted.node_labels)
    if wanted.tolerations:
        pod["tolerations"] = [{"key": key, "operator": "Exists"} for key in wanted.tolerations]
    return made
