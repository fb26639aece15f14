"""Whole toy runs through the command line, as tests of faults make them: refused, failed and mended, killed and resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commandline
from rundigest import file_digests
from servers.files import FileServer
from toy import toy_bbox

SIZE = 200
CHUNKS = 4
SLOW_CHUNKS = 25
BAD = "a1_green.tif"
"""The file that tests spoil; all four chunks need it."""
BBOX = "bbox = [{}, {}, {}, {}]".format(*toy_bbox(SIZE))
RESULTS = ("masks.zarr/", "parts/", "footprints.parquet")


def invoke(*arguments: object) -> tuple[int, str, str]:
    """`commandline.invoke`; text is checked for what must never be printed."""
    answer = commandline.invoke(*arguments)
    printed = answer[1] + answer[2]
    assert "Traceback" not in printed
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", printed), "a control character reached the terminal"
    return answer


def run(toy: Path, *more: object) -> tuple[int, str, str]:
    """The run of the pipeline in `toy` into its folder `run`, one chunk after the other."""
    return invoke("run", toy / "pipeline.toml", "--out", toy / "run", "--cluster", "serial", "--quiet", *more)


def resume(toy: Path, *more: object) -> tuple[int, str, str]:
    """Going on with the run of `toy`."""
    return invoke("resume", toy / "run", "--cluster", "serial", "--quiet", *more)


def spoil(toy: Path, old: str, new: str) -> None:
    """Change the pipeline."""
    text = (toy / "pipeline.toml").read_text()
    assert old in text
    (toy / "pipeline.toml").write_text(text.replace(old, new, 1))


def hostile(toy: Path, how: str, *, sound: int) -> None:
    """Have the pipeline ask the segmenter of the fixture `hostile_segmenter`, which answers `sound` times as it should."""
    spoil(toy, 'name = "window-mean"', 'name = "hostile"')
    spoil(toy, "[output]", f'[model.options]\nsound = {sound}\nspoil = "{how}"\n[output]')


def spoil_item(toy: Path, change: Callable[[dict[str, Any]], object], name: str = "a1") -> None:
    """Change an item of the catalog."""
    document = json.loads((toy / "catalog.json").read_text())
    change(next(item for item in document["features"] if item["id"] == name))
    (toy / "catalog.json").write_text(json.dumps(document))


def over_http(toy: Path, server: FileServer) -> None:
    """Have the pipeline read its catalog, and so its pixels, from `server`."""
    spoil(toy, "catalog.json", server.url("catalog.json"))


def name_catalog(toy: Path, url: str, *, kind: str = "static", **more: object) -> None:
    """Have the pipeline use a catalog file of its own that points at a server on loopback."""
    (toy / "catalogs").mkdir(exist_ok=True)
    fields = {"title": "there", "url": url, "kind": kind, "asset_hosts": ["127.0.0.1"], "allow_private": True, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
    (toy / "catalogs" / "there.toml").write_text("\n".join(lines) + "\n")
    spoil(toy, '"catalog.json"', '"there"')


def documents(toy: Path, server: FileServer) -> list[dict[str, Any]]:
    """Items of the toy with absolute addresses at `server`."""
    found = json.loads((toy / "catalog.json").read_text())["features"]
    for asset in (asset for item in found for asset in item["assets"].values()):
        asset["href"] = server.url(asset["href"])
    return list(found)


def results(out: Path) -> dict[str, str]:
    """Digests of masks, parts and footprints: what does not say where the pixels came from."""
    return {name: digest for name, digest in file_digests(out).items() if name.startswith(RESULTS)}


def told(toy: Path) -> dict[str, Any]:
    """What `status` says of the run of `toy`."""
    return dict(json.loads(invoke("status", toy / "run", "--json")[1]))


def refused(toy: Path, status: int, *parts: str) -> str:
    """The one line of a run that was refused before it began."""
    found, out, err = run(toy)
    assert (found, out, err.count("\n")) == (status, "", 1), err
    assert not (toy / "run").exists()
    for part in parts:
        assert part in err, err
    return err


def failed(outcome: tuple[int, str, str], toy: Path, *parts: str) -> list[str]:
    """Lines of a run that ended with 3: one for each failed chunk, each reason with all `parts`; nothing half-written is left."""
    status, _, err = outcome
    lines = [line for line in err.splitlines() if not line.startswith("warning: item ")]
    assert (status, bool(lines)) == (3, True), err
    codes = set()
    for line in lines:
        assert line.startswith("failure: chunk t0000/y000"), line
        _, is_repeated, code = line.partition(" failed, too: ")
        if is_repeated:  # its reason was told before
            assert code in codes, line
            continue
        codes.add(line.partition(" failed: ")[2].partition(":")[0])
        for part in parts:
            assert part in line, line
    assert not (toy / "run" / "COMPLETE.json").exists()
    assert not list((toy / "run").rglob("*.partial"))
    listed = told(toy)
    assert (listed["state"], listed["failed"]) == ("stopped", len(lines))
    assert listed["finished"] + listed["failed"] == listed["total"], "the other chunks were not computed"
    return lines


def finishes(toy: Path, golden: dict[str, str]) -> None:
    """Resuming ends with the bytes of an undisturbed run."""
    status, _, err = resume(toy)
    assert status == 0, err
    assert results(toy / "run") == golden
