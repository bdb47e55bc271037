"""The digest of a training state: the same however it is cut, another as soon as anything is another."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from scaletrain.engine.digest import BLOCK, KINDS, STEP, _multipliers, check, shown, sum_of_steps, sums
from scaletrain.engine.fragments import Piece
from scaletrain.engine.state_files import Entry
from scaletrain.errors import CheckpointError

SIZE = 3 * BLOCK + 777
VALUES = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


def weight(values: torch.Tensor, start: int = 0, name: str = "w") -> int:
    return sums([Entry("weight", name, start, values)])["weight"]


WHOLE = weight(VALUES)


@pytest.mark.parametrize("seed", range(5))
def test_any_cutting_gives_the_same_sum(seed: int) -> None:
    draw = np.random.default_rng(seed)
    cuts = [0, *sorted(draw.integers(0, SIZE, 9).tolist()), SIZE]
    entries = [Entry("weight", "w", a, VALUES[a:b]) for a, b in pairwise(cuts)]
    assert sums(entries)["weight"] == WHOLE
    assert sum(sums([entry])["weight"] for entry in entries) % 2**64 == WHOLE  # as ranks add theirs up
    assert sums(reversed(entries))["weight"] == WHOLE


def test_a_change_of_any_bit_of_any_element_changes_the_sum() -> None:
    bits = VALUES.clone().view(torch.int32)
    for place in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, SIZE - 1):
        for bit in range(32):
            flip = (1 << bit) - (2**32 if bit == 31 else 0)
            bits[place] ^= flip
            assert weight(bits.view(torch.float32)) != WHOLE, (place, bit)
            bits[place] ^= flip
    assert weight(bits.view(torch.float32)) == WHOLE


@pytest.mark.parametrize("places", [(0, 1), (5, BLOCK - 1), (5, BLOCK + 5), (BLOCK - 1, BLOCK), (7, 2 * BLOCK + 7)])
@pytest.mark.parametrize("pair", [(1.0, -1.0), (1.5, 1.25), (0.0, -0.0), (3.0, 1e-30)])
def test_two_elements_that_change_places_change_the_sum(places: tuple[int, int], pair: tuple[float, float]) -> None:
    one, other = VALUES.clone(), VALUES.clone()
    one[list(places)] = torch.tensor(pair)
    other[list(places)] = torch.tensor(pair[::-1])
    assert weight(one) != weight(other)


def test_the_multipliers_of_a_block_are_odd_and_differ_in_their_lowest_33_bits() -> None:
    multipliers = _multipliers(torch.device("cpu")).numpy().view(np.uint64)
    assert (multipliers % 2 == 1).all()
    assert len(np.unique(multipliers % 2**33)) == BLOCK


def test_the_sum_tells_kind_name_and_place() -> None:
    found = [weight(VALUES), weight(VALUES, name="v"), weight(VALUES, start=1), weight(VALUES, start=BLOCK)]
    found.append(sums([Entry("exp_avg", "w", 0, VALUES)])["exp_avg"])
    assert len(set(found)) == len(found)


def test_an_order_and_a_repetition_of_whole_blocks_are_told() -> None:
    blocks = [VALUES[:BLOCK], VALUES[BLOCK : 2 * BLOCK]]
    found = {weight(torch.cat([blocks[i] for i in order])) for order in ((0, 1), (1, 0), (0, 0), (1, 1))}
    assert len(found) == 4


def test_a_digest_is_the_same_in_every_version() -> None:
    """Checkpoints that are on disks hold it: another algorithm needs another name in the manifest."""
    entries = [Entry("weight", "layers.0.up", 31_990, torch.arange(20.0)), Entry("exp_avg", "b", 0, torch.ones(3))]
    held = [Piece("b", 0, 3, torch.empty(3), 0)]
    assert shown({**sums(entries), STEP: sum_of_steps(held, {"b": 7})}) == GOLDEN


GOLDEN = {
    "weight": "962710fe6f300000",
    "exp_avg": "cbde4eac46800000",
    "exp_avg_sq": "0000000000000000",
    "step": "6d5fe0e22d92f4e9",
}


def test_masters_in_bfloat16_have_the_digest_of_what_is_stored() -> None:
    low = VALUES.bfloat16()
    assert weight(low) == weight(low.float()) != WHOLE


def test_no_piece_counts_nothing() -> None:
    assert sums([]) == sums([Entry("weight", "w", 5, torch.empty(0))]) == dict.fromkeys(KINDS, 0)


def test_counters_add_up_over_pieces_and_tell_a_step() -> None:
    whole = Piece("w", 0, 10, torch.empty(10), 0)
    assert sum_of_steps([whole.part(0, 3), whole.part(3, 10)], {"w": 4}) == sum_of_steps([whole], {"w": 4}) != 0
    assert sum_of_steps([whole], {"w": 5}) != sum_of_steps([whole], {"w": 4})


def test_kinds_that_differ_are_named() -> None:
    stored = shown({"weight": 1, "exp_avg": 2})
    check({"weight": 1, "exp_avg": 2}, stored, "step-5")
    with pytest.raises(
        CheckpointError,
        match="step-5: the state that was loaded is not the one that was saved: exp_avg .saved 0{15}2, loaded 0{15}3. "
        "differ: rename this folder",
    ):
        check({"weight": 1, "exp_avg": 3}, stored, "step-5")


@pytest.mark.slow
def test_it_costs_a_fraction_of_a_second_a_gigabyte() -> None:
    entry = Entry("weight", "w", 0, torch.randn(1 << 27))
    sums([entry])
    began = time.perf_counter()
    for _ in range(3):
        sums([entry])
    rate = (time.perf_counter() - began) / (3 * entry.values.numel() * 4 / 1e9)
    print(f"{rate:.3f} s a GB")
    assert rate < 0.5  # a busy machine
