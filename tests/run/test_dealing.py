"""Who gets which task: neighbours together, everything once, nobody idle while there is something left."""

from __future__ import annotations

from collections.abc import Sequence

from eo_batch.run.executors.dealing import FEW, Deal

ROWS = [[(row, column) for column in range(4)] for row in range(3)]


def test_a_worker_goes_through_its_group_before_it_takes_another() -> None:
    deal = Deal(ROWS)
    taken = [(worker, deal.take(worker)) for _ in range(4) for worker in ("a", "b")]
    assert [task for worker, task in taken if worker == "a"] == ROWS[0]
    assert [task for worker, task in taken if worker == "b"] == ROWS[1]


def test_with_no_group_left_the_tail_of_the_longest_hand_is_taken() -> None:
    deal = Deal(ROWS[:2])
    assert [deal.take("a"), deal.take("b"), deal.take("b")] == [(0, 0), (1, 0), (1, 1)]
    assert [deal.take("c"), deal.take("c")] == [(0, 2), (0, 3)]
    assert [deal.take("a"), deal.take("b"), deal.take("b")] == [(0, 1), (1, 2), (1, 3)]
    assert deal.take("a") is None
    assert deal.is_done


def test_a_worker_has_more_until_its_hand_is_short_and_no_group_is_left() -> None:
    deal = Deal([[(at,) for at in range(4 * FEW)]])
    deal.take("a")
    deal.take("b")  # the tail half: no group is left
    assert deal.has_more("a")
    assert deal.has_more("b")
    for _ in range(FEW):
        deal.take("a")
    assert not deal.has_more("a")
    assert not deal.has_more("c")


def test_what_a_worker_leaves_behind_is_dealt_again_first() -> None:
    deal = Deal(ROWS)
    assert deal.take("a") == (0, 0)
    deal.leave("a")
    assert [deal.take("b") for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]


def test_groups_are_taken_only_when_a_worker_needs_one() -> None:
    drawn = []

    def groups():
        for row in ROWS:
            drawn.append(row)
            yield row

    deal = Deal(groups())
    assert not drawn
    deal.take("a")
    assert drawn == ROWS[:1]


def test_empty_groups_are_passed_over() -> None:
    deal = Deal([[], [], [(1,)], []])
    assert deal.take("a") == (1,)
    assert deal.take("a") is None
    assert deal.is_done


def test_places_where_nothing_is_to_be_done_are_passed_over() -> None:
    deal = Deal([[None, (1,), None], [None, None], [(2,), None]])
    assert [deal.take("a"), deal.take("b"), deal.take("a"), deal.take("b")] == [(1,), (2,), None, None]
    assert deal.is_done


def test_of_a_group_only_what_is_handed_out_is_made() -> None:
    class Rows(Sequence):
        made = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, at: int) -> tuple[int]:
            Rows.made += 1
            return (at,)

    deal = Deal([Rows()])
    assert [deal.take("a"), deal.take("b"), deal.take("b"), deal.take("a")] == [(0,), (500_000_000,), (500_000_001,), (1,)]
    assert Rows.made == 4
