"""Planning a million chunks: seconds and peak memory of the plan, no pixel read.

python benchmarks/planning.py --chunks 1000000
"""

from __future__ import annotations

import argparse
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import machine

from eo_batch.core.spec import parse_pipeline
from eo_batch.models.registry import load_segmenter
from eo_batch.run.cost.plan import make_plan
from eo_batch.run.manifest import make_inputs
from eo_batch.run.request import Request
from eo_batch.sources.catalog import find_catalog

PIPELINE = """
name = "planning"
[region]
bbox = [8.0, 44.0, 17.0, 51.0]
start = "2024-06-01"
end = "2024-07-01"
[source]
catalog = "earth-search"
collections = ["sentinel-2-l2a"]
bands = ["green", "red", "nir", "swir16"]
[grid]
crs = "EPSG:32632"
resolution = 10
chunk_px = {chunk_px}
[time]
step = "all"
[[prompts]]
text = "water"
[limits]
disk_gb = 1000000
memory_gb = 1000
"""


def documents(count: int, host: str) -> list[dict[str, Any]]:
    """STAC items of scenes of 1 degree by 1 degree that cover the region in several layers."""
    out = []
    for number in range(count):
        west, south = 8 + number % 9, 44 + number // 9 % 7
        ring = [[west, south], [west + 1, south], [west + 1, south + 1], [west, south + 1], [west, south]]
        assets = {
            band: {"href": f"https://{host}/{number}/{band}.tif", "bands": [{"eo:common_name": band, "nodata": 0}]}
            for band in ("green", "red", "nir", "swir16")
        }
        out.append(
            {
                "type": "Feature",
                "stac_version": "1.1.0",
                "id": f"scene-{number:06d}",
                "collection": "sentinel-2-l2a",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "bbox": [west, south, west + 1, south + 1],
                "properties": {"datetime": datetime(2024, 6, 1 + number % 28, 10, tzinfo=UTC).isoformat()},
                "links": [],
                "assets": assets,
            }
        )
    return sorted(out, key=lambda d: (d["properties"]["datetime"], d["id"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--scenes", type=int, default=2_000)
    chosen = parser.parse_args()
    print(machine())
    side = 70_000 * 78_000  # pixels of the region's bounding box, roughly
    chunk_px = max(64, round((side / chosen.chunks) ** 0.5))
    with TemporaryDirectory() as folder:
        spec = parse_pipeline(PIPELINE.format(chunk_px=chunk_px).encode(), where="planning.toml")
        from eo_batch.core.region import region_from_bbox

        assert spec.region.bbox is not None
        catalog, found = find_catalog("earth-search", Path(folder))
        request = Request(spec, catalog, region_from_bbox(spec.name, spec.region.bbox, spec.start, spec.end), found)
        segmenter = load_segmenter(spec.model, spec.source.bands)
        items = documents(chosen.scenes, catalog.asset_hosts[0])
        start = time.perf_counter()
        plan = make_plan(make_inputs(request, items), segmenter, out=Path(folder))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    for label, value, remark in plan.rows():
        print(f"  {label:12} {value:>24}   {remark}")
    print(f"planned {plan.chunks:,} chunks over {plan.scenes:,} scenes in {seconds:.1f} s, peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()
