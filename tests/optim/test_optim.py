"""Learning rates and decay groups."""

import itertools
import math

import pytest
import torch
from torch import nn

from scaletrain.config.schema import Optim
from scaletrain.model.gpt import GPT
from scaletrain.optim.groups import parameter_groups
from scaletrain.optim.schedule import lr_at, warmup_steps
from tests.model.tiny import KINDS


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


class Layered(Tied):
    """A stack as in transformers' models: a matrix, what adapters add to one, a small embedding and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(6, 4))
        self.layers = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 8), "bias": nn.Embedding(3, 2)})])
        self.layers[0].register_parameter("ia3", nn.Parameter(torch.ones(8, 1)))
        self.layers[0].register_parameter("experts", nn.Parameter(torch.ones(2, 4, 4)))
        self.classifier = nn.Linear(4, 2)


def test_muon_takes_the_matrices_of_the_layers_and_nothing_else() -> None:
    groups = parameter_groups(Layered(), 0.1, muon=True)
    assert [(g["name"], g["weight_decay"], g["param_names"]) for g in groups] == [
        (
            "decay",
            0.1,
            ["positions", "linear.weight", "layers.0.ia3", "layers.0.experts", "classifier.weight"],
        ),
        (
            "no_decay",
            0.0,
            [
                *("embedding.weight", "norm.weight", "norm.bias", "linear.bias"),
                *("layers.0.up.bias", "layers.0.bias.weight", "classifier.bias"),
            ],
        ),
        ("orthogonal", 0.1, ["layers.0.up.weight"]),
    ]


def test_muon_takes_those_of_every_family_and_keeps_the_learning_rates_of_the_layers() -> None:
    scale = lambda name: 0.5 if ".0." in name else 1.0  # noqa: E731
    for kind, arch in KINDS.items():
        model = GPT(arch)
        groups = parameter_groups(model, 0.1, scale, muon=True)
        found = {name: g for g in groups if g["name"] == "orthogonal" for name in g["param_names"]}
        matrices = [n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
        assert sorted(found) == sorted(matrices) and len(matrices) >= 4, kind
        assert all(group["lr_scale"] == scale(name) for name, group in found.items())


def test_frozen_parameters_are_in_no_group() -> None:
    model = Tied()
    model.linear.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(model, 0.1)] == ["no_decay"]
