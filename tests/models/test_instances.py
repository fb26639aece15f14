"""One logit per pixel from found objects: held against the rule written out pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label

from eo_batch.models.finder import LEAST
from eo_batch.models.instances import LIMIT, gate, join

SQUARE = np.ones((3, 3), bool)


def logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def disc(side: int, row: float, col: float, radius: float, *, steep: float = 4.0) -> NDArray[np.float32]:
    """Logits of a round object, sharp at its edge."""
    y, x = np.mgrid[0:side, 0:side]
    return (steep * (radius - np.hypot(y - row, x - col))).astype(np.float32)


def objects(logits: torch.Tensor, threshold: float = 0.5) -> int:
    """Things that do not even touch at a corner."""
    return int(label(logits.numpy() > logit(threshold), SQUARE)[1])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_pixel_is_found_where_a_surer_object_has_it_surer(threshold: float) -> None:
    rng = np.random.default_rng(1)
    sure, masks = rng.uniform(0, 1, 20).astype(np.float32), rng.normal(0, 3, (20, 16, 16)).astype(np.float32)
    found = join(torch.tensor(sure), torch.tensor(masks), (16, 16), apart=False).numpy() > logit(threshold)
    by_hand = np.zeros((16, 16), bool)
    for number in range(20):
        if sure[number] > threshold:
            by_hand |= 1 / (1 + np.exp(-masks[number])) > threshold
    assert (found == by_hand).all()
    assert by_hand.mean() > 0


def test_masks_become_as_large_as_the_window_before_they_are_compared() -> None:
    rng = np.random.default_rng(2)
    masks = rng.normal(0, 2, (4, 8, 8)).astype(np.float32)
    found = join(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor(masks), (24, 40), apart=False).numpy()
    large = [np.asarray(Image.fromarray(mask).resize((40, 24), Image.Resampling.BILINEAR)) for mask in masks]  # only enlarges
    ceilings = [logit(share) for share in (0.9, 0.8, 0.7, 0.6)]
    by_hand = np.max([np.minimum(mask, most) for mask, most in zip(large, ceilings, strict=True)], 0)
    np.testing.assert_allclose(found, np.clip(by_hand, -LIMIT, LIMIT), atol=1e-4)


def test_no_object_is_a_clear_no_within_the_limits() -> None:
    none = join(torch.zeros(0), torch.zeros(0, 4, 4), (6, 5), apart=True)
    faint = join(torch.tensor([LEAST / 2]), torch.full((1, 4, 4), 50.0), (6, 5), apart=True)
    sure = join(torch.tensor([1.0]), torch.full((1, 4, 4), 50.0), (6, 5), apart=True)
    assert none.shape == (6, 5)
    assert (none == -LIMIT).all()
    assert (faint == -LIMIT).all()
    assert (sure == LIMIT).all()


def test_the_order_in_which_objects_are_told_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    sure, masks = torch.tensor(rng.permutation(np.linspace(0.1, 0.95, 9))), torch.tensor(rng.normal(0, 3, (9, 12, 12)))
    for apart in (False, True):
        turned = torch.tensor(rng.permutation(9))
        assert torch.equal(join(sure, masks, (30, 30), apart=apart), join(sure[turned], masks[turned], (30, 30), apart=apart))


def test_numbers_that_are_none_are_not_taken_for_nothing() -> None:
    masks = torch.zeros(2, 4, 4)
    assert join(torch.tensor([0.9, float("nan")]), masks, (4, 4), apart=True).isnan().all()
    masks[1, 2, 2] = float("nan")
    assert join(torch.tensor([0.9, 0.8]), masks, (4, 4), apart=False).isnan().any()
    assert gate(masks[1], torch.tensor(0.9), (4, 4)).isnan().any()
    assert gate(masks[0], torch.tensor(float("nan")), (4, 4)).isnan().all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_touching_objects_are_counted_apart_at_every_usual_threshold(threshold: float) -> None:
    side = 64
    places = [(16, 16), (16, 40), (40, 16), (40, 40), (16, 62)]
    masks = torch.tensor(np.stack([disc(side, row, col, 12.6) for row, col in places]))
    sure = torch.tensor([0.95, 0.9, 0.85, 0.8, 0.75])
    together, apart = (join(sure, masks, (side, side), apart=way) for way in (False, True))
    assert objects(together, threshold) == 1
    assert objects(apart, threshold) == len(places)


def test_the_line_between_two_objects_is_one_pixel_of_the_less_sure_one() -> None:
    left = torch.full((20, 20), -9.0)
    left[:, :10] = 9
    right = -left
    found = join(torch.tensor([0.7, 0.9]), torch.stack([left, right]), (20, 20), apart=True)
    assert (found[:, 9] == -LIMIT).all()
    assert (found[:, :9] > 0).all()
    assert (found[:, 10:] > 0).all()


def test_parting_takes_nothing_from_an_object_for_a_less_sure_one() -> None:
    rng = np.random.default_rng(5)
    masks = torch.tensor(np.stack([disc(48, *rng.uniform(8, 40, 2), rng.uniform(5, 12)) for _ in range(8)]))
    sure = torch.tensor([0.9, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15])
    alone = join(sure[:1], masks[:1], (48, 48), apart=True)
    assert torch.equal(join(sure, masks, (48, 48), apart=True) > 0, alone > 0)


def test_two_masks_of_one_object_leave_it_whole() -> None:
    masks = torch.tensor(np.stack([disc(40, 20, 20, 10), disc(40, 20, 21, 11), disc(40, 21, 20, 9)]))
    found = join(torch.tensor([0.8, 0.9, 0.7]), masks, (40, 40), apart=True)
    assert objects(found) == 1
    assert torch.equal(found, join(torch.tensor([0.9]), masks[1:2], (40, 40), apart=True))


def test_an_object_within_another_gets_a_line_around_it() -> None:
    masks = torch.tensor(np.stack([disc(60, 30, 30, 25), disc(60, 30, 30, 6)]))
    found = join(torch.tensor([0.7, 0.9]), masks, (60, 60), apart=True)
    assert objects(found) == 2
    assert objects(join(torch.tensor([0.7, 0.9]), masks, (60, 60), apart=False)) == 1


def test_a_map_of_the_whole_counts_as_far_as_it_is_sure() -> None:
    rng = np.random.default_rng(6)
    seen = torch.tensor(rng.normal(0, 3, (10, 10)).astype(np.float32))
    for confidence in (0.2, 0.6, 0.999):
        found = gate(seen, torch.tensor(confidence), (10, 10)).numpy()
        by_hand = np.clip(np.minimum(seen.numpy(), logit(confidence)), -LIMIT, LIMIT)
        np.testing.assert_allclose(found, by_hand, atol=1e-4)
