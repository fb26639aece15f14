"""The plan's figures against brute force, and the halo that the search must cover."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyproj import Transformer
from shapely import MultiPolygon, Point
from toy import make_toy, toy_pipeline

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError, ResourceError
from eo_batch.core.grid import Grid, Span
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.core.region import make_grid, region_from_bbox
from eo_batch.models.inference import score_chunk
from eo_batch.models.probe import WindowMean
from eo_batch.models.registry import load_segmenter
from eo_batch.models.segmenter import Segmenter
from eo_batch.outputs.store import Store
from eo_batch.run.cost import plan as plan_module
from eo_batch.run.cost.plan import Plan, halo_region, make_inputs_of, make_plan
from eo_batch.run.cost.price import Price, measure_price
from eo_batch.run.driver import start_run
from eo_batch.run.features import kept_features
from eo_batch.run.manifest import RunInputs
from eo_batch.run.request import Request, load_pipeline, request_from_json

PERIOD = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder)
    return folder


@dataclass
class Watch:
    """A clock that only work moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Working(WindowMean):
    """Takes 8 s for a window, 3 s for a prompt in a window and 5 s for a prompt, on its own clock."""

    watch: Watch = field(default_factory=Watch)

    def encode_prompts(self, prompts: PromptSet) -> NDArray[np.float32]:
        self.watch.now += 5.0 * len(prompts)
        return super().encode_prompts(prompts)

    def encode_images(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.watch.now += 8.0 * len(images)
        return super().encode_images(images)

    def decode(self, image_features: NDArray[np.float32], prompt_features: NDArray[np.float32]) -> NDArray[np.float32]:
        self.watch.now += 3.0 * len(image_features) * len(prompt_features)
        return super().decode(image_features, prompt_features)


def prompts_of(*texts: str) -> PromptSet:
    return PromptSet(tuple(Prompt(text) for text in texts))


def priced(segmenter: Working, prompts: PromptSet) -> Price:
    return measure_price(segmenter, prompts, ("green",), window_px=16, batch=2, clock=segmenter.watch)


def spent(segmenter: Working, prompts: PromptSet, grid: Grid) -> tuple[float, int]:
    """Seconds that a segmenter really works for all chunks of a grid, and the windows that it works on, one by one."""
    began, windows = segmenter.watch.now, 0
    features = segmenter.encode_prompts(prompts)
    for chunk in grid.chunks(0):
        ones, inside = np.ones(chunk.padded_shape, bool), np.ones(chunk.shape, bool)
        pixels = np.zeros((1, *chunk.padded_shape), np.float32)
        where = {"pixels": pixels, "valid": ones, "inside": inside}
        score_chunk(segmenter, features, **where, grid=grid, chunk=chunk, prompts=len(prompts), batch=1)
        windows += len(list(grid.windows(chunk)))
    return segmenter.watch.now - began, windows


def planned(toy: Path, *, kind: str = "local", **settings: object) -> tuple[Plan, RunInputs]:
    path = toy / "plan.toml"
    path.write_text(toy_pipeline(**settings))  # type: ignore[arg-type]
    request = load_pipeline(path)
    inputs = make_inputs_of(request)
    return make_plan(
        inputs, load_segmenter(request.spec.model, request.spec.source.bands), cluster=ClusterSpec(kind=kind, workers=2)
    ), inputs


@pytest.mark.parametrize("chunk_px", [64, 100, 512])
def test_windows_are_those_of_a_count_one_by_one(toy: Path, chunk_px: int) -> None:
    plan, inputs = planned(toy, chunk_px=chunk_px)
    scored = distinct = 0
    for step in inputs.steps:
        windows = [
            (window.row, window.col)
            for chunk in inputs.grid.chunks(step.index)
            if inputs.region.inside(chunk.rows, chunk.cols).any()
            for window in inputs.grid.windows(chunk)
        ]
        scored += len(windows)
        distinct += len(set(windows))
    assert (plan.windows_alone, plan.windows_distinct) == (scored, distinct)
    assert plan.windows == distinct  # one process, one strip
    assert plan.chunks == inputs.chunk_count
    assert plan.area_km2 == pytest.approx(13.6, abs=0.2)


def test_chunks_beyond_all_scenes_cost_nothing(tmp_path: Path) -> None:
    make_toy(tmp_path, dates=1, size=1500)
    catalog = json.loads((tmp_path / "catalog.json").read_text())
    for feature in catalog["features"]:
        west, south, east, north = feature["bbox"]
        east = west + (east - west) / 3
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        feature["bbox"], feature["geometry"]["coordinates"] = [west, south, east, north], [ring]
    near = catalog["features"][:1]
    (tmp_path / "catalog.json").write_text(json.dumps({**catalog, "features": near}))
    plan, inputs = planned(tmp_path, size=1500, chunk_px=64, window_px=32)
    assert 0 < plan.chunks_with_data <= plan.chunks * 0.7
    assert plan.windows < inputs.grid.window_counts[0]


def test_memory_advice_names_a_setting_that_fits(toy: Path) -> None:
    plan, _ = planned(toy, chunk_px=512, extra="[limits]\nmemory_gb = 0.08")
    with pytest.raises(ResourceError, match=r"plan-too-big.*(workers|chunk_px|memory_gb)"):
        plan.check()


@pytest.mark.parametrize("texts", [("a",), ("a", "b", "c", "d")])
def test_one_measurement_prices_any_number_of_prompts_as_they_really_cost(texts: tuple[str, ...]) -> None:
    segmenter = Working(("green",), window_px=16)
    price = priced(segmenter, prompts_of(*texts))
    grid = Grid("EPSG:32631", 10.0, Span(0, 70), Span(5, 99), 40, 16, 12)
    for asked in (prompts_of("w"), prompts_of("w", "x", "y")):
        seconds, windows = spent(segmenter, asked, grid)
        assert price.windows_s(windows, prompts=len(asked)) + 5.0 * len(asked) == pytest.approx(seconds)
    assert price.run_s == 5.0 * len(texts)


def test_a_further_prompt_adds_its_share_of_what_is_planned() -> None:
    price = priced(Working(("green",), window_px=16), prompts_of("a", "b"))
    two, three = price.windows_s(7, prompts=2), price.windows_s(7, prompts=3)
    assert price.prompt_share(2) == pytest.approx(three / two - 1)
    assert price.prompt_share(2) == pytest.approx(3 / (8 + 2 * 3))


def test_prompts_that_share_nothing_pay_for_everything() -> None:
    segmenter = Working(("green",), window_px=16)
    object.__setattr__(segmenter, "info", replace(segmenter.info, shares_image_features=False))
    price = priced(segmenter, prompts_of("a", "b"))
    assert price.windows_s(10, prompts=2) == pytest.approx(10 * (8 + 2 * 3))
    assert price.windows_s(10, prompts=6) == pytest.approx(3 * price.windows_s(10, prompts=2))


def fixed_price(monkeypatch: pytest.MonkeyPatch, price: Price) -> None:
    monkeypatch.setattr(plan_module, "measure_price", lambda *args, **kwargs: price)
    monkeypatch.setattr("eo_batch.run.crew.cores_here", lambda: 8)


def test_an_extension_is_priced_by_its_own_prompts(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.25))
    whole, inputs = planned(toy, prompts=("a", "b", "c", "d"))
    segmenter = load_segmenter(inputs.request.spec.model, inputs.request.spec.source.bands)
    added = make_plan(inputs, segmenter, prompts=prompts_of("e"), cluster=ClusterSpec(workers=2))
    scoring = [plan.seconds - plan.bytes_to_read / 40e6 / 2 for plan in (whole, added)]
    assert scoring == pytest.approx([whole.windows * 2.0 / 2, whole.windows * 1.25 / 2])
    assert (added.prompts, added.windows, added.bytes_to_read) == (1, whole.windows, whole.bytes_to_read)
    shards = [plan.disk - 20_000 * plan.chunks for plan in (whole, added)]  # beside a part and a receipt of each chunk
    assert shards[0] == pytest.approx(4 * shards[1], rel=1e-4)
    assert added.files == added.chunks * (2 + 2)  # part, receipt, mask and score
    assert added.memory.per_chunk < whole.memory.per_chunk


def test_printed_plan_says_what_a_further_prompt_adds(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.004))
    plan, _ = planned(toy, prompts=("a", "b"))
    rows = {label: (value, remark) for label, value, remark in plan.rows()}
    assert rows["prompts"] == ("2", "each further prompt adds 0.4 % (measured)")
    told = plan.as_dict()
    assert (told["seconds_per_window"], told["seconds_per_prompt"]) == pytest.approx((1.008, 0.004))
    assert told["prompt_share"] == pytest.approx(0.004 / 1.008)


def test_measured_plan_grows_with_prompts_and_names_no_cache(toy: Path) -> None:
    plan, _ = planned(toy)
    assert plan.seconds_per_window >= 2 * plan.seconds_per_prompt > 0
    assert 0 < plan.prompt_share < 1
    assert (plan.features, plan.features_kept) == (0, 0)
    assert "feature cache" not in {label for label, _, _ in plan.rows()}


CACHE = "[cache]\nfeatures = true\n"


def test_kept_features_are_counted_as_disk_and_save_windows_that_chunks_share(toy: Path) -> None:
    without, _ = planned(toy, chunk_px=64)
    with_them, _ = planned(toy, chunk_px=64, extra=CACHE)
    window = 64 * 64 * 4
    assert with_them.features == pytest.approx(with_them.windows_distinct * window, rel=0.05)
    assert with_them.disk == without.disk + with_them.features
    rows = {label: (value, remark) for label, value, remark in with_them.rows()}
    assert rows["feature cache"][0] == f"{with_them.features / 1e6:,.1f} MB"
    assert with_them.memory.per_chunk >= without.memory.per_chunk


def test_time_with_kept_features_is_that_of_each_window_encoded_once(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.0, keep_s=0.5, load_s=0.125, feature_bytes=1000))
    plan, _ = planned(toy, kind="local:4", chunk_px=64, extra=CACHE)
    twice = plan.windows - plan.windows_distinct
    assert twice > 0
    scoring = plan.seconds - plan.bytes_to_read / 40e6 / 4
    assert scoring == pytest.approx((plan.windows_distinct * 1.5 + twice * 0.125) / 4)


def test_a_limit_of_the_cache_is_all_that_is_planned_for_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.0, feature_bytes=1000))
    plan, _ = planned(toy, chunk_px=64, extra=f"{CACHE}features_gb = 5.5e-6")
    assert plan.features == 5000


def test_a_cache_that_does_not_fit_is_refused_with_the_setting_that_does(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.0, feature_bytes=10**8))
    plan, _ = planned(toy, extra=f"{CACHE}[limits]\ndisk_gb = 0.1")
    with pytest.raises(ResourceError, match=r"plan-too-big.*on disk.*cache\.features = false"):
        plan.check()


def test_a_cache_for_a_segmenter_that_cannot_keep_features_is_refused_by_the_plan(toy: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.features"):
        planned(toy, model="spectral", prompts=("water",), extra=CACHE)


def test_features_that_are_there_are_not_planned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy(tmp_path, dates=1, size=200)
    (tmp_path / "pipeline.toml").write_text(toy_pipeline(size=200, prompts=("a",), extra=CACHE))
    request = load_pipeline(tmp_path / "pipeline.toml")
    assert start_run(request, tmp_path / "run", executor="serial").complete
    count, _ = kept_features(Store(tmp_path / "run"))
    fixed_price(monkeypatch, Price(0.0, 1.0, 0.0, load_s=0.25, feature_bytes=1000))
    inputs = make_inputs_of(request)
    segmenter: Segmenter = load_segmenter(request.spec.model, request.spec.source.bands)
    plan = make_plan(inputs, segmenter, prompts=prompts_of("b"), cluster=ClusterSpec(kind="serial"), out=tmp_path / "run")
    assert (plan.features_kept, plan.windows_distinct - count) == (count, plan.features // 1000)
    assert count > 10
    assert plan.seconds - plan.bytes_to_read / 40e6 == pytest.approx(
        (plan.windows_distinct - count) * 1.0 + (plan.windows - plan.windows_distinct + count) * 0.25
    )
    assert any("windows are there already" in remark for _, _, remark in plan.rows())


@pytest.mark.parametrize(
    ("bbox", "crs"),
    [
        ((11.0, 46.0, 11.5, 46.4), "auto"),
        ((179.6, -17.2, -179.7, -16.6), "auto"),
        ((2.8, 42.3, 2.9, 42.4), "EPSG:4326"),
        ((-30.0, 86.0, 40.0, 88.0), "auto"),
        ((-60.0, -81.0, -50.0, -80.5), "auto"),
    ],
)
def test_the_halo_covers_every_window_that_touches_the_region(bbox: tuple[float, ...], crs: str) -> None:
    region = region_from_bbox("r", bbox, *PERIOD)
    resolution = 0.001 if crs == "EPSG:4326" else 200.0
    grid, on_grid = make_grid(region, crs=crs, resolution=resolution, chunk_px=64, window_px=32, overlap=0.25)
    halo = halo_region(region, grid, on_grid)
    assert all(part.bounds[0] >= -180 and part.bounds[2] <= 180 for part in halo.parts)
    back = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    random = np.random.default_rng(3)
    whole = MultiPolygon(halo.parts).buffer(1e-9)
    checked = 0
    for row, col in zip(
        random.integers(grid.rows.start, grid.rows.stop, 400), random.integers(grid.cols.start, grid.cols.stop, 400), strict=True
    ):
        if not on_grid.polygons.contains(Point(col + 0.5, row + 0.5)):
            continue
        dy, dx = random.uniform(-grid.window_px, grid.window_px, 2)
        lon, lat = back.transform((col + 0.5 + dx) * resolution, -(row + 0.5 + dy) * resolution)
        assert whole.contains(Point(lon, lat)), (lon, lat)
        checked += 1
    assert checked > 100


def test_a_request_survives_its_own_file(toy: Path) -> None:
    request = load_pipeline(toy / "pipeline.toml")
    again = request_from_json(request.to_json(), where="test")
    assert again.to_json() == request.to_json()
    assert again.digest == request.digest
    assert isinstance(again, Request)
