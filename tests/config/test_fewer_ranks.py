"""Fewer ranks keep the global batch, and hold no larger micro-batch than they did."""

import pytest

from scaletrain.config.deepspeed import settle
from scaletrain.config.fewer_ranks import Fit, fewer_ranks
from scaletrain.config.schema import Recipe


def recipe(**train: object) -> Recipe:
    return Recipe.model_validate({"run": {"dir": "r"}, "train": {"max_steps": 1, **train}})


@pytest.mark.parametrize(
    ("train", "at_most", "fit"),
    [
        ({"global_batch_size": 64, "min_ranks": 1}, 7, Fit(4, 8)),
        ({"global_batch_size": 64, "min_ranks": 4}, 3, None),
        ({"global_batch_size": 64}, 7, None),
        ({"global_batch_size": 24, "min_ranks": 1}, 7, Fit(6, 2)),  # 4 a rank, of which 3 at once fitted: 2 + 2
        ({"global_batch_size": 56, "min_ranks": 1}, 7, Fit(7, 4)),  # 8 a rank, of which 7 fitted
        ({"global_batch_size": 48, "min_ranks": 1, "micro_batch_size": 3}, 7, Fit(4, 3)),
        ({"global_batch_size": 48, "min_ranks": 1, "micro_batch_size": 6}, 7, Fit(4, 6)),
    ],
)
def test_the_largest_number_of_ranks_that_divides_the_batch(
    train: dict[str, object], at_most: int, fit: Fit | None
) -> None:
    assert fewer_ranks(recipe(**train), {}, began_with=8, at_most=at_most) == fit


def test_the_deepspeed_file_is_obeyed() -> None:
    fixed = {"gradient_accumulation_steps": 2}
    both = recipe(global_batch_size=64, micro_batch_size=4, min_ranks=1)
    assert fewer_ranks(both, fixed, began_with=8, at_most=7) is None  # 64 = 4 x 2 x 8 alone
    file = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}
    assert fewer_ranks(settle(recipe(min_ranks=1), file), file, began_with=8, at_most=7) == Fit(4, 8)
