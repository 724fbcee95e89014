"""How a step's posts are split over ranks and micro-batches."""

from __future__ import annotations

import pytest

from cromic_ds.batch import BatchSplit
from cromic_ds.errors import UserError


@pytest.mark.parametrize(
    ("batch", "micro", "world", "largest", "expected"),
    [
        (64, 8, 2, 8, (8, 4)),
        (64, None, 2, 8, (8, 4)),
        (64, None, 1, 64, (64, 1)),
        (4096, None, 8, 64, (64, 8)),
        (6, None, 2, 8, (3, 1)),
        (2 * 22, None, 2, 8, (2, 11)),
    ],
)
def test_derive(batch: int, micro: int | None, world: int, largest: int, expected: tuple[int, int]):
    split = BatchSplit.derive(batch, world, micro, largest)
    assert (split.micro_batch, split.accumulation) == expected


def test_other_ranks_keep_the_global_batch_and_a_given_micro_batch():
    def splits(micro: int | None) -> list[tuple[int, int]]:
        made = [BatchSplit.derive(64, world, micro, largest=8) for world in (1, 2, 4, 16)]
        return [(split.micro_batch, split.accumulation) for split in made]

    assert splits(4) == [(4, 16), (4, 8), (4, 4), (4, 1)]
    assert splits(None) == [(8, 8), (8, 4), (8, 2), (4, 1)]


@pytest.mark.parametrize(
    ("batch", "micro", "world", "message"),
    [
        (64, None, 3, "64 does not divide over 3 ranks: start 2 or 4, or in a new run use a global batch of 63 or 66"),
        (64, 16, 3, "64 does not divide over 3 ranks: start 2 or 4, or in a new run use a global batch of 63 or 66"),
        (64, 32, 3, "64 does not divide over 3 ranks: start 2, or in a new run use a global batch of 63 or 66"),
        (12, None, 5, "12 does not divide over 5 ranks: start 4 or 6, or in a new run use a global batch of 10 or 15"),
        (2, None, 4, "2 does not divide over 4 ranks: start 2, or in a new run use a global batch of 4"),
        (0, None, 4, "0 does not divide over 4 ranks: use a global batch of 4"),
        (
            48,
            5,
            2,
            "48 over 2 ranks is 24 posts each, which micro-batch 5 does not divide: use micro-batch 4 or 6, "
            "or another global batch",
        ),
        (
            48,
            8,
            4,
            "48 over 4 ranks is 12 posts each, which micro-batch 8 does not divide: use micro-batch 6 or 12, "
            "start 3 or 6 ranks, or another global batch",
        ),
    ],
)
def test_batches_that_do_not_divide_name_the_nearest_that_do(batch: int, micro: int | None, world: int, message: str):
    with pytest.raises(UserError) as error:
        BatchSplit.derive(batch, world, micro)
    assert str(error.value) == f"global batch {message}"


def test_a_split_that_does_not_divide_cannot_be_made():
    with pytest.raises(UserError, match="micro-batch 0 does not divide: use micro-batch 1"):
        BatchSplit(8, 0, 2)
    with pytest.raises(UserError, match="global batch 9 does not divide over 2 ranks"):
        BatchSplit(9, 1, 2)


def test_in_one_line():
    assert str(BatchSplit(64, 8, 2)) == "global batch 64 = micro-batch 8 × accumulation 4 × 2 ranks"
    assert str(BatchSplit(8, 8)) == "global batch 8 = micro-batch 8 × accumulation 1 × 1 rank"
