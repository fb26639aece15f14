"""The rules that turn masks into boxes, labels and sentences, on one page.

Defaults are meant for people who read maps. `upstream()` gives RemoteSAM's published inference code, quirk by quirk;
docs/concepts/tasks.md says what each switch changes and why the default differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Corners = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Box:
    """One object as a rectangle, in pixel-edge coordinates: pixel (row, col) covers x in [col, col + 1], y in [row, row + 1].

    Parameters
    ----------
    x0, y0, x1, y1 : bounds of the object's pixels; x1 and y1 are exclusive as pixel indices.
    score : mean P(foreground) over the object's pixels.
    pixels : number of the object's pixels; 0 where it is unknown.
    corners : for an oriented box its four (x, y), clockwise on the screen from the topmost (then leftmost) one.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    score: float
    pixels: int = 0
    corners: Corners | None = None

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1)."""
        return self.x0, self.y0, self.x1, self.y1

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the bounds."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@dataclass(frozen=True)
class BoxRules:
    """How the objects of one mask become boxes.

    Parameters
    ----------
    oriented : also find the smallest rotated rectangle; containment and overlap are then judged by it.
    corners_from : "edges": the rotated rectangle holds the whole squares of the pixels, as horizontal bounds do. "centres":
        it holds pixel centres only, a pixel's centre being (col, row), and is cut to integers (upstream).
    min_pixels : objects of fewer pixels are left out.
    min_score : objects with a lower score are left out (upstream 0.01, which no object of an argmax mask is under).
    contour_threshold : where a contour map is given, pixels above this are taken out of the mask, so that touching objects part.
    min_piece : a piece of an object that the contour cut is kept if it has more than this share of the largest piece's pixels.
    keep_swallowed : an object that lies wholly under the contour stays as it was (upstream loses it).
    drop_inner : boxes inside another box of the same class are left out (upstream). Where one object is long or bent, a river
        or a shore, its box holds half the image and everything in it goes.
    inner_by : "geometry": inside means that no part sticks out; of equal boxes one stays. "drawing": as upstream, which
        draws both on a canvas that ends before the larger of their far coordinates, borders included, and removes each box
        whose drawing is covered; boxes that cover each other both go, and a box that falls off the canvas goes too.
    """

    oriented: bool = False
    corners_from: Literal["edges", "centres"] = "edges"
    min_pixels: int = 1
    min_score: float = 0.0
    contour_threshold: float = 0.25
    min_piece: float = 0.2
    keep_swallowed: bool = True
    drop_inner: bool = False
    inner_by: Literal["geometry", "drawing"] = "geometry"

    @classmethod
    def upstream(cls, *, oriented: bool = False, drop_inner: bool = True, contour_threshold: float = 0.25) -> BoxRules:
        """RemoteSAM's own rules, with the arguments that its box function takes."""
        return cls(
            oriented=oriented,
            corners_from="centres",
            min_score=0.01,
            contour_threshold=contour_threshold,
            keep_swallowed=False,
            drop_inner=drop_inner,
            inner_by="drawing",
        )


@dataclass(frozen=True)
class CaptionRules:
    """How boxes become sentences.

    Parameters
    ----------
    many_from : from this count on, a class is "many" instead of a number.
    counts_in_regions : sentences about regions say how many (upstream's paper does, its code does not).
    plural : "english": "ferries", "churches", "areas of water"; words that are plural already stay, and sentences are quoted.
        "plus-s": an "s" after anything (upstream).
    centre_on_border : "clamp": a centre on the right or bottom border belongs to the last region. "refuse": it is an error,
        as upstream, where it is an IndexError.
    empty : sentence for an image in which nothing was found.
    """

    many_from: int = 5
    counts_in_regions: bool = True
    plural: Literal["english", "plus-s"] = "english"
    centre_on_border: Literal["clamp", "refuse"] = "clamp"
    empty: str = "None of the named objects was found."

    @classmethod
    def upstream(cls) -> CaptionRules:
        """RemoteSAM's own rules; give `caption` a `random.Random(seed)` for its choice of words."""
        return cls(counts_in_regions=False, plural="plus-s", centre_on_border="refuse")


@dataclass(frozen=True)
class TaskRules:
    """How masks and scores answer each task.

    Parameters
    ----------
    boxes : how one mask becomes boxes.
    nms_iou : a box that overlaps a better one of its class by more than this is left out; None keeps all.
    overlap : what a pixel of several classes means: "independent": all of them, masks are not touched (upstream's calls);
        "best": the class with the greatest score, ties to the first; "last": the last class that claims it (upstream's
        evaluation script).
    label_balance : weight of one of the two parts of a label's score, see `balance_weighs`.
    balance_weighs : what `label_balance` multiplies, the other part having the rest: "max" as in upstream's code, "mean" as
        in equation 3 of its paper. The same for 0.5.
    label_threshold : a class is a label if its score is above this.
    class_balance : weight of the greatest score, the mean having the rest, where one class is chosen.
    class_threshold : no class is chosen if the best score is below this.
    captions : how boxes become sentences.
    """

    boxes: BoxRules = field(default_factory=BoxRules)
    nms_iou: float | None = 0.5
    overlap: Literal["independent", "best", "last"] = "independent"
    label_balance: float = 0.5
    balance_weighs: Literal["max", "mean"] = "max"
    label_threshold: float = 0.5
    class_balance: float = 1.0
    class_threshold: float = 0.5
    captions: CaptionRules = field(default_factory=CaptionRules)

    @classmethod
    def upstream(cls, *, contour_threshold: float = 0.25) -> TaskRules:
        """RemoteSAM's own rules."""
        return cls(boxes=BoxRules.upstream(contour_threshold=contour_threshold), captions=CaptionRules.upstream())
