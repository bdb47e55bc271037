"""The search for the largest micro-batch, against a machine whose memory is known."""

import pytest

from benchmarks.largest import MOST, largest, predicted


class Machine:
    """Holds 1,000 bytes and 10 a sample; a batch beyond `memory` dies."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.tried: list[int] = []

    def __call__(self, batch: int) -> int | None:
        self.tried.append(batch)
        peak = 1000 + 10 * batch
        return peak if peak <= self.memory else None


def test_it_doubles_until_the_run_dies_then_bisects() -> None:
    machine = Machine(1000 + 10 * 13)
    assert largest(machine) == 13
    assert machine.tried == [1, 2, 4, 8, 16, 12, 14, 13]


@pytest.mark.parametrize("fitting", [1, 2, 3, 31, 64, 100, 1000])
def test_the_batch_fits_and_a_sixteenth_more_does_not(fitting: int) -> None:
    found = largest(Machine(1000 + 10 * fitting))
    assert found <= fitting <= found + max(0, found // 16)


def test_with_a_limit_nothing_is_run_that_should_go_beyond_it() -> None:
    machine = Machine(10**9)
    assert largest(machine, limit=1000 + 10 * 13) == 13
    assert machine.tried == [1, 2, 4, 8, 12, 13]


def test_with_a_limit_a_run_that_went_beyond_it_all_the_same_does_not_fit() -> None:
    peaks = {1: 1010, 2: 1020, 3: 1150, 4: 1200}  # less than predicted until 2, then a jump
    assert largest(peaks.get, limit=1100) == 2


def test_where_not_even_one_sample_fits_there_is_none() -> None:
    machine = Machine(500)
    assert largest(machine) == 0
    assert machine.tried == [1]


def test_the_search_ends_where_everything_fits() -> None:
    machine = Machine(10**9)
    assert largest(machine) == MOST
    assert machine.tried[-1] == MOST


def test_the_peak_of_a_batch_is_on_the_line_through_the_two_largest() -> None:
    assert predicted({1: 1000}, 2) == 0
    assert predicted({1: 5000, 2: 1020, 4: 1040}, 8) == 1080
    assert predicted({1: 1020, 2: 1010}, 8) == 1010  # noise: more samples do not take less
