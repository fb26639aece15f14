"""What the `spectral` segmenter knows: concepts made of thresholds on published indices, and the words for them.

A table, not a program: `docs/reference/spectral.md` is written from it. Thresholds come from the literature or are argued
in `why`; none is fitted to a scene.
"""

from __future__ import annotations

from dataclasses import dataclass

from eo_batch.models.spectral_indices import ALTERNATIVES, FLOOR, INDICES

LOGIT_AT_MARGIN = 2.0
"""Logit at one margin beyond a threshold: score 0.88. At the threshold the logit is 0 and the score 0.5."""


@dataclass(frozen=True)
class Condition:
    """Logit = 2 x (index - threshold) / margin, or its negative where the index must lie below.

    Parameters
    ----------
    index : name of an `Index`.
    side : "above" or "below" the threshold.
    threshold : value of the index at which the score is 0.5.
    margin : distance from the threshold at which the score is 0.88.
    why : where threshold and margin come from.
    """

    index: str
    side: str
    threshold: float
    margin: float
    why: str


@dataclass(frozen=True)
class Rule:
    """Conditions that must hold together: the logit is the smallest of theirs (Zadeh's fuzzy AND)."""

    conditions: tuple[Condition, ...]

    @property
    def bands(self) -> tuple[str, ...]:
        """Common names of the bands it needs, each once, in order of first use."""
        return tuple(dict.fromkeys(band for condition in self.conditions for band in INDICES[condition.index].bands))


@dataclass(frozen=True)
class Concept:
    """Something that reflectance alone can tell.

    Parameters
    ----------
    name : its own word.
    synonyms : other words that mean the same.
    narrower : words that mean less; they are answered with the whole concept, and `explain` says so.
    rules : alternatives in order of preference; the first whose bands are there is used.
    limits : what it is known to confuse.
    """

    name: str
    synonyms: tuple[str, ...]
    narrower: tuple[str, ...]
    rules: tuple[Rule, ...]
    limits: str


_SOBRINO = "Sobrino, Jimenez-Munoz & Paolini (2004), Remote Sensing of Environment 90, 434-440"
_HALL = "Hall, Riggs & Salomonson (1995)"
_FMASK = "Zhu & Woodcock (2012)"
_DARK_NIR = Condition(
    "nir",
    "below",
    0.11,
    0.04,
    f"water is darker in the near infrared, snow and cloud are brighter: {_HALL}; {_FMASK}, equation 5",
)
_NDWI = Condition("NDWI", "above", 0.0, 0.1, "McFeeters (1996): water is positive, soil and plants are not")
_NO_PLANTS = Condition("NDVI", "below", 0.2, 0.1, f"bare ground lies below 0.2: {_SOBRINO}")
_CHARCOAL = Condition(
    "BAI distance",
    "below",
    0.1,
    0.05,
    "within 0.1 reflectance of charcoal, BAI above 100: Chuvieco et al. (2002); beyond, mixed pixels",
)
_NO_WATER = Condition("NDWI", "below", 0.0, 0.1, "water is as dark as charcoal, and positive: McFeeters (1996)")
_BRIGHT = Condition(
    "red", "above", 0.16, 0.09, "middle of 0.07 (no cloud) and 0.25 (cloud), the two limits of Sen2Cor's brightness test on red"
)
_WHITE = Condition("whiteness", "below", 0.7, 0.2, f"{_FMASK}, equation 2")
_HAZE = Condition("HOT", "above", 0.0, 0.02, f"{_FMASK}, equation 3")
_NO_ICE = Condition("NDSI", "below", 0.8, 0.1, f"{_FMASK}, equation 1")

CONCEPTS: tuple[Concept, ...] = (
    Concept(
        name="water",
        synonyms=("open water", "surface water", "water body", "waterbody", "inland water"),
        narrower=(
            *("river", "lake", "pond", "pool", "reservoir", "sea", "ocean", "stream", "canal", "wetland"),
            *("flood", "flooding", "flooded area", "flooded land", "flood water", "floodwater"),
        ),
        rules=(
            Rule((_NDWI, Condition("MNDWI", "above", 0.0, 0.1, "Xu (2006): water is positive, built-up land is not"), _DARK_NIR)),
            Rule((_NDWI, _DARK_NIR)),
        ),
        limits="Misses water under plants, very turbid water and shores; without swir16, dark roofs may be found. "
        "Some cloud shadow on wet or dark ground is found.",
    ),
    Concept(
        name="vegetation",
        synonyms=("green vegetation", "plant", "greenery", "vegetated area", "vegetated land", "plant cover"),
        narrower=(
            *("tree", "forest", "woodland", "wood", "shrub", "scrub", "orchard", "vineyard", "park"),
            *("crop", "cropland", "farmland", "agriculture", "field", "grass", "grassland", "meadow", "pasture"),
        ),
        rules=(Rule((Condition("NDVI", "above", 0.35, 0.15, f"middle of bare ground (0.2) and full cover (0.5): {_SOBRINO}"),)),),
        limits="Dry grass and leafless trees are not found. Plants under thin cloud still are: mask clouds.",
    ),
    Concept(
        name="bare soil",
        synonyms=("bare ground", "bare land", "bare earth", "barren land", "soil"),
        narrower=("sand", "beach", "dune", "desert", "ploughed field", "fallow", "fallow land", "quarry", "rock", "bare rock"),
        rules=(
            Rule(
                (
                    Condition("BSI", "above", 0.0, 0.05, "swir16 and red outweigh nir and blue on soil: Rikimaru et al. (2002)"),
                    _NO_PLANTS,
                )
            ),
        ),
        limits="Roofs, roads and burnt ground can look the same.",
    ),
    Concept(
        name="built-up",
        synonyms=("built up area", "built up land", "built area", "urban", "urban area", "urban land"),
        narrower=("building", "house", "roof", "settlement", "city", "town", "village", "road", "pavement", "impervious surface"),
        rules=(
            Rule(
                (
                    Condition("NDBI", "above", 0.0, 0.1, "Zha et al. (2003): built-up land is positive"),
                    _NO_PLANTS,
                    Condition("MNDWI", "below", 0.0, 0.1, "Xu (2008), Int. J. Remote Sensing 29(14): built-up land, not water"),
                )
            ),
        ),
        limits="Bare and burnt ground is found too: indices cannot tell it from roofs. Bright metal roofs are missed.",
    ),
    Concept(
        name="burnt ground",
        synonyms=(
            *("burnt", "burned", "burnt area", "burned area", "burnt land", "burned land", "burned ground"),
            *("burn scar", "fire scar", "wildfire scar", "burned scar", "burnt scar"),
        ),
        narrower=("wildfire", "fire", "burnt forest", "burned forest", "charcoal"),
        rules=(
            Rule(
                (
                    _CHARCOAL,
                    _NO_WATER,
                    Condition(
                        "NBR",
                        "below",
                        0.0,
                        0.1,
                        "swir22 above nir; changes within 0.1 count as unburnt: Key & Benson (2006)",
                    ),
                )
            ),
            Rule((_CHARCOAL, _NO_WATER)),
        ),
        limits="Finds dark, fresh burns; shadow, dark soil and peat too. Old burns are missed: two dates would be better.",
    ),
    Concept(
        name="snow",
        synonyms=("snow cover", "snow and ice", "snow or ice"),
        narrower=("ice", "glacier", "firn", "snowfield"),
        rules=(
            Rule(
                (
                    Condition("NDSI", "above", 0.4, 0.1, f"{_HALL}"),
                    Condition("nir", "above", 0.11, 0.04, f"water is darker: {_HALL}"),
                    Condition("swir16", "below", 0.25, 0.1, "ice cloud is brighter: MODIS snow user guide 6 (Riggs et al. 2015)"),
                    Condition("green", "above", 0.1, 0.04, "dark targets are not snow: Klein, Hall & Riggs (1998)"),
                )
            ),
        ),
        limits="Ice cloud can have the same spectrum: mask clouds. Snow under trees is missed.",
    ),
    Concept(
        name="cloud",
        synonyms=("cloudy", "cloud cover", "clouded area"),
        narrower=("thick cloud", "haze", "fog"),
        rules=(
            Rule((_BRIGHT, _WHITE, _HAZE, _NO_ICE)),
            Rule((_BRIGHT, _WHITE, _HAZE)),
        ),
        limits="Snow, salt, white roofs and foam are found too; thin cirrus is missed.",
    ),
)


def reference_page() -> str:
    """The text of docs/reference/spectral.md."""
    lines = [
        "# Concepts of the `spectral` segmenter",
        "",
        "Written from `eo_batch/models/spectral_concepts.py` and held to it by a test; print it with",
        "`python -c \"from eo_batch.models.spectral_concepts import reference_page; print(reference_page(), end='')\"`.",
        "",
        "A prompt is matched to a concept by its words: case, hyphens, articles and plurals do not matter. The first rule whose",
        "bands are in `source.bands` answers. A rule's logit is the smallest of its conditions' logits (fuzzy AND, Zadeh 1965):",
        "",
        f"    logit = {LOGIT_AT_MARGIN:g} x (index - threshold) / margin        (negated where the index must lie below)",
        "",
        "So the score is 0.5 at the threshold, 0.88 one margin inside, 0.12 one margin outside. Margins are the width over which",
        "pixels mix; they shape the score, not the mask at threshold 0.5. Thresholds come from the sources named; none is fitted",
        "to a scene. Band values are reflectance (0..1).",
        f"Values below {FLOOR:g} (one count of Sentinel-2) are raised to it first: no ratio divides by zero or leaves -1..1.",
        "",
        "Stand-ins: "
        + "; ".join(f"`{band}` may be {' or '.join(f'`{s}`' for s in some)}" for band, some in ALTERNATIVES.items())
        + ".",
        "",
        "## Indices",
        "",
        "| index | formula | source |",
        "|---|---|---|",
        *(f"| {index.name} | `{index.formula}` | {index.source} |" for index in INDICES.values()),
    ]
    for concept in CONCEPTS:
        lines += ["", f"## {concept.name}", "", f"Same: {', '.join(concept.synonyms)}.", ""]
        lines += [f"Answered with all {concept.name}: {', '.join(concept.narrower)}.", "", f"Limits: {concept.limits}"]
        for number, rule in enumerate(concept.rules, 1):
            lines += ["", f"Rule {number}, bands {', '.join(f'`{band}`' for band in rule.bands)}:", ""]
            lines += ["| condition | margin | from |", "|---|---|---|"]
            lines += [f"| {c.index} {c.side} {c.threshold:g} | {c.margin:g} | {c.why} |" for c in rule.conditions]
    return "\n".join(lines) + "\n"
