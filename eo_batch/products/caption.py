"""Boxes become two kinds of sentences: what an image shows, and what each of its regions holds."""

from __future__ import annotations

import random as random_numbers
from collections.abc import Mapping, Sequence

from eo_batch.core.prompts import is_class_name
from eo_batch.products.rules import Box, CaptionRules

_WHOLE = (
    "In this {subject} we see {things}.",
    "The {subject} includes {things}.",
    "Visible in this {subject}: {things}.",
    "This {subject} features {things}.",
    "What the {subject} holds: {things}.",
)
_REGION = (
    "The {region} region contains {things}.",
    "Seen in the {region}: {things}.",
    "There {be} {things} in the {region}.",
    "The {region} region has {things}.",
    "{things} {be} observed in the {region}.",
    "In the {region}, {things} {be} present.",
)
_PLAIN_WHOLE, _PLAIN_REGION = _WHOLE[3], _REGION[3]
_ROWS = {2: ("upper", "lower"), 3: ("upper", "middle", "lower")}
_COLS = {2: ("left", "right"), 3: ("left", "center", "right")}
_SAME_IN_PLURAL = ("aircraft", "spacecraft", "hovercraft", "watercraft", "people", "livestock", "cattle", "sheep", "algae")
_COVERS = """
    water seawater floodwater ice snow sand soil topsoil earth ground mud gravel rubble debris waste garbage terrain
    vegetation grass grassland scrub shrubland cropland farmland pastureland land bareland moss seaweed
    smoke fog haze dust oil foam asphalt concrete traffic
"""
_UNCOUNTED = frozenset(_COVERS.split())
"""Last words of names that English has no plural for, or that mean a cover, not a thing: these come in areas."""
_ATTRIBUTES = frozenset({"built-up", "burnt", "flooded", "urban", "residential", "industrial", "commercial"})

_RULES = CaptionRules()


def caption(
    boxes_by_class: Mapping[str, Sequence[Box]],
    shape_yx: tuple[int, int],
    *,
    regions: int = 4,
    random: random_numbers.Random | None = None,
    rules: CaptionRules = _RULES,
    subject: str = "image",
) -> str:
    """Sentences about boxes: one on the whole, then one per region that holds a box's centre, row by row.

    Parameters
    ----------
    boxes_by_class : boxes of each class; classes are named in this order.
    shape_yx : height and width of what the boxes lie in, pixels; boxes count from its top left corner.
    regions : 4 (2 x 2), 9 (3 x 3), or 0 for the first sentence alone.
    random : draws the wording of each sentence; without it wording is plain and always the same.
    subject : what the boxes lie in: "image", "zone".

    Raises
    ------
    ValueError : another number of regions; a centre outside, or on the border where `rules` refuse that.
    """
    if regions not in (0, 4, 9):
        raise ValueError(f"a caption tells of 4 or 9 regions, or of none (0), not {regions}")
    present = {name: list(found) for name, found in boxes_by_class.items() if found}
    if not present:
        return rules.empty
    counts = {name: len(found) for name, found in present.items()}
    whole = random.choice(_WHOLE) if random is not None else _PLAIN_WHOLE
    sentences = [whole.format(subject=subject, things=_listed(counts, rules, numbers=True))]
    for region, there in _by_region(present, shape_yx, {0: 0, 4: 2, 9: 3}[regions], rules).items():
        template = random.choice(_REGION) if random is not None else _PLAIN_REGION
        things = _listed(there, rules, numbers=rules.counts_in_regions)
        be = "is" if sum(there.values()) == 1 else "are"
        sentences.append(template.format(region=region, things=things, be=be))
    return " ".join(sentences)


def plural_of(name: str, rules: CaptionRules = _RULES) -> str:
    """`name` as it is written for several: by English rules "ferries", "churches", "areas of water"; plurals stay."""
    if rules.plural == "plus-s":
        return f"{name}s"
    last = name.lower()
    if last in _ATTRIBUTES:
        return f"{name} areas"
    if last.rpartition(" ")[2] in _UNCOUNTED:
        return f"areas of {name}"
    if last.endswith(_SAME_IN_PLURAL) or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return name
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        return f"{name[:-1]}ies"
    return f"{name}s"


def _listed(counts: Mapping[str, int], rules: CaptionRules, *, numbers: bool) -> str:
    """Classes with how many there are: "many ships, 2 ferries, dam, "the roof with panels" (2 places)"."""
    words = []
    for name, number in counts.items():
        amount = "" if number == 1 or not numbers else "many" if number >= rules.many_from else str(number)
        if rules.plural == "english" and (name[:1].isdigit() or not is_class_name(name)):
            words.append(f'"{name}"' + (f" ({amount} places)" if amount else ""))
        else:
            words.append(f"{amount} {plural_of(name, rules) if number > 1 else name}".lstrip())
    return ", ".join(words)


def _by_region(
    present: Mapping[str, Sequence[Box]], shape_yx: tuple[int, int], split: int, rules: CaptionRules
) -> dict[str, dict[str, int]]:
    """Number of boxes of each class in each region that has any, regions row by row."""
    held: dict[tuple[int, int], dict[str, int]] = {}
    for name, boxes in present.items() if split else ():
        for box in boxes:
            x, y = box.centre
            cell = (_cell(y, shape_yx[0], split, rules), _cell(x, shape_yx[1], split, rules))
            counts = held.setdefault(cell, {})
            counts[name] = counts.get(name, 0) + 1
    return {_region_name(cell, split): held[cell] for cell in sorted(held)}


def _cell(position: float, length: int, split: int, rules: CaptionRules) -> int:
    if not 0 <= position <= length or (position == length and rules.centre_on_border == "refuse"):
        raise ValueError(f"the centre of a box lies at {position:g} px, outside of 0 to {length} px")
    return min(int(position * split / length), split - 1)


def _region_name(cell: tuple[int, int], split: int) -> str:
    row, col = _ROWS[split][cell[0]], _COLS[split][cell[1]]
    return "center" if (row, col) == ("middle", "center") else f"{row} {col}"
