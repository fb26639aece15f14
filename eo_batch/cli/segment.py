"""Command `segment`: prompts on one image, for people who have a picture and a question."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eo_batch.cli.progress import LINE_EVERY_S, Progress
from eo_batch.cli.report import DropInner, Json, Quiet, check_on_disk, command, epilog, plain, print_json, print_table, say

if TYPE_CHECKING:
    from eo_batch.core.spec import ModelSpec
    from eo_batch.products.rules import Box, TaskRules
    from eo_batch.run.images.answer import ImageAnswer
    from eo_batch.run.told.events import Event

ALL = "all"
OVERLAY = "overlay.png"
_CHOICES = ("masks", "detect", "ground", "classify", "count", "caption", ALL)

Image = Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or GeoTIFF.")]
Prompts = Annotated[list[str], typer.Option("--prompt", "-p", help="What to look for: a word or a sentence. Can be repeated.")]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", help=f"What to answer: {', '.join(_CHOICES)}. Can be repeated. Default: all.")
]
Model = Annotated[str, typer.Option(help="Who answers: a name of `eo-batch models list`.")]
Weights = Annotated[Path | None, typer.Option(help="Weights of the model, a .safetensors file, instead of fetched ones.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the model. Can be repeated.")
]
Fit = Annotated[
    str,
    typer.Option(
        help="How the model sees the image: whole (resized to the side it works at), windows (in its own pixels, blended), or "
        "auto (whole up to twice that side)."
    ),
]
WindowPx = Annotated[int | None, typer.Option(min=16, max=4096, help="Side of a window in pixels. Default: the model's.")]
Threshold = Annotated[float, typer.Option(help="Score above which a pixel counts as found, between 0 and 1.")]
Oriented = Annotated[bool, typer.Option("--oriented", help="Boxes turned with the objects.")]
MinPixels = Annotated[int, typer.Option(min=1, help="Objects of fewer pixels get no box and are not counted.")]
Contours = Annotated[
    str | None, typer.Option(help="Part touching objects along the outlines that a contour network finds: its name or folder.")
]
ContourThreshold = Annotated[float, typer.Option(help="Outlines likelier than this part objects.")]
Rules = Annotated[str, typer.Option(help="default, or upstream: RemoteSAM's published rules, quirk by quirk.")]
Regions = Annotated[int, typer.Option(help="Parts of the image that the caption tells of: 4, 9 or 0.")]
Seed = Annotated[int | None, typer.Option(help="Draw the wording of the caption. Default: always the same plain one.")]
Bands = Annotated[
    str, typer.Option(help='Names of the image\'s bands in their order, such as red,green,blue,nir; "-" leaves one out.')
]
Low = Annotated[float | None, typer.Option(help="Stored value that is black (or reflectance 0). For images that are not 8-bit.")]
High = Annotated[float | None, typer.Option(help="Stored value that is white (or reflectance 1).")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse images that declare more pixels, before anything is decoded.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the files. Default: IMAGE-segmented in the working folder.")]


def register(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    examples = (
        'eo-batch segment harbour.jpg --prompt ship --prompt "the ship near the pier"',
        "eo-batch segment scene.tif --model spectral --prompt water --bands blue,green,red,nir --low 0 --high 10000 --out answer",
        "eo-batch segment airport.png --prompt airplane --task detect --oriented --json",
    )
    app.command("segment", epilog=epilog(*examples))(segment)


@command
def segment(
    image: Image,
    prompt: Prompts,
    task: Tasks = None,
    model: Model = "remotesam",
    weights: Weights = None,
    option: Options = None,
    fit: Fit = "auto",
    window_px: WindowPx = None,
    threshold: Threshold = 0.5,
    oriented: Oriented = False,
    min_pixels: MinPixels = 1,
    drop_inner: DropInner = None,
    contours: Contours = None,
    contour_threshold: ContourThreshold = 0.25,
    rules: Rules = "default",
    regions: Regions = 4,
    seed: Seed = None,
    bands: Bands = "",
    low: Low = None,
    high: High = None,
    max_pixels: MaxPixels = 64_000_000,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find what prompts ask for in one image.

    Writes an overlay picture for people, masks (PNG, or GeoTIFF where the image is georeferenced), boxes (GeoParquet and
    GeoJSON where it is) and everything as `answer.json`; prints a table and a caption.
    """
    tasks = _tasks(task or [ALL])
    spec = _model_spec(model, weights, option or [], window_px)
    boxes = {"oriented": oriented, "min_pixels": min_pixels, "contour_threshold": contour_threshold}
    asked = _rules(rules, regions=regions, drop_inner=drop_inner, **boxes)
    names = [name.strip() for name in bands.split(",")] if bands else []
    folder = out if out is not None else Path(f"{image.stem}-segmented")
    _check_folder(folder, image)
    with Progress(as_json=False, quiet=quiet or json, unit="windows") as progress:
        progress.note("reading")
        from eo_batch.run.images.files import write_image_files
        from eo_batch.run.images.segment import segment_image

        answer = segment_image(
            image,
            prompt,
            model=spec,
            fit=fit,  # type: ignore[arg-type]
            threshold=threshold,
            rules=asked,
            contour=contours,
            bands=names,
            low=low,
            high=high,
            max_pixels=max_pixels,
            listener=_Teller(progress, quiet=quiet or json),
        )
        progress.note("writing")
        files = [_write_overlay(answer, folder, tasks, regions=regions, seed=seed)]
        files += write_image_files(answer, folder, tasks=tasks, regions=regions, seed=seed)
    if json:
        told = answer.as_dict(tasks, regions=regions, seed=seed)
        print_json({**told, "files": [str(file) for file in files]})
        return
    _print_answer(answer, tasks, regions=regions, seed=seed)
    _say_notes(answer, files, quiet=quiet)


class _Teller:
    """Shows events of one image: on the bar of a terminal; elsewhere what begins, and a line now and then."""

    def __init__(self, progress: Progress, *, quiet: bool) -> None:
        self._progress, self._quiet, self._last = progress, quiet, time.monotonic()

    def __call__(self, event: Event) -> None:
        if event.total:
            self._progress.count(event.done, event.total, event.text)
        else:
            self._progress.note(event.text)
        if self._quiet or sys.stderr.isatty() or event.kind != "window":
            return
        now = time.monotonic()
        if event.done == 0 or now - self._last >= LINE_EVERY_S:
            self._last = now
            say(event.text)


def _check_folder(folder: Path, image: Path) -> None:
    """Refuse a folder that cannot be written, or where the image itself would be, before anything is computed."""
    from eo_batch.core.errors import ConfigError, StoreError

    check_on_disk(folder)
    fix = "Give another folder with --out."
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    except OSError as error:
        raise StoreError("store-denied", "is no folder", where=str(folder)[:200], why=error.strerror or "", fix=fix) from None
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written" if there.is_dir() else "a file is where a folder must be"
        raise StoreError("store-denied", what, where=str(there), fix=fix)
    source, target = os.path.realpath(image), os.path.realpath(folder)
    if source == os.path.join(target, OVERLAY) or os.path.dirname(source) == os.path.join(target, "masks"):
        raise ConfigError("config-invalid", "the answer might be written over the image", where=str(image), fix=fix)


def _tasks(asked: list[str]) -> tuple[str, ...]:
    from eo_batch.core.errors import ConfigError

    for name in asked:
        if name not in _CHOICES:
            fix = f"Known: {', '.join(_CHOICES)}."
            raise ConfigError("config-invalid", f'unknown task "{name}"', where="--task", fix=fix)
    return tuple(name for name in _CHOICES if name != ALL and (name in asked or ALL in asked))


def _model_spec(name: str, weights: Path | None, options: list[str], window_px: int | None) -> ModelSpec:
    """The `[model]` table that the options of the command mean."""
    from eo_batch.core.errors import ConfigError
    from eo_batch.core.spec import ModelSpec, validate

    given: dict[str, Any] = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError("config-invalid", f'"{text}" is not KEY=VALUE', where="--option", fix="For example threads=2.")
        given[key] = _value(value)
    if weights is not None:
        given["weights"] = str(weights)
    table: dict[str, Any] = {"name": name, "batch": 1, "options": given}
    if window_px is not None:
        table["window_px"] = window_px
    made = validate(ModelSpec, table, where="--model")
    assert isinstance(made, ModelSpec)
    return made


def _value(text: str) -> str | int | float | bool:
    """A value as TOML would read it; else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _rules(name: str, *, regions: int, drop_inner: bool | None, contour_threshold: float, **boxes: Any) -> TaskRules:
    from dataclasses import replace

    from eo_batch.core.errors import ConfigError
    from eo_batch.products.rules import TaskRules

    known = {"default": TaskRules(), "upstream": TaskRules.upstream()}
    if name not in known:
        raise ConfigError("config-invalid", f'unknown rules "{name}"', where="--rules", fix=f"Known: {', '.join(known)}.")
    if regions not in (0, 4, 9):
        raise ConfigError("config-invalid", f"a caption tells of 4, 9 or 0 regions, not {regions}", where="--regions")
    if not 0 <= contour_threshold <= 1:
        raise ConfigError("config-invalid", f"{contour_threshold:g} is not between 0 and 1", where="--contour-threshold")
    made = known[name]
    if drop_inner is not None:
        boxes["drop_inner"] = drop_inner
    return replace(made, boxes=replace(made.boxes, contour_threshold=contour_threshold, **boxes))


def _write_overlay(answer: ImageAnswer, folder: Path, tasks: tuple[str, ...], *, regions: int, seed: int | None) -> Path:
    from eo_batch.outputs.store import Store
    from eo_batch.view.marks import png_bytes
    from eo_batch.view.overlay import overlay_of

    caption = answer.caption(regions=regions, seed=seed) if "caption" in tasks else ""
    shows_boxes = bool({"detect", "count", "caption"} & set(tasks))
    Store(folder).put(OVERLAY, png_bytes(overlay_of(answer, shows_boxes=shows_boxes, caption=caption)))
    return folder / OVERLAY


def _print_answer(answer: ImageAnswer, tasks: tuple[str, ...], *, regions: int, seed: int | None) -> None:
    """The table of prompts, then the class and the caption."""
    columns = [name for name in tasks if name in ("masks", "detect", "ground", "classify", "count")]
    header: list[str] = ["prompt"]
    rows: list[list[str]] = [[text] for text in answer.prompts.texts]
    for name in columns:
        titles, cells = _column(answer, name)
        header += titles
        rows = [row + cell for row, cell in zip(rows, cells, strict=True)]
    print_table([tuple(row) for row in rows], header=tuple(header))
    if "classify" in tasks:
        names = answer.best_class.names
        print(plain(f"class: {names[0]}" if names else "class: none of them"))
    if "caption" in tasks:
        print(plain(f"caption: {answer.caption(regions=regions, seed=seed)}"))


def _say_notes(answer: ImageAnswer, files: list[Path], *, quiet: bool) -> None:
    """What was done to the image and made of the prompts, and where the files are; quietly, warnings only."""
    for line in () if quiet else (*answer.notes, *answer.explanations):
        say(f"note: {line}")
    for line in answer.warnings:
        say(f"warning: {line}")
    for file in () if quiet else files:
        say(f"written: `{file}`")


def _column(answer: ImageAnswer, task: str) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns of a task, and their cells for each prompt."""
    texts = answer.prompts.texts
    if task == "masks":
        shares = [answer.found_share(index) for index in range(len(texts))]
        return ["found"], [["not observed" if share is None else f"{100 * share:.2f} %"] for share in shares]
    if task == "detect":
        best = [max((box.score for box in answer.boxes[text]), default=None) for text in texts]
        return ["best box"], [["-" if score is None else f"{score:.3f}"] for score in best]
    if task == "count":
        return ["objects"], [[f"{answer.counts[text]:,}"] for text in texts]
    if task == "ground":
        return ["place (x0 y0 x1 y1)"], [[_place(answer.places[text])] for text in texts]
    scores = [[f"{answer.labels.scores[text]:.3f}", "yes" if text in answer.labels.names else "no"] for text in texts]
    return ["label score", "present"], scores


def _place(box: Box | None) -> str:
    return "-" if box is None else " ".join(f"{value:.0f}" for value in box.bounds)
