"""Finds the words of a prompt that say where in the picture something is, or which of several.

A run shows the network one window at a time. "the ship on the left" is the left of each window, "the largest lake" the
largest in each: on a map both are nearly always another thing than the author meant.
"""

from __future__ import annotations

import re

_SIDE = r"(?:left|right|top|bottom|middle|cent(?:er|re)|north|south|east|west|north-?east|north-?west|south-?east|south-?west)"
_PLACE = r"(?:most|side|hand|edge|end|corner|border|half|part|portion|area|third|quarter|quadrant|region)"
_RULES = (
    rf"(?:on|in|at|to|from|near|along|towards?|by) (?:the )?(?:far |very |extreme |lower |upper |dead )?{_SIDE}(?:[ -]{_SIDE})?"
    rf"(?:[ -]{_PLACE})*",
    rf"(?:{_SIDE})(?:[ -]{_PLACE})+",
    rf"(?:upper|lower)(?:[ -](?:{_SIDE}|{_PLACE}))*",
    rf"(?:{_SIDE}|front) (?:one|ones)",
    r"(?:in|at|to|from|towards?) (?:the )?(?:n|s)?(?:e|w)",
    r"(?:fore|back)ground",
    r"the (?:other|remaining|outer|inner|front|rear|larger|smaller|bigger|longer|shorter|taller|closer|nearer|brighter|darker)",
    rf"{_SIDE}(?:most|ern|ernmost)",
    r"(?:upper|lower|top|bottom|inner|outer)most",
    r"central",
    rf"{_SIDE} (?=[a-z])(?!of\b)[a-z]+",
    r"(?:in|at|near) (?:the |a |one )?(?:corners?|edges?|borders?|background|foreground)",
    r"(?:corners?|edges?|borders?|sides?|half|part|cent(?:er|re)|middle|top|bottom|left|right) of (?:the |this )?"
    r"(?:image|picture|photo(?:graph)?|frame|scene|view|map)",
    r"(?:larg|small|bigg|long|short|tall|wid|narrow|near|clos|bright|dark|high|low|old|new)est",
    r"(?:farthest|furthest|biggest|most|least)",
    r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|\d+(?:st|nd|rd|th))",
    r"the only",
)
_POSITION = re.compile(rf"(?<![\w-])(?:{'|'.join(_RULES)})(?![\w-])")
_NAMES = re.compile(
    r"(?<![\w-])(?:right[ -]of[ -]ways?|rights[ -]of[ -]way|(?:first|second|old)[ -]growth|third[ -]party|last mile"
    r"|cent(?:er|re)[ -]pivots?(?: irrigation)?|cent(?:er|re)[ -]lines?|top[ -]?soils?|bottom[ -]?lands?|middle[ -]schools?"
    r"|central (?:reservation|park|station|business district)s?|most of|at least|at most"
    # traffic, ships, buildings, ranks
    r"|(?:left|right)[ -](?:hand[ -])?(?:traffic|turns?|angles?|angled|lanes?|banks?|rudders?)|bottom[ -]trawl(?:er|ing)?s?"
    r"|(?:upper|lower|top|middle|main) (?:decks?|class)|(?:flat|open|big|round)[ -]top|on top of|middle strips?"
    r"|(?:first|second|third)[ -](?:aid|class|hand|homes?|world|nations?|floors?)|nearest neighbou?r"
    # countries and what is named after them
    r"|(?:north|south|east|west|middle|near|far) (?:sea|africa|america|korea|asia|pole|europe|australia|east|bank|virginia|dakota"
    r"|carolina|germany|england|india|china|timor)|northern (?:lights|ireland|territory|europe|africa)|(?:south|north)ern ocean"
    r"|(?:upper|lower) (?:saxony|austria|silesia|franconia|bavaria|egypt|manhattan|rhine|nile|danube)|(?:western|eastern) (?:cape"
    r"|australia|sahara|europe|ghats)|cent(?:er|re) pompidou|central (?:africa|america|asia|europe))(?![\w-])"
)
"""Names that only look like a position."""


def find_positions(text: str) -> tuple[str, ...]:
    """The phrases of `text` that mean a place in the picture or one of several things, in order, in lower case."""
    lowered = " ".join(text.lower().split())
    plain = _NAMES.sub(lambda found: "_" * len(found.group()), lowered)
    return tuple(found.group().strip() for found in _POSITION.finditer(plain))
