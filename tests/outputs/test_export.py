"""Exports: real COGs and a GeoPackage that say the same as the run."""

from __future__ import annotations

import re
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from outputs.small_run import make_grid, make_prompts, make_steps, run_footprints
from rio_cogeo import cog_validate

from eo_batch.core.errors import IntegrityError, StoreError
from eo_batch.core.grid import Grid
from eo_batch.core.prompts import Prompt, PromptSet
from eo_batch.outputs.cube import create_cube, encode_shard, shard_path
from eo_batch.outputs.export import export_run
from eo_batch.outputs.store import Store


def small_run(store: Store, *, prompts: PromptSet | None = None, density: float = 0.3) -> tuple[Grid, NDArray[np.uint8]]:
    grid = make_grid((700, 1100), 512)
    prompts = prompts or make_prompts(0.0, 0.0)
    rng = np.random.default_rng(3)
    masks = np.kron(rng.random((len(prompts), 2, 70, 110)) < density, np.ones((10, 10))).astype(np.uint8)
    masks[:, :, :40, :30] = 254
    create_cube(store, grid=grid, prompts=prompts, steps=make_steps(2), scores=False, attributes={})
    for t in range(2):
        for chunk in grid.chunks(t):
            for p in range(len(prompts)):
                part = masks[p, t, chunk.rows.within(grid.rows), chunk.cols.within(grid.cols)]
                store.put(shard_path("mask", p, chunk), encode_shard(part, grid))
    run_footprints(store, masks, grid=grid, prompts=prompts)
    return grid, masks


def test_each_prompt_and_time_is_a_valid_cog_with_the_pixels_of_the_mask(store: Store, tmp_path: Path) -> None:
    grid, masks = small_run(store)
    files = export_run(store, tmp_path / "out")
    assert len(files) == 5
    for index, path in enumerate(files[:4]):
        valid, errors, warnings = cog_validate(str(path))
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(path) as raster:
            np.testing.assert_array_equal(raster.read(1), masks[index // 2, index % 2])
            assert raster.transform.almost_equals(grid.transform)
            assert raster.crs.to_epsg() == 32631
            assert raster.nodata == 255
            assert raster.tags()["PROMPT"] == f"thing {index // 2}"
            assert raster.tags()["STEP"] == f"2020-0{index % 2 + 1}"
            assert raster.colormap(1)[1] != raster.colormap(1)[0]


def test_the_geopackage_holds_all_footprints(store: Store, tmp_path: Path) -> None:
    small_run(store)
    package = geopandas.read_file(export_run(store, tmp_path / "out")[-1])
    parquet = geopandas.read_parquet(store.named("footprints.parquet"))
    assert package.crs == parquet.crs
    assert package["id"].tolist() == parquet["id"].tolist()
    assert package.geometry.geom_equals(parquet.geometry).all()
    assert package["area_m2"].tolist() == parquet["area_m2"].tolist()
    assert package["item_ids"].tolist() == [",".join(ids) for ids in parquet["item_ids"]]


def test_a_run_without_objects_can_be_exported(store: Store, tmp_path: Path) -> None:
    small_run(store, density=0.0)
    files = export_run(Path(store.where), tmp_path / "out")
    assert len(geopandas.read_file(files[-1])) == 0


def test_only_finished_files_are_left(store: Store, tmp_path: Path) -> None:
    small_run(store)
    files = export_run(store, tmp_path / "out")
    assert sorted((tmp_path / "out").iterdir()) == sorted(map(Path, files))
    assert export_run(store, tmp_path / "out") == files
    assert sorted((tmp_path / "out").iterdir()) == sorted(map(Path, files))


def test_prompts_never_become_paths(store: Store, tmp_path: Path) -> None:
    small_run(store, prompts=PromptSet((Prompt("../../../etc/x"), Prompt("a/b\\c"))))
    for path in map(Path, export_run(store, tmp_path / "out")):
        assert path.parent == tmp_path / "out"
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", path.name)


def test_progress_names_every_file(store: Store, tmp_path: Path) -> None:
    small_run(store)
    seen: list[tuple[int, int, str]] = []
    files = export_run(store, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [(i, 5, Path(path).name) for i, path in enumerate(files)]


def test_an_unfinished_run_is_refused(store: Store, tmp_path: Path) -> None:
    create_cube(store, grid=make_grid((9, 9), 64), prompts=make_prompts(0.0), steps=make_steps(), scores=False, attributes={})
    with pytest.raises(IntegrityError) as caught:
        export_run(store, tmp_path / "out")
    assert caught.value.code == "shard-missing"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    small_run(store)
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(StoreError) as caught:
        export_run(store, tmp_path / "out")
    assert caught.value.code == "store-denied"
    assert str(tmp_path / "out") in str(caught.value)
