"""Which segmenters there are: the ones in this package, and those that installed packages add by entry point.

An installed package adds one with an entry point of group `eo_batch.segmenters` that names a function
`(ModelSpec, bands) -> Segmenter`. It cannot replace a built-in one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import MappingProxyType

from eo_batch.core.errors import ConfigError, EoBatchError, ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models.segmenter import Segmenter
from eo_batch.models.weights import SUFFIX, are_present, weights_folder
from eo_batch.models.weights.published import fetch_command

GROUP = "eo_batch.segmenters"
"""Entry point group in which installed packages offer segmenters."""

MOST_THREADS = 256
"""Of one call."""
Factory = Callable[[ModelSpec, Sequence[str]], Segmenter]


@dataclass(frozen=True)
class SegmenterEntry:
    """One line of `eo-batch models list`.

    Parameters
    ----------
    name : for `[model] name`.
    summary : one line for people.
    licence : of the weights; "none needed" where there are none.
    origin : "built in" or the distribution that brings it.
    target : `module:function` of its factory.
    needs : importable modules that it cannot do without.
    extra : extra of eo-batch that brings those modules, or "".
    weights : names of the published weights that it answers with; none where it needs none.
    has_threads : its options `threads` and `device` say how many threads one call takes on a CPU, and what it computes on.
    needs_own_weights : there are none to fetch: users bring theirs, by option or as NAME/NAME.safetensors in the weights folder.
    """

    name: str
    summary: str
    licence: str
    origin: str
    target: str
    needs: tuple[str, ...] = ()
    extra: str = ""
    weights: tuple[str, ...] = ()
    has_threads: bool = False
    needs_own_weights: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that are needed and not installed."""
        return tuple(module for module in self.needs if find_spec(module) is None)

    @property
    def is_available(self) -> bool:
        """Nothing that it needs is missing."""
        return not self.missing

    @property
    def advice(self) -> str:
        """What to do to make it available; empty where it is."""
        if self.is_available:
            return ""
        return f'pip install "eo-batch[{self.extra}]"' if self.extra else f"pip install {' '.join(self.missing)}"

    @property
    def state(self) -> str:
        """ "ready", or what is missing and the command that brings it; files of weights are looked for, not read."""
        if not self.is_available:
            return f"needs libraries: {self.advice}"
        if self.needs_own_weights and not (weights_folder() / self.name / f"{self.name}{SUFFIX}").is_file():
            return f"weights missing: none to fetch, convert a checkpoint (docs/guides/{self.name}.md)"
        missing = [fetch_command(name) for name in self.weights if not are_present(name)]
        return f"weights missing: {', '.join(missing)}" if missing else "ready"


BUILT_IN: Mapping[str, SegmenterEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            SegmenterEntry(
                "spectral",
                "published spectral indices: water, vegetation, bare soil, built-up, burnt ground, snow, cloud",
                "none needed",
                "built in",
                "eo_batch.models.spectral:load_spectral",
            ),
            SegmenterEntry(
                "clipseg",
                "a small network that answers words about colour pictures, coarsely: the one to begin with (arXiv 2112.10003)",
                "Apache-2.0",
                "built in",
                "eo_batch.models.clipseg.segmenter:load_clipseg",
                ("torch", "transformers", "tokenizers", "safetensors"),
                "models",
                ("clipseg",),
                has_threads=True,
            ),
            SegmenterEntry(
                "remotesam",
                "a network that answers words and sentences about colour pictures (arXiv 2505.18022)",
                "not stated upstream",
                "built in",
                "eo_batch.models.remotesam.segmenter:load_remotesam",
                ("torch", "transformers", "safetensors"),
                "models",
                ("remotesam",),
                has_threads=True,
            ),
            SegmenterEntry(
                "rsrefseg",
                "a network that draws what a sentence refers to; one look at a window serves all prompts (arXiv 2501.06809)",
                "Apache-2.0 (code and foundation weights); no trained weights are published",
                "built in",
                "eo_batch.models.rsrefseg.segmenter:load_rsrefseg",
                ("torch", "transformers", "tokenizers", "safetensors"),
                "models",
                has_threads=True,
                needs_own_weights=True,
            ),
            SegmenterEntry(
                "rsrefseg2",
                "its successor on SigLIP 2 and SAM 2.1, with published weights to convert; dearer per prompt (arXiv 2507.06231)",
                "Apache-2.0 (code and foundation weights); of the trained weights not checked",
                "built in",
                "eo_batch.models.rsrefseg2.segmenter:load_rsrefseg2",
                ("torch", "transformers", "tokenizers", "safetensors"),
                "models",
                has_threads=True,
                needs_own_weights=True,
            ),
            SegmenterEntry(
                "sam3",
                "SAM 3: every object that a short noun phrase names, with gated weights (arXiv 2511.16719)",
                "SAM License: custom terms, not open to everyone",
                "built in",
                "eo_batch.models.sam3.segmenter:load_sam3",
                ("torch", "transformers", "safetensors", "tokenizers"),
                "models",
                ("sam3",),
                has_threads=True,
            ),
            SegmenterEntry(
                "grounded-sam2",
                "Grounding DINO frames what words name, SAM 2 draws it (arXiv 2303.05499, 2408.00714)",
                "Apache-2.0",
                "built in",
                "eo_batch.models.grounded_sam2.segmenter:load_grounded_sam2",
                ("torch", "transformers", "safetensors", "tokenizers"),
                "models",
                ("grounding-dino", "sam2"),
                has_threads=True,
            ),
            SegmenterEntry(
                "window-mean",
                "for tests and benchmarks: knows nothing, shows every seam; any prompt",
                "none needed",
                "built in",
                "eo_batch.models.probe:load_window_mean",
            ),
        )
    }
)


def list_segmenters() -> list[SegmenterEntry]:
    """All segmenters, built-in ones first, then installed ones by name; nothing is imported for it."""
    return [*BUILT_IN.values(), *(entry for name, entry in sorted(_installed().items()) if name not in BUILT_IN)]


def has_device(model: ModelSpec) -> bool:
    """The segmenter can be told by options what it computes on, and with how many threads."""
    return any(entry.has_threads for entry in list_segmenters() if entry.name == model.name)


def with_threads(model: ModelSpec, threads: int) -> ModelSpec:
    """The table with `options.threads` for a segmenter that has this option, unless the table says it already.

    A run computes many chunks at once, one thread each; who waits for one answer wants all threads for it.
    """
    if not has_device(model) or "threads" in model.options:
        return model
    return model.model_copy(update={"options": {**model.options, "threads": min(threads, MOST_THREADS)}})


def with_device(model: ModelSpec, device: str) -> ModelSpec:
    """The table with `options.device` for a segmenter that has this option, unless the table names one already."""
    if not has_device(model) or model.options.get("device", "auto") != "auto":
        return model
    return model.model_copy(update={"options": {**model.options, "device": device}})


def load_segmenter(model: ModelSpec, bands: Sequence[str]) -> Segmenter:
    """The segmenter that `[model]` asks for, made for `bands` in this order.

    Raises
    ------
    ConfigError : `config-invalid`: unknown name, missing extra, a window size it cannot take; or what its factory raises.
    ModelError : `model-load`: an installed package's segmenter cannot be imported, fails, or is none.
    """
    known = {entry.name: entry for entry in list_segmenters()}
    entry = known.get(model.name)
    if entry is None:
        close = difflib.get_close_matches(model.name, known, n=1)
        hint = f'Did you mean "{close[0]}"? ' if close else ""
        names = ", ".join(known)
        raise ConfigError("config-invalid", f'unknown segmenter "{model.name}"', where="model.name", fix=f"{hint}Known: {names}.")
    if not entry.is_available:
        raise ConfigError(
            "config-invalid",
            f'segmenter "{entry.name}" needs {", ".join(entry.missing)}',
            where="model.name",
            why="not installed",
            fix=f"Run: {entry.advice}",
        )
    segmenter = _make(entry, model, bands)
    forced = segmenter.info.window_px
    if forced is not None and forced != model.window_px:
        raise ConfigError(
            "config-invalid",
            f'segmenter "{entry.name}" takes windows of {forced} px only, not {model.window_px}',
            where="model.window_px",
            fix=f"Set window_px = {forced}.",
        )
    return segmenter


def _make(entry: SegmenterEntry, model: ModelSpec, bands: Sequence[str]) -> Segmenter:
    module, _, name = entry.target.partition(":")
    if entry.origin == "built in":
        made: Segmenter = getattr(import_module(module), name)(model, tuple(bands))
        return made
    try:
        factory = import_module(module)
        for part in name.split("."):
            factory = getattr(factory, part)
        segmenter = factory(model, tuple(bands))  # type: ignore[operator]
    except EoBatchError:
        raise
    except Exception as error:  # foreign code: whatever it raises, the user must learn whose it is
        raise _broken(entry, f"{type(error).__name__}: {error}") from error
    if not isinstance(segmenter, Segmenter):
        raise _broken(entry, f"it made a {type(segmenter).__name__}, which is no Segmenter")
    return segmenter


def _broken(entry: SegmenterEntry, why: str) -> ModelError:
    return ModelError(
        "model-load",
        f'segmenter "{entry.name}" of the installed package "{entry.origin}" cannot be loaded',
        where="model.name",
        why=why,
        fix=f'Update or remove "{entry.origin}", or choose another segmenter: eo-batch models list.',
    )


def _installed() -> dict[str, SegmenterEntry]:
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _distribution(point)))
    return {
        point.name: SegmenterEntry(
            point.name, f"from the installed package {_distribution(point)}", "see the package", _distribution(point), point.value
        )
        for point in found
    }


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"
