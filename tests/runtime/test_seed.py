"""Random numbers of a step: a function of seed, sample and rank."""

import torch

from scaletrain.runtime.seed import seed_step
from tests.ranks import run_ranks


def draw(seed: int, samples_seen: int) -> list[float]:
    seed_step(seed, samples_seen)
    return torch.rand(4).tolist()


def draws() -> list[list[float]]:
    torch.rand(5)  # what was drawn before does not count
    return [draw(1, 8), draw(1, 16), draw(2, 8), draw(1, 8)]


def test_a_step_draws_what_its_place_in_the_run_says() -> None:
    for first, later, other_seed, again in run_ranks(draws, 2):
        assert first == again
        assert first != later != other_seed != first


def test_ranks_draw_apart() -> None:
    one, two = run_ranks(draws, 2)
    assert all(a != b for a, b in zip(one, two, strict=True))
