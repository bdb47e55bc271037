"""When a dead launch is started again, and on how many ranks."""

from scaletrain.cluster.restarts import Restart, Restarts
from scaletrain.config.fewer_ranks import Fit


def halves(at_most: int) -> Fit | None:
    """A recipe that runs on 8, 4 and 2 ranks."""
    return next((Fit(ranks, 16 // ranks) for ranks in (8, 4, 2) if ranks <= at_most), None)


def restart(policy: Restarts, *, progressed: bool = False, gpus: int | None = None) -> Restart:
    found = policy.after_death(progressed=progressed, gpus=gpus)
    assert isinstance(found, Restart), found
    return found


def test_a_new_step_sets_the_count_and_the_wait_back() -> None:
    policy = Restarts(2, ranks=1, fewer=lambda at_most: None)
    for _ in range(50):
        found = restart(policy, progressed=True)
        assert (found.number, found.wait_seconds) == (1, 1)
    assert restart(policy).number == 2
    assert policy.after_death(progressed=False, gpus=None) == (
        "3 launches in a row saved no new step (train.max_restarts=2)"
    )
    assert restart(policy, progressed=True).number == 1


def test_the_wait_doubles_up_to_a_minute() -> None:
    policy = Restarts(9, ranks=1, fewer=lambda at_most: None)
    assert [restart(policy).wait_seconds for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_no_restart_is_allowed_at_all() -> None:
    policy = Restarts(0, ranks=1, fewer=lambda at_most: None)
    for saved in (True, False):
        assert policy.after_death(progressed=saved, gpus=None) == "train.max_restarts=0 allows no restart"


def test_each_two_fruitless_deaths_at_a_number_of_ranks_lead_to_the_next() -> None:
    policy = Restarts(9, ranks=8, fewer=halves)
    assert [restart(policy).ranks for _ in range(7)] == [8, 4, 4, 2, 2, 2, 2]


def test_a_new_step_keeps_the_number_of_ranks() -> None:
    policy = Restarts(9, ranks=8, fewer=halves)
    ranks = [restart(policy, progressed=saved).ranks for saved in (False, True, False, True, False, False, True)]
    assert ranks == [8, 8, 8, 8, 8, 4, 4]


def test_lost_gpus_lead_to_fewer_ranks_at_once() -> None:
    policy = Restarts(3, ranks=8, fewer=halves)
    found = restart(policy, progressed=True, gpus=7)
    assert (found.ranks, found.fewer) == (4, (4, "7 GPUs are left for 8 ranks"))
    assert restart(policy, progressed=True, gpus=8).ranks == 4, "never more again"
    assert policy.after_death(progressed=True, gpus=1) == (
        "1 GPU is left for 4 ranks: repair them, or set train.min_ranks to what may go on"
    )
