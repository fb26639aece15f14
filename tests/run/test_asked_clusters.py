"""What is asked of SLURM, PBS and Kubernetes is what the cluster file says; nothing of them is needed for that."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from eo_batch.core.clusters import BatchSpec, ClusterSpec, KubernetesSpec
from eo_batch.core.errors import ConfigError
from eo_batch.core.spec import parse_cluster
from eo_batch.run.executors import make_executor
from eo_batch.run.executors.batch import job_options, keys_in, worker_arguments
from eo_batch.run.executors.kubernetes import cluster_resource
from eo_batch.run.executors.queued import states_of, tail_of

QSTAT = """#!/bin/sh
cat <<'END'

pbs:
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
1204.pbs        mapper   workq    eo-batch      --    1   4   16gb 04:00 Q   --
1205[3].pbs     mapper   workq    Ümlaut       4710   1   4   16gb 04:00 E 00:12
1207.pbs        mapper   workq    eo-batch     4711   1   4   16gb 04:00 R 00:12
END
"""


def script(spec: ClusterSpec) -> list[str]:
    """Lines of the script of a job that dask-jobqueue would submit."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    kind = {"slurm": jobqueue.slurm.SLURMJob, "pbs": jobqueue.pbs.PBSJob}[spec.kind]
    return kind(scheduler="tls://10.0.0.1:4444", name="eo-batch-0", **job_options(spec)).job_script().splitlines()


def test_a_job_of_pbs_asks_for_what_the_file_says(tmp_path: Path) -> None:
    batch = BatchSpec(
        queue="gpu",
        account="project-1",
        walltime="04:00:00",
        cores=8,
        gpus=2,
        interface="ib0",
        setup=["module load cuda"],
        directives=["-l place=free"],
        log_folder=str(tmp_path),
    )
    lines = script(ClusterSpec(kind="pbs", memory_gb=16, threads=4, batch=batch))
    for line in (
        "#PBS -q gpu",
        "#PBS -A project-1",
        "#PBS -l select=1:ncpus=8:mem=15259MB:ngpus=2",
        "#PBS -l walltime=04:00:00",
        "#PBS -l place=free",
        f"#PBS -o {tmp_path}/",
        "module load cuda",
        "export OMP_NUM_THREADS=1",
    ):
        assert line in lines
    command = shlex.split(lines[-1])
    assert command[:3] == [sys.executable, "-m", "distributed.cli.dask_worker"]
    options = dict(pairwise(command))
    assert (options["--nthreads"], options["--interface"], options["--memory-limit"]) == ("4", "ib0", "14.90GiB")


def test_a_job_of_slurm_asks_for_gpus_cores_and_memory() -> None:
    batch = BatchSpec(queue="gpu", gpus=1, cores=6, directives=["--constraint=a100"])
    lines = script(ClusterSpec(kind="slurm", memory_gb=24, batch=batch))
    assert {"#SBATCH -p gpu", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=23G", "#SBATCH --gres=gpu:1"} <= set(lines)
    assert "#SBATCH --constraint=a100" in lines
    assert "#SBATCH -o /dev/null" in lines
    assert "--nthreads 3" in lines[-1]


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_a_job_script_is_one_that_a_shell_can_read(kind: str) -> None:
    text = "\n".join(script(ClusterSpec(kind=kind, batch=BatchSpec(setup=["true"]))))
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_python_with_a_blank_in_its_path_stays_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/my envs/$HOME/python")
    assert shlex.split(job_options(ClusterSpec(kind="slurm"))["python"]) == ["/opt/my envs/$HOME/python"]


@pytest.mark.parametrize(("walltime_s", "longest_s"), [(300, 270), (3600, 3300), (86_400, 86_100)])
def test_workers_end_themselves_before_their_job_is_ended(walltime_s: int, longest_s: int) -> None:
    arguments = worker_arguments(walltime_s)
    lifetime, stagger = (int(arguments[arguments.index(name) + 1][:-1]) for name in ("--lifetime", "--lifetime-stagger"))
    assert lifetime + stagger == longest_s < walltime_s


def test_keys_of_connections_are_files_of_this_user_alone_and_go(tmp_path: Path) -> None:
    with keys_in(str(tmp_path)) as security:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert {str(path) for path in files} == {
            security.tls_ca_file,
            security.tls_worker_key,
            security.tls_worker_cert,
        }
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "module", "extra"), [("slurm", "dask_jobqueue", "cluster"), ("kubernetes", "dask_kubernetes.operator", "kubernetes")]
)
def test_a_library_that_is_not_installed_is_named(kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    spec = ClusterSpec(kind=kind, kubernetes=KubernetesSpec(image="example.org/eo-batch:1"))
    with pytest.raises(ConfigError, match=rf"not installed.*eo-batch\[{extra}\]"), make_executor(spec):
        pytest.fail("nothing can be asked for")


def test_states_of_pbs_are_read_from_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qstat").write_text(QSTAT, encoding="latin-1")  # in no encoding that is known here
    (tmp_path / "qstat").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert states_of("pbs") == {"1204": "Q", "1205": "E", "1207": "R"}


def test_the_end_of_a_log_is_that_of_this_job_and_of_its_errors(tmp_path: Path) -> None:
    for name, text in {"e17": "lost\n", "o17": "hello\n", "e170": "another\n", "e1": "third\n"}.items():
        (tmp_path / f"eo-batch.{name}").write_text(text)
    assert tail_of(tmp_path, "17") == "hello | lost"
    assert tail_of(tmp_path / "nowhere", "17") == ""


def test_a_machine_without_a_batch_system_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec = ClusterSpec(kind="pbs", batch=BatchSpec(interface="lo", shared_folder=str(tmp_path)))
    with pytest.raises(ConfigError, match="no command `qsub` here"), make_executor(spec):
        pytest.fail("nothing can be asked for")
    assert not list(tmp_path.iterdir())


KUBERNETES = b"""
[cluster]
kind = "kubernetes"
workers = 5
memory_gb = 24
[cluster.kubernetes]
image = "registry.example.org/eo-batch:0.1.0"
namespace = "maps"
cores = 6
gpus = 1
secrets = ["storage", "catalog"]
service_account = "mapper"
tolerations = ["spot"]
[cluster.kubernetes.node_labels]
"example.org/gpu" = "a100"
"""


@pytest.fixture
def resource() -> dict[str, Any]:
    pytest.importorskip("dask_kubernetes")
    return cluster_resource(parse_cluster(KUBERNETES, where="mine.toml"), "eo-batch-1")


def test_pods_of_kubernetes_are_as_the_file_says(resource: dict[str, Any]) -> None:
    group = resource["spec"]["worker"]
    pod, container = group["spec"], group["spec"]["containers"][0]
    assert (resource["kind"], resource["metadata"]["name"], group["replicas"]) == ("DaskCluster", "eo-batch-1", 5)
    assert container["image"] == "registry.example.org/eo-batch:0.1.0"
    assert container["resources"] == {
        "requests": {"cpu": "6", "memory": "24000000000", "nvidia.com/gpu": "1"},
        "limits": {"memory": "24000000000", "nvidia.com/gpu": "1"},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "storage"}}, {"secretRef": {"name": "catalog"}}]
    assert {"name": "OMP_NUM_THREADS", "value": "1"} in container["env"]
    assert container["args"][:7] == [
        "python",
        "-m",
        "distributed.cli.dask_worker",
        "--nthreads",
        "3",
        "--memory-limit",
        "24000000000",
    ]
    assert pod["serviceAccountName"] == "mapper"
    assert pod["nodeSelector"] == {"example.org/gpu": "a100"}
    assert pod["tolerations"] == [{"key": "spot", "operator": "Exists"}]


def test_the_scheduler_pod_takes_no_gpu_and_no_secret_and_goes_when_idle(resource: dict[str, Any]) -> None:
    container = resource["spec"]["scheduler"]["spec"]["containers"][0]
    assert "envFrom" not in container
    assert "nvidia.com/gpu" not in str(container["resources"])
    assert resource["spec"]["scheduler"]["service"]["type"] == "ClusterIP"
    assert resource["spec"]["idleTimeout"] == 900


def test_kubernetes_without_an_image_is_an_error_that_shows_a_way() -> None:
    with pytest.raises(ConfigError, match="clusters show kubernetes"), make_executor(ClusterSpec(kind="kubernetes")):
        pytest.fail("nothing can be asked for")
