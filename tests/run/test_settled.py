"""What a pipeline leaves open is found once and frozen: a run is resumed with the same batch, on the same kind of device."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rundigest import file_digests
from servers.dask_cluster import DaskCluster, dask_cluster
from tinyclipseg import make_tiny, tiny_pipeline
from toy import make_toy, toy_pipeline

from eo_batch.core.errors import ModelError, ResourceError, ResumeError
from eo_batch.models.inference import ProbeReport
from eo_batch.models.probe import WindowMean
from eo_batch.models.registry import load_segmenter
from eo_batch.run import answers
from eo_batch.run.cost.plan import make_inputs_of, plan_run
from eo_batch.run.cost.price import Price
from eo_batch.run.driver import resume_run, start_run
from eo_batch.run.generations import Generation
from eo_batch.run.manifest import SegmenterIdentity, read_manifest, read_request, write_inputs
from eo_batch.run.request import Request, load_pipeline
from eo_batch.run.settled import Told, agree
from eo_batch.run.task import execute, forget_contexts, prepare
from eo_batch.version import __version__

SIZE = 120
AUTO = {"edit": ("batch = 4", 'batch = "auto"')}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, dates=1, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def request_of(folder: Path, text: str, *, edit: tuple[str, str] = ("", "")) -> Request:
    path = folder / "asked.toml"
    path.write_text(text.replace(*edit))
    return load_pipeline(path)


def mean_request(folder: Path, **settings: tuple[str, str]) -> Request:
    return request_of(folder, toy_pipeline(size=SIZE, chunk_px=256), **settings)


@pytest.fixture(scope="module")
def auto(toy: Path) -> Path:
    """A finished run whose pipeline left the batch open."""
    start_run(mean_request(toy, **AUTO), toy / "auto", executor="serial")
    return toy / "auto"


def test_the_batch_that_was_found_is_written_and_part_of_the_run(auto: Path) -> None:
    assert read_request(Generation(auto)).spec.model.batch == 4
    manifest = read_manifest(Generation(auto))
    assert manifest is not None
    assert manifest["batch"] == 4


def test_a_run_whose_batch_was_found_is_the_run_with_that_number(auto: Path, toy: Path) -> None:
    start_run(mean_request(toy), toy / "number", executor="serial")
    assert file_digests(toy / "number") == file_digests(auto)


def test_a_plan_says_the_batch_that_a_run_would_have(toy: Path) -> None:
    plan = plan_run(mean_request(toy, **AUTO), executor="serial")
    assert plan.batch == 4
    assert ("batch", "4") in [row[:2] for row in plan.rows()]


@pytest.mark.parametrize("asked", ['"auto"', "4"])
def test_a_run_is_resumed_with_the_question_or_with_its_answer(auto: Path, toy: Path, asked: str) -> None:
    request = mean_request(toy, edit=("batch = 4", f"batch = {asked}"))
    assert resume_run(auto, request=request, executor="serial").complete


def test_a_run_is_not_resumed_with_another_number(auto: Path, toy: Path) -> None:
    with pytest.raises(ResumeError, match=r"model\.batch: 4 became 2"):
        resume_run(auto, request=mean_request(toy, edit=("batch = 4", "batch = 2")), executor="serial")


def test_the_device_that_was_found_is_written_and_its_question_is_not_another_run(toy: Path, weights: Path) -> None:
    request = request_of(toy, tiny_pipeline(str(weights), size=SIZE, chunk_px=256, options='device = "cpu"'))
    open_one = request_of(toy, tiny_pipeline(str(weights), size=SIZE, chunk_px=256, options='device = "auto"'))
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so that cpu is not what would be found")
    start_run(open_one, toy / "device", executor="serial")
    assert read_request(Generation(toy / "device")).spec.model.options["device"] == "cpu"
    for asked in (request, open_one):
        assert resume_run(toy / "device", request=asked, executor="serial").complete


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster that others have started."""
    with dask_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        cluster.add_worker("--no-nanny")
        yield cluster


@pytest.fixture
def begun_on_a_gpu(toy: Path, weights: Path, tmp_path: Path) -> Path:
    """A run that a driver with a GPU has begun, as this machine finds it."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    request = request_of(toy, tiny_pipeline(str(weights), size=SIZE, chunk_px=64, options='device = "cuda"'))
    inputs = make_inputs_of(request)
    write_inputs(Generation(tmp_path), inputs, segmenter=SegmenterIdentity("clipseg", "d" * 64), version=__version__)
    return tmp_path


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_run_of_a_gpu_is_not_computed_on_a_cpu_instead(begun_on_a_gpu: Path, elsewhere: DaskCluster, where: str) -> None:
    with pytest.raises(ResourceError, match="no-gpu"):
        resume_run(begun_on_a_gpu, executor=elsewhere.address if where == "elsewhere" else "serial")
    assert not list((begun_on_a_gpu / "receipts").rglob("*.json"))
    assert not list((begun_on_a_gpu / "failures").rglob("*.json"))


def test_a_worker_with_another_segmenter_than_the_run_is_refused(toy: Path, tmp_path: Path) -> None:
    """Such as one that found no GPU where a run of an older release left the device open."""
    inputs = make_inputs_of(mean_request(toy))
    write_inputs(Generation(tmp_path), inputs, segmenter=SegmenterIdentity("window-mean", "d" * 64), version=__version__)
    manifest = read_manifest(Generation(tmp_path))
    assert manifest is not None
    with pytest.raises(ResumeError, match="not that of the run.*cpu|cpu.*not that of the run"):
        prepare(str(tmp_path), manifest["digest"])
    forget_contexts()


def test_weights_are_loaded_once_in_a_process_and_never_sent(
    toy: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(toy, tiny_pipeline(str(weights), size=SIZE, chunk_px=64, options='device = "cpu"'))
    segmenter = load_segmenter(request.spec.model, request.spec.source.bands)
    identity = SegmenterIdentity("clipseg", segmenter.info.digest)
    write_inputs(Generation(tmp_path), make_inputs_of(request), segmenter=identity, version=__version__)
    manifest = read_manifest(Generation(tmp_path))
    assert manifest is not None
    loads = []
    monkeypatch.setattr(answers, "load_segmenter", lambda *given: loads.append(given) or load_segmenter(*given))
    tasks = [(str(tmp_path), manifest["digest"], 0, 0, ix) for ix in range(2)]
    for task in tasks:
        assert len(pickle.dumps((execute, task))) < 1000
        execute(*task)
    forget_contexts()
    assert len(loads) == 1


def told(device: str, batch: int, digest: str = "") -> Told:
    """What a worker may say."""
    info = replace(WindowMean(("red",)).info, device=device, digest=digest or device)
    return Told(info, batch, ProbeReport(True, (0.0, 1.0)), Price(0.0, 1.0, 0.0))


NO_GPU = ResourceError("no-gpu", "there is no GPU that torch can use")


@pytest.mark.parametrize(
    ("answers", "device", "batch"),
    [
        ([told("cpu", 4)], "cpu", 4),
        ([told("cuda", 8), told("cuda", 4)], "cuda", 4),  # all of them can do the least
        ([told("cpu", 2), told("cuda", 8)], "cuda", 8),  # those without a GPU are sent away later
        ([NO_GPU, told("cuda", 8), TimeoutError()], "cuda", 8),
    ],
)
def test_workers_agree_on_a_gpu_and_on_the_smallest_batch(answers: list[object], device: str, batch: int) -> None:
    found = agree({f"w{number}": answer for number, answer in enumerate(answers)})
    assert (found.info.device, found.batch) == (device, batch)


def test_workers_that_cannot_answer_say_why() -> None:
    with pytest.raises(ResourceError, match="no-gpu"):
        agree({"w0": TimeoutError(), "w1": NO_GPU})
    with pytest.raises(ResourceError, match="no worker could try the segmenter: TimeoutError"):
        agree({"w0": TimeoutError()})


def test_workers_with_different_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="different weights"):
        agree({"w0": told("cuda", 4, "a"), "w1": told("cuda", 4, "b")})


def test_workers_elsewhere_are_asked_and_the_run_is_that_of_one_process(
    toy: Path, weights: Path, elsewhere: DaskCluster, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nobody is asked")
    text = tiny_pipeline(str(weights), size=SIZE, chunk_px=64, options='device = "auto"')
    request, waited = request_of(toy, text, edit=("batch = 2", 'batch = "auto"')), []
    start_run(request, tmp_path / "here", executor="serial")
    start_run(
        request,
        tmp_path / "there",
        executor=elsewhere.address,
        listener=lambda event: waited.append(event.text) if event.kind == "wait" else None,
    )
    assert "asking the workers for their device and for the batch that fits" in waited
    assert file_digests(tmp_path / "there") == file_digests(tmp_path / "here")
