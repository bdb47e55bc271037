"""Muon's update against torch's own and a plain one; the sharing out of matrices that ranks hold in parts."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scaletrain.optim.matrices import Part, map_matrices, plan_work
from scaletrain.optim.muon import Muon, orthogonalize

SHAPES = [(24, 24), (16, 40), (40, 16), (2, 90)]


def gradient(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values_come_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrix = gradient(shape, 1)
    found = orthogonalize(matrix, 5)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.allclose(left.T @ found @ right.T, torch.diag(torch.diagonal(left.T @ found @ right.T)), atol=1e-4)
    large = values > 0.05 * values.norm()  # smaller ones need more iterations
    assert all(0.65 < value < 1.25 for value in torch.diagonal(left.T @ found @ right.T)[large])
    assert torch.allclose(orthogonalize(1000 * matrix, 5), found, atol=1e-4)
    assert orthogonalize(torch.zeros(shape), 5).abs().max() == 0


def step_ours(start: Tensor, steps: int, dtype: torch.dtype, *, nesterov: bool) -> Tensor:
    weight = nn.Parameter(start.clone())
    groups = [{"params": [weight], "name": "orthogonal", "weight_decay": 0.1}]
    shapes = {"w": tuple(start.shape)}
    optimizer = Muon(groups, shapes=shapes, momentum=0.9, nesterov=nesterov, ns_steps=5, dtype=dtype, lr=0.02)
    for seed in range(steps):
        weight.grad = gradient(tuple(start.shape), seed)
        if seed == 0:
            optimizer.step()  # as DeepSpeed does while it is set up: nothing is placed yet
            assert torch.equal(weight, start)
            assert not optimizer.state
            optimizer.place({weight: plan_work([[Part("w", tuple(start.shape), 0, start.numel(), 0)]], 0)})
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(("shape", "nesterov"), itertools.product(SHAPES, (True, False)))
def test_ten_steps_are_those_of_torchs_muon_to_the_bit(shape: tuple[int, int], nesterov: bool) -> None:
    theirs = getattr(torch.optim, "Muon", None)
    if theirs is None:
        pytest.skip("this torch has no Muon")
    start = gradient(shape, 99)
    weight = nn.Parameter(start.clone())
    optimizer = theirs(
        [weight], lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(10):
        weight.grad = gradient(shape, seed)
        optimizer.step()
    assert torch.equal(step_ours(start, 10, torch.bfloat16, nesterov=nesterov), weight.detach())


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_as_large_as_adamws(shape: tuple[int, int]) -> None:
    """The root mean square of AdamW's is 0.2 to 0.4; only a matrix with fewer rows than its rank allows has less."""
    start = gradient(shape, 99)
    moved = (step_ours(start, 1, torch.float32, nesterov=True) - start * (1 - 0.02 * 0.1)) / 0.02
    assert 0.15 < float(moved.pow(2).mean().sqrt()) < 0.25


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=8),
    ranks=st.integers(1, 5),
    evenly=st.booleans(),
)
def test_every_part_goes_to_one_rank_that_holds_some_of_its_matrix_and_comes_back(
    shapes: list[tuple[int, int]], ranks: int, evenly: bool
) -> None:
    held = cut_evenly(shapes, ranks) if evenly else cut_flat(shapes, ranks)
    plans = [plan_work(held, rank) for rank in range(ranks)]
    for a, b in itertools.product(range(ranks), repeat=2):
        assert plans[a].sent[b] == plans[b].received[a]
    for rank, plan in enumerate(plans):
        assert sorted(plan.mine, key=str) == sorted(held[rank], key=str)
        for name in {part.name for part in plan.theirs}:
            mine = sorted((part for part in plan.theirs if part.name == name), key=lambda part: part.start)
            assert sum(part.numel for part in mine) == math.prod(mine[0].shape)  # whole
            assert [part.start for part in mine[1:]] == [part.start + part.numel for part in mine[:-1]]
            assert any(part.name == name for part in held[rank])
    assert sum(len({part.name for part in plan.theirs}) for plan in plans) == len(shapes)


def cut_flat(shapes: list[tuple[int, int]], ranks: int) -> list[list[Part]]:
    """As ZeRO 1 and 2 do: one flat tensor, in equal parts."""
    length = -(-sum(map(math.prod, shapes)) // ranks)
    held: list[list[Part]] = [[] for _ in range(ranks)]
    at = 0
    for number, shape in enumerate(shapes):
        for rank in range(ranks):
            begin, end = max(at, rank * length), min(at + math.prod(shape), (rank + 1) * length)
            if begin < end:
                held[rank].append(Part(f"m{number}", shape, begin - at, end - begin, begin - rank * length))
        at += math.prod(shape)
    return held


def cut_evenly(shapes: list[tuple[int, int]], ranks: int) -> list[list[Part]]:
    """As ZeRO 3 does: each matrix in equal parts."""
    held: list[list[Part]] = [[] for _ in range(ranks)]
    offset = 0
    for number, shape in enumerate(shapes):
        length = -(-math.prod(shape) // ranks)
        for rank in range(ranks):
            numel = min(length, math.prod(shape) - rank * length)
            if numel > 0:
                held[rank].append(Part(f"m{number}", shape, rank * length, numel, offset))
        offset += length
    return held


def test_equal_matrices_are_shared_out_evenly_where_all_ranks_hold_some_of_each() -> None:
    plans = [plan_work(cut_evenly([(6, 6)] * 8, 4), rank) for rank in range(4)]
    assert [len({part.name for part in plan.theirs}) for plan in plans] == [2, 2, 2, 2]


def test_where_a_rank_holds_whole_matrices_it_works_on_them_itself() -> None:
    plans = [plan_work(cut_flat([(6, 6)] * 4, 2), rank) for rank in range(2)]
    assert [plan.sent for plan in plans] == [(72, 0), (0, 72)]


def test_one_rank_maps_its_matrices_in_place_of_any() -> None:
    flat = torch.arange(20.0)
    parts = [Part("a", (2, 3), 0, 6, 1), Part("b", (3, 4), 0, 12, 8)]
    found = dict(
        map_matrices(plan_work([parts], 0), lambda: flat, lambda matrix: matrix * matrix.shape[0], torch.float32)
    )
    assert torch.equal(found[parts[0]], flat[1:7] * 2)
    assert torch.equal(found[parts[1]], flat[8:20] * 3)
