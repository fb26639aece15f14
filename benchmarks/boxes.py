"""How long boxes of many objects take: one mask of slanted ellipses, horizontal, parted by a contour map, and oriented boxes.

python benchmarks/boxes.py --size 4096
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from machine import machine
from numpy.typing import NDArray

from eo_batch.products.rules import BoxRules, TaskRules
from eo_batch.products.tasks import detect

CELL_PX = 28


def ellipses(size: int, *, seed: int = 0) -> NDArray[np.bool_]:
    """bool (size, size): one ellipse per cell of 28 px, half axes of 4 to 12 px, any direction."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), np.bool_)
    down, across = np.mgrid[0:CELL_PX, 0:CELL_PX] - (CELL_PX - 1) / 2
    for row in range(0, size - CELL_PX + 1, CELL_PX):
        for col in range(0, size - CELL_PX + 1, CELL_PX):
            (a, b), turn = rng.uniform(4, 12, 2), rng.uniform(0, np.pi)
            along, beside = across * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - across * np.sin(turn)
            mask[row : row + CELL_PX, col : col + CELL_PX] = (along / a) ** 2 + (beside / b) ** 2 < 1
    return mask


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=4096, help="side of the mask in pixels")
    size = options.parse_args().size
    rng = np.random.default_rng(1)
    mask, score = {"object": ellipses(size)}, {"object": rng.random((size, size), np.float32)}
    contour = rng.random((size, size), np.float32) * np.float32(0.26)
    print(machine())
    for name, rules, cut in (
        ("horizontal", BoxRules(drop_inner=True), None),
        ("horizontal, with a contour map", BoxRules(drop_inner=True), contour),
        ("oriented", BoxRules(oriented=True, drop_inner=True), None),
        ("oriented, upstream", BoxRules.upstream(oriented=True), None),
    ):
        began = time.process_time()
        found = detect(mask, score, rules=TaskRules(boxes=rules), contour=cut)["object"]
        print(f"{name}: {len(found):,} boxes of {size} x {size} px in {time.process_time() - began:.2f} s of one core")


if __name__ == "__main__":
    main()
