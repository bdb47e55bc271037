"""Learning rates and decay groups."""

import itertools
import math

import pytest
from torch import nn

from scaletrain.config.schema import Optim
from scaletrain.optim.groups import parameter_groups
from scaletrain.optim.schedule import lr_at, warmup_steps


def rates(total: int, **fields: object) -> list[float]:
    optim = Optim(lr=1.0, min_lr_ratio=0.1, warmup_steps=10, **fields)  # type: ignore[arg-type]
    return [lr_at(step, optim, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant", "inverse_sqrt"])
def test_warmup_is_linear_and_reaches_the_peak(schedule: str) -> None:
    found = rates(100, schedule=schedule)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(found) == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "inverse_sqrt"])
def test_rate_never_rises_after_warmup_and_never_falls_below_the_floor(schedule: str) -> None:
    after = rates(200, schedule=schedule)[10:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert min(after) >= 0.1 - 1e-12


def test_cosine_is_half_way_in_the_middle() -> None:
    assert rates(210, schedule="cosine")[110] == pytest.approx(0.1 + 0.9 * 0.5)


def test_wsd_is_flat_then_falls_in_its_last_share() -> None:
    found = rates(100, schedule="wsd", decay_ratio=0.2)
    assert found[10:81] == pytest.approx([1.0] * 71)
    assert found[90] == pytest.approx(1 - 0.9 * 0.5)


def test_inverse_sqrt_follows_its_formula() -> None:
    assert rates(100, schedule="inverse_sqrt")[39] == pytest.approx(math.sqrt(10 / 40))


def test_default_warmup_is_a_hundredth_but_at_least_ten_and_never_longer_than_the_run() -> None:
    assert [warmup_steps(Optim(), n) for n in (5, 100, 5000)] == [5, 10, 50]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.head = nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight


def test_only_matrices_that_are_no_embedding_decay() -> None:
    groups = parameter_groups(Tied(), 0.1)
    assert [(g["name"], g["weight_decay"], g["param_names"]) for g in groups] == [
        ("decay", 0.1, ["linear.weight"]),
        ("no_decay", 0.0, ["embedding.weight", "norm.weight", "norm.bias", "linear.bias"]),
    ]


def test_frozen_parameters_are_in_no_group() -> None:
    model = Tied()
    model.linear.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(model, 0.1)] == ["no_decay"]
