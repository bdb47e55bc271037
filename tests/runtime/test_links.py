"""Test ranks: every pair once, right values, rates, and what is told of ranks that do not meet."""

from itertools import combinations
from typing import Any

import pytest
import torch
import torch.distributed

from scaletrain.runtime import dist, links
from scaletrain.runtime.world import World
from tests.ranks import run_ranks


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_every_pair_meets_once_in_as_few_rounds_as_there_can_be(count: int) -> None:
    seats = [3 * n for n in range(count)]
    rounds = list(links.pairings(seats))
    assert sorted(pair for pairs in rounds for pair in pairs) == list(combinations(seats, 2))
    assert all(len({rank for pair in pairs for rank in pair}) == 2 * len(pairs) for pairs in rounds)
    assert len(rounds) <= count - (count % 2 == 0)


def _try(seats: list[int], seconds: float) -> dict[str, Any]:
    return links.try_links(World(rank=dist.rank(), size=dist.size()), seats, seconds)


def test_ranks_find_right_values_and_the_rate_of_each_pair() -> None:
    found = run_ranks(_try, 3, [0, 1, 2], 60.0)
    assert all((told["wrong"], told["fault"], told["rounds_left_out"]) == ([], "", 0) for told in found)
    pairs = [pair for told in found for pair in told["pairs"]]
    assert sorted((one, other) for one, other, _ in pairs) == [(0, 1), (0, 2), (1, 2)]
    assert all(rate > 0 for _, _, rate in pairs)


def _try_with_one_slow_exchange() -> list[Any]:
    """The first time that ranks 0 and 1 exchange, something holds them up."""
    real, held = links._exchange_rate, []

    def exchange(world: World, one: int, other: int) -> float:
        rate = real(world, one, other)
        if (one, other) == (0, 1) and not held:
            held.append(True)
            return rate / 1e6
        return rate

    links._exchange_rate = exchange
    return list(_try([0, 1, 2], 60.0)["pairs"])


def test_a_pair_that_looks_slow_is_timed_again() -> None:
    pairs = [pair for pairs in run_ranks(_try_with_one_slow_exchange, 3) for pair in pairs]
    rates = {(one, other): rate for one, other, rate in pairs}
    assert len(rates) == 3
    assert rates[0, 1] > 1e-3 * max(rates.values())


def test_rounds_end_when_their_time_is_over() -> None:
    found = run_ranks(_try, 2, [0, 1], -1.0)
    assert [(told["pairs"], told["rounds_left_out"]) for told in found] == [([], 1), ([], 1)]


def _try_with_a_broken_sum() -> list[str]:
    all_reduce = torch.distributed.all_reduce

    def broken(tensor: torch.Tensor, **options: Any) -> None:
        all_reduce(tensor, **options)
        if dist.rank() == 1 and tensor.numel() > 10:
            tensor[7] += 1

    torch.distributed.all_reduce = broken
    return list(_try([0, 1], 60.0)["wrong"])


def test_one_wrong_value_is_told_by_the_rank_that_has_it() -> None:
    assert run_ranks(_try_with_a_broken_sum, 2) == [[], ["all-reduce on cpu"]]


def test_ranks_that_do_not_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr(links, "_MEETING", timedelta(seconds=1))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # what start() sets there is taken back
    found = links.try_links(World(rank=1, size=2, master_port=9), [0, 1], 1.0)
    assert found["fault"].startswith("rank 1 cannot meet the others at 127.0.0.1:9 ")
