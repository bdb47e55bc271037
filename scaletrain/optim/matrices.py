"""Work on whole matrices where each rank holds parts of them, as ZeRO cuts them: one rank does each matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scaletrain.runtime import dist


@dataclass(frozen=True)
class Part:
    """Elements start..start+numel of the flattened matrix `name`: they lie at `offset` of a rank's flattened tensor."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Plan:
    """One rank's share of the work: `mine`, its parts by the rank that works on them, `theirs`, the parts of all ranks
    (by rank) that make up the matrices it works on, and the elements that go to and come from each rank."""

    mine: tuple[Part, ...]
    theirs: tuple[Part, ...]
    sent: tuple[int, ...]
    received: tuple[int, ...]


def plan_work(held: Sequence[Sequence[Part]], rank: int) -> Plan:
    """What `rank` does where rank r holds the parts held[r]. All ranks plan alike, from the same `held`."""
    workers, ranks = _workers(held), range(len(held))
    to = [[part for part in held[rank] if workers[part.name] == r] for r in ranks]
    of = [[part for part in held[r] if workers[part.name] == rank] for r in ranks]
    return Plan(
        mine=tuple(part for parts in to for part in parts),
        theirs=tuple(part for parts in of for part in parts),
        sent=tuple(sum(part.numel for part in parts) for parts in to),
        received=tuple(sum(part.numel for part in parts) for parts in of),
    )


def _workers(held: Sequence[Sequence[Part]]) -> dict[str, int]:
    """Which rank works on each matrix: of those that hold a part of it the one with the least to do so far.

    At stages 1 and 2 that is mostly its only holder, to which nothing has to be sent; at stage 3 all hold some of each.
    """
    holders: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank, parts in enumerate(held):
        for part in parts:
            ranks = holders.setdefault((part.name, part.shape), [])
            if rank not in ranks:
                ranks.append(rank)
    costs = {key: max(key[1]) * min(key[1]) ** 2 for key in holders}
    loads, workers = [0] * len(held), {}
    for key in sorted(holders, key=lambda key: -costs[key]):
        worker = min(holders[key], key=lambda rank: loads[rank])
        loads[worker] += costs[key]
        workers[key[0]] = worker
    return workers


def map_matrices(
    plan: Plan, values: Callable[[], Tensor], work: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> list[tuple[Part, Tensor]]:
    """`work` of each whole matrix of what `values` makes (flat, as the plan's parts lie in it), in `dtype`: what falls
    on each of this rank's parts. All ranks of the plan call it. Nothing is held longer than the next thing needs it."""
    arrived = _exchange(_cut(plan, values(), dtype), plan.sent, plan.received)
    device, whole = arrived.device, _assembled(plan, arrived)
    del arrived
    for name in list(whole):
        whole[name] = work(whole.pop(name)).reshape(-1)
    returned = _exchange(_taken_apart(plan, whole, device, dtype), plan.received, plan.sent)
    return list(zip(plan.mine, torch.split(returned, _sizes(plan.mine)), strict=True))


def _cut(plan: Plan, values: Tensor, dtype: torch.dtype) -> Tensor:
    """What goes to others, rank by rank, in one tensor."""
    flat = values.view(-1)
    return torch.cat([flat.new_empty(0, dtype=dtype), *(_of(part, flat).to(dtype) for part in plan.mine)])


def _assembled(plan: Plan, arrived: Tensor) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    for part, piece in zip(plan.theirs, torch.split(arrived, _sizes(plan.theirs)), strict=True):
        matrix = whole.setdefault(part.name, arrived.new_empty(part.shape))
        matrix.view(-1)[part.start : part.start + part.numel] = piece
    return whole


def _taken_apart(plan: Plan, done: dict[str, Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What goes back, rank by rank."""
    back = [done[part.name][part.start : part.start + part.numel] for part in plan.theirs]
    return torch.cat([torch.empty(0, device=device, dtype=dtype), *back])


def _sizes(parts: Sequence[Part]) -> list[int]:
    return [part.numel for part in parts]


def _of(part: Part, flat: Tensor) -> Tensor:
    return flat.narrow(0, part.offset, part.numel)


def _exchange(values: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
    return values if len(sent) == 1 else dist.exchange(values, sent, received)
