"""Where a run is done, where nothing was observed, and where it failed: a small map of chunks for each time step."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eo_batch.run.told.report import STATES, RunFacts, index_of
from eo_batch.view.report.page import COLOURS, legend, safe, section

DRAWN = 4000
"""So many chunks are drawn one by one, with what is known of each; more become a picture."""
SHOWN_STEPS = 24
"""Maps that are shown; of more time steps, the ones with most trouble."""
CELL_PX = 56
"""Widest square of a chunk."""
SIDE_PX = 1200
"""Longest side of a picture of chunks: a larger grid is thinned, and trouble is what stays."""


def map_section(facts: RunFacts) -> str:
    """Maps of all time steps, or of those with most trouble."""
    states, labels = facts.states, facts.manifest.get("steps", [])
    if not states.size:
        return ""
    order = _worst_first(states)
    shown = sorted(order[:SHOWN_STEPS])
    hidden = len(order) - len(shown)
    told: dict[tuple[int, int, int] | None, str] = {
        row.index: f"{row.work.key}: {row.status}, {row.work.seconds:.1f} s" for row in facts.chunks
    }
    told |= {index_of(failure.key): f"{failure.key}: {failure.code}" for failure in facts.status.failures}
    many = states.size > DRAWN
    figures = []
    for step in shown:
        picture = _as_image(states[step], labels[step]) if many else _as_svg(states[step], step, labels[step], told)
        figures.append(f"<figure>{picture}<figcaption>{safe(labels[step])}: {_counts(states[step])}</figcaption></figure>")
    note = f'<p class="note">{hidden:,} more time steps have less trouble than these.</p>' if hidden else ""
    colours = [*((name, COLOURS[name]) for name in ("done", "no observation", "failed")), ("to do", "var(--todo)")]
    css = "maps one" if len(shown) == 1 else "maps"
    return section("Map of chunks", legend(colours), f'<div class="{css}">{"".join(figures)}</div>', note)


def _worst_first(states: NDArray[np.uint8]) -> list[int]:
    failed, missing = (states == STATES.index("failed")).sum(axis=(1, 2)), (states == STATES.index("to do")).sum(axis=(1, 2))
    return sorted(range(len(states)), key=lambda step: (-failed[step], -missing[step], step))


def _counts(states: NDArray[np.uint8]) -> str:
    found = np.bincount(states.ravel(), minlength=len(STATES))
    return ", ".join(
        f"{found[STATES.index(name)]:,} {name}"
        for name in ("done", "no observation", "failed", "to do")
        if found[STATES.index(name)]
    )


def _as_svg(states: NDArray[np.uint8], step: int, label: str, told: Mapping[tuple[int, int, int] | None, str]) -> str:
    """Every chunk as a square that says what it is."""
    ny, nx = states.shape
    cells = []
    for iy in range(ny):
        for ix in range(nx):
            name = STATES[states[iy, ix]]
            fill = "var(--todo)" if name == "to do" else COLOURS[name]
            title = told.get((step, iy, ix), f"t{step:04d}/y{iy:04d}_x{ix:04d}: {name}")
            cross = ""
            if name == "failed":
                cross = f'<path d="M{ix + 0.28} {iy + 0.28}l.44 .44m0-.44l-.44 .44" stroke="#fff" stroke-width=".1"/>'
            square = f'<rect x="{ix + 0.03}" y="{iy + 0.03}" width=".94" height=".94" rx=".08" fill="{fill}"/>'
            cells.append(f"<g><title>{safe(title)}</title>{square}{cross}</g>")
    alt = safe(f"Chunks of time step {label}: {_counts(states)}")
    widest = max(200, CELL_PX * nx)
    return f'<svg viewBox="0 0 {nx} {ny}" style="max-width:{widest}px" role="img" aria-label="{alt}">{"".join(cells)}</svg>'


def _as_image(states: NDArray[np.uint8], label: str) -> str:
    """Chunks as pixels; where several share one, the one with most trouble is seen."""
    trouble = np.array([2, 0, 1, 3], np.uint8)[states]  # to do, done, no observation, failed
    thin = -(-max(states.shape) // SIDE_PX)
    if thin > 1:
        ny, nx = (-(-side // thin) for side in states.shape)
        padded = np.zeros((ny * thin, nx * thin), np.uint8)
        padded[: states.shape[0], : states.shape[1]] = trouble
        trouble = padded.reshape(ny, thin, nx, thin).max(axis=(1, 3))
    picture = Image.fromarray(trouble, mode="P")
    colours = [COLOURS[name] for name in ("done", "no observation", "to do", "failed")]
    picture.putpalette([int(colour[at : at + 2], 16) for colour in colours for at in (1, 3, 5)])
    thinned = f"; each pixel is {thin} x {thin} chunks, the worst is shown" if thin > 1 else ""
    alt = safe(f"Chunks of time step {label}: {_counts(states)}{thinned}")
    return f'<img class="cells" src="{png_address(picture)}" alt="{alt}">'


def png_address(picture: Image.Image) -> str:
    """The picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
