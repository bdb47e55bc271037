"""Test ranks: whether collectives give the right values, and how fast each pair of nodes talks."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from scaletrain.errors import ScaleTrainError
from scaletrain.runtime import dist
from scaletrain.runtime.world import World

_ITEMS = 1 << 20  # of a collective: 4 MB
_TRIAL_BYTES = 256 << 10
_LEAST_BYTES, _MOST_BYTES = 256 << 10, 256 << 20
_EXCHANGE_SECONDS = 0.06  # of one exchange, about
_EXCHANGES = 3  # of which the quickest counts: a busy processor slows down single ones
_SUSPECT = 0.6  # of what three quarters of the pairs do not exceed
_MOST_SUSPECTS = 16
_MEETING = timedelta(seconds=25)


def try_links(world: World, seats: Sequence[int], seconds: float) -> dict[str, Any]:
    """Joins the ranks and tries them out; all call it. `seats`: the ranks whose pairs are timed, in rounds that begin
    within `seconds`.

    Gives `wrong` (collectives whose values were not right on this rank), `pairs` ([rank, rank, gigabits a second]) of
    those that this rank timed, and `rounds_left_out`; `fault`, a line, where the ranks did not meet or lost each other.
    """
    found: dict[str, Any] = {"wrong": [], "pairs": [], "rounds_left_out": 0, "fault": ""}
    torch.set_num_threads(1)
    try:
        dist.start(world, _MEETING)
        devices = list(dict.fromkeys([torch.device("cpu"), dist.device_of(world)]))  # in one order on all ranks
        found["wrong"] = [name for device in devices for name in _wrong_collectives(world, device)]
        found["rounds_left_out"] = _time_pairs(world, list(pairings(seats)), seconds, found["pairs"])
        _time_again(world, found["pairs"])
        dist.gather(None)  # nobody leaves before all are done
    except (ScaleTrainError, RuntimeError) as error:  # torch.distributed's errors are RuntimeErrors
        found["fault"] = (str(error).splitlines() or [type(error).__name__])[0]
    return found


def _time_pairs(
    world: World, rounds: Sequence[Sequence[tuple[int, int]]], seconds: float, rates: list[list[Any]]
) -> int:
    """Adds those of this rank to `rates`; how many rounds did not begin in time."""
    begun = time.monotonic()
    for number, pairs in enumerate(rounds):
        if dist.sum_integers([world.is_first and time.monotonic() - begun > seconds])[0]:
            return len(rounds) - number
        for one, other in pairs:
            if world.rank in (one, other):
                rate = _exchange_rate(world, one, other)
                rates += [[one, other, rate]] if world.rank == one else []
    return 0


def _time_again(world: World, rates: list[list[Any]]) -> None:
    """The slowest pairs once more, while all others are silent: a busy processor or switch is no slow link."""
    everyone = sorted((rate, one, other) for theirs in dist.gather(rates) for one, other, rate in theirs)
    usual = everyone[len(everyone) * 3 // 4][0] if everyone else 0.0
    for rate, one, other in [pair for pair in everyone if pair[0] < _SUSPECT * usual][:_MOST_SUSPECTS]:
        if world.rank in (one, other):
            again = _exchange_rate(world, one, other)
            if world.rank == one:
                rates[rates.index([one, other, rate])][2] = max(rate, again)
        dist.gather(None)


def pairings(seats: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Every pair once, in as few rounds as there can be; none is in two pairs of a round (the circle method)."""
    circle = [*seats, *([None] if len(seats) % 2 else [])]
    for _ in range(len(circle) - 1):
        across = zip(circle[: len(circle) // 2], reversed(circle), strict=False)
        yield [(min(a, b), max(a, b)) for a, b in across if a is not None and b is not None]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def _wrong_collectives(world: World, device: torch.device) -> list[str]:
    """Whole numbers, so that a sum has one right value."""
    wrong = []
    ramp = torch.arange(_ITEMS, device=device, dtype=torch.float32) % 1000
    total = ramp * (world.rank + 1)
    torch.distributed.all_reduce(total)
    if not torch.equal(total, ramp * (world.size * (world.size + 1) // 2)):
        wrong.append(f"all-reduce on {device.type}")
    share = ramp[: max(1, _ITEMS // world.size)]  # as much is gathered on any number of ranks
    parts = [torch.empty_like(share) for _ in range(world.size)]
    torch.distributed.all_gather(parts, share + world.rank)
    if not all(torch.equal(part, share + rank) for rank, part in enumerate(parts)):
        wrong.append(f"all-gather on {device.type}")
    return wrong


def _exchange_rate(world: World, one: int, other: int) -> float:
    """Gigabits a second from `one` to `other` and back, on the device that training uses."""
    device = dist.device_of(world)
    trial = torch.zeros(_TRIAL_BYTES, dtype=torch.uint8, device=device)
    _there_and_back(world, trial, one, other)  # makes the connection
    seconds = _there_and_back(world, trial, one, other)
    wanted = int(_TRIAL_BYTES * _EXCHANGE_SECONDS / max(seconds, 1e-6))
    size = torch.tensor([min(_MOST_BYTES, max(_LEAST_BYTES, wanted))], device=device)
    _there_and_back(world, size, one, other)  # `one` decides
    load = torch.zeros(int(size.item()), dtype=torch.uint8, device=device)
    best = min(_there_and_back(world, load, one, other) for _ in range(_EXCHANGES))
    return 2 * 8 * load.numel() / best / 1e9


def _there_and_back(world: World, tensor: torch.Tensor, one: int, other: int) -> float:
    begun = time.perf_counter()
    if world.rank == one:
        torch.distributed.send(tensor, other)
        torch.distributed.recv(tensor, other)
    else:
        torch.distributed.recv(tensor, one)
        torch.distributed.send(tensor, one)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - begun
