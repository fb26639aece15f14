"""Memory of a run against what each kind of cluster has, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy import make_toy, toy_pipeline

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ResourceError
from eo_batch.models.registry import load_segmenter
from eo_batch.run.cost.memory import PROCESS_BYTES, Memory
from eo_batch.run.cost.plan import Plan, make_inputs_of, make_plan
from eo_batch.run.crew import crew_of
from eo_batch.run.request import load_pipeline

GB = 10**9


def memory(cluster: ClusterSpec, *, per_chunk: float, shared: float = 0.0, here: float | None = None) -> Memory:
    limit = None if cluster.memory_gb is None else int(cluster.memory_gb * GB)
    return Memory(int(per_chunk * GB), int(shared * GB), 2048, crew_of(cluster), limit, None if here is None else int(here * GB))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"), dates=1, size=200)


def planned(toy: Path, cluster: ClusterSpec, extra: str = "") -> Plan:
    path = toy.with_name("cluster.toml")
    path.write_text(toy_pipeline(size=200, extra=extra))
    request = load_pipeline(path)
    segmenter = load_segmenter(request.spec.model, request.spec.source.bands)
    return make_plan(make_inputs_of(request), segmenter, cluster=cluster)


@pytest.mark.parametrize(
    ("settings", "processes", "threads"),
    [
        ({"kind": "serial", "workers": 8}, 1, 1),
        ({"kind": "local", "workers": 3}, 1, 3),
        ({"kind": "local:4"}, 4, 1),
        ({"kind": "local:4", "threads": 2}, 4, 2),
        ({"kind": "slurm", "workers": 6}, 6, 1),
        ({"kind": "slurm", "workers": 6, "batch": {"gpus": 1}}, 6, 3),
        ({"kind": "tcp://10.0.0.1:8786"}, 1, 1),
        ({"kind": "tcp://10.0.0.1:8786", "workers": 9, "threads": 2}, 9, 2),
    ],
)
def test_every_kind_of_cluster_is_counted_in_processes_and_threads(
    settings: dict[str, object], processes: int, threads: int
) -> None:
    crew = crew_of(ClusterSpec.model_validate(settings))
    assert (crew.processes, crew.threads, crew.at_once) == (processes, threads, processes * threads)


def test_a_gpu_scores_one_chunk_at_a_time_in_each_process() -> None:
    crew = crew_of(ClusterSpec(kind="slurm", workers=4, threads=3))
    assert (crew.scoring("cpu"), crew.scoring("cuda")) == (12, 4)


def test_no_more_chunks_are_scored_at_once_than_this_machine_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eo_batch.run.crew.cores_here", lambda: 2)
    crews = [
        crew_of(ClusterSpec(kind="local", workers=8)),
        crew_of(ClusterSpec(kind="local:3")),
        crew_of(ClusterSpec(kind="serial")),
    ]
    assert [crew.scoring("cpu") for crew in crews] == [2, 2, 1]


def test_a_chunk_too_big_for_a_worker_is_refused_with_what_would_fit() -> None:
    tight = memory(ClusterSpec(kind="slurm", memory_gb=2.0), per_chunk=1.5)
    with pytest.raises(
        ResourceError, match=r"a chunk needs 2\.4 GB, workers have 2\.0 GB\. Use chunk_px (\d+) or memory_gb >= 3\."
    ) as told:
        tight.check("toy")
    assert told.value.code == "plan-too-big"


@pytest.mark.parametrize("chunk_px", [1024, 512, 256])
def test_the_memory_that_is_advised_is_enough(chunk_px: int) -> None:
    tight = memory(ClusterSpec(kind="slurm", memory_gb=2.0), per_chunk=1.5)
    enough = replace(tight, worker_limit=3 * GB)
    enough.check("toy")
    assert enough.per_process == PROCESS_BYTES + 1.5 * GB


def test_threads_of_a_process_share_its_weights_and_add_their_chunks() -> None:
    shared = memory(ClusterSpec(kind="local:2", threads=3), per_chunk=0.5, shared=2.0)
    assert shared.per_process == PROCESS_BYTES + int(2.0 * GB) + 3 * int(0.5 * GB)


def test_more_threads_than_fit_are_told_to_be_one() -> None:
    with pytest.raises(ResourceError, match=r"3 chunks at once need 2\.4 GB.*threads 1"):
        memory(ClusterSpec(kind="slurm", memory_gb=2.0, threads=3), per_chunk=0.5).check("toy")


def test_processes_of_this_machine_are_added_up_with_the_driver() -> None:
    many = memory(ClusterSpec(kind="local:8"), per_chunk=0.1, here=5.0)
    assert many.here == 8 * (PROCESS_BYTES + GB // 10) + PROCESS_BYTES
    with pytest.raises(ResourceError, match=r"8 worker processes need 8\.9 GB, 5\.0 GB may be used\. Use --cluster local:4\."):
        many.check("toy")
    memory(ClusterSpec(kind="local:4"), per_chunk=0.1, here=5.0).check("toy")


def test_memory_of_this_machine_is_no_limit_of_workers_elsewhere(toy: Path) -> None:
    tight = "[limits]\nmemory_gb = 0.5\n"
    with pytest.raises(ResourceError, match="plan-too-big"):
        planned(toy, ClusterSpec(kind="local:2"), tight).check()
    planned(toy, ClusterSpec(kind="tcp://10.0.0.1:8786", workers=500), tight).check()


def test_memory_of_the_workers_is_held_against_what_the_cluster_says(toy: Path) -> None:
    with pytest.raises(ResourceError, match=r"plan-too-big.*workers have 0\.4 GB.*memory_gb >= 1\.2"):
        planned(toy, ClusterSpec(kind="tcp://10.0.0.1:8786", memory_gb=0.4)).check()


def test_workers_that_nobody_counted_are_one_and_the_plan_says_so(toy: Path) -> None:
    plan = planned(toy, ClusterSpec(kind="tcp://10.0.0.1:8786"))
    rows = {label: value for label, value, _ in plan.rows()}
    assert (plan.workers, plan.as_dict()["workers_known"]) == (1, False)
    assert "assumed" in rows["workers"]


def test_money_is_the_price_of_all_worker_processes(toy: Path) -> None:
    plan = planned(toy, ClusterSpec(kind="slurm", workers=4, threads=2, price_per_hour=1.5, currency="USD"))
    assert plan.money == pytest.approx(4 * 1.5 * plan.seconds / 3600)
    assert next(value for label, value, _ in plan.rows() if label == "money").endswith(" USD")
    assert planned(toy, ClusterSpec()).money is None


def test_a_store_without_a_limit_is_printed_as_such(toy: Path) -> None:
    plan = replace(planned(toy, ClusterSpec()), disk_free=None)
    plan.check()
    assert "not limited" in next(remark for label, _, remark in plan.rows() if label == "disk")
