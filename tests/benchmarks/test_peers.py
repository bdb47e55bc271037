"""What makes the comparison honest: the bare loop trains as the engine does, and the plain GPT is our GPT."""

import pytest
import torch

from benchmarks.bare_loop import BareLoop
from benchmarks.bench_data import Sizes
from benchmarks.overhead_pair import build_pair
from benchmarks.plain_gpt import PlainGPT, copy_weights
from benchmarks.step_overhead import figures
from benchmarks.step_parts import milliseconds_by_part, part_of
from benchmarks.turn import Turn, rows_of
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model, Optim
from scaletrain.model.count import count_parameters
from scaletrain.model.gpt import GPT
from scaletrain.model.init import init_parameters
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from tests.ranks import run_ranks

SIZES = Sizes(layers=2, heads=2, hidden=32, context=16, batch=4)


def architecture() -> Architecture:
    return resolve_architecture(Model(family="gpt2", num_layers=2, num_heads=2, hidden_size=32), 256, 16)


def losses(stages: tuple[int, ...], precision: str) -> dict[int, list[tuple[float, float]]]:
    """By stage: the mean losses of three steps, of the engine and of the bare loop."""
    world = World(rank=dist.rank(), size=dist.size())
    pairs = {stage: build_pair(SIZES, stage, precision, 2, world) for stage in stages}
    tokens = SIZES.batch * SIZES.context
    return {
        stage: [(float(pair.ours()) / tokens, float(pair.bare()) / tokens) for _ in range(3)]
        for stage, pair in pairs.items()
    }


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_bare_loop_and_the_engine_give_the_same_losses(ranks: int) -> None:
    for found in run_ranks(losses, ranks, (0, 1, 2, 3), "fp32"):
        for stage, steps in found.items():
            assert steps[0][0] - steps[-1][0] > 1e-3, "the model learns nothing: the losses would agree by themselves"
            for ours, bare in steps:
                assert ours == pytest.approx(bare, abs=1e-5), f"stage {stage}"


def test_the_bare_loop_in_bf16_rounds_as_the_engine_does() -> None:
    (found,) = run_ranks(losses, 1, (1,), "bf16")
    for ours, bare in found[1]:
        assert ours == pytest.approx(bare, abs=2e-3)


def test_the_plain_gpt_is_ours_in_size_and_function() -> None:
    arch = architecture()
    ours, plain = GPT(arch), PlainGPT(arch)
    init_parameters(ours, seed=1)
    copy_weights(ours, plain)
    assert sum(parameter.numel() for parameter in plain.parameters()) == count_parameters(arch).total
    ids = torch.randint(256, (3, 17), generator=torch.Generator().manual_seed(1))
    theirs, mine = plain(ids[:, :-1], ids[:, 1:]), ours(ids[:, :-1], ids[:, 1:])
    assert theirs.item() == pytest.approx(mine.item(), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16-master", "bf16"])
def test_each_precision_of_the_bare_loop_learns(precision: str) -> None:
    torch.manual_seed(1)
    loop = BareLoop(PlainGPT(architecture()), Optim(), precision, torch.device("cpu"))  # type: ignore[arg-type]
    ids = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    found = [float(loop.train_step([batch], 1e-2, 32)) for _ in range(4)]
    assert found[-1] < found[0] - 10


def test_rows_compare_within_a_round() -> None:
    fast, slow = Turn(1e9, 0.5, 10), Turn(2e9, 1.0, 30)
    rounds = [{"scaletrain, ZeRO 1": fast, "peer": slow}, {"scaletrain, ZeRO 1": slow, "peer": Turn(1e9, 3.0, 20)}]
    ours, peer = rows_of(rounds, tokens=100, flops=1e6)
    assert ours["tokens_per_second"] == {"median": 150.0, "low": 100.0, "high": 200.0}
    assert ours["ours_is_faster_by"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert peer["ours_is_faster_by"] == {"median": 2.5, "low": 2.0, "high": 3.0}
    # A step of 1 s at 1.5 GFLOP/s in the middle, one of 3 s at as many.
    assert peer["share_of_matrix_rate"]["high"] == pytest.approx(1e8 / 1.5e9)
    assert peer["share_of_matrix_rate"]["low"] == pytest.approx(1e8 / 3 / 1.5e9)
    assert peer["peak_memory_bytes"] == 30


def test_overhead_is_taken_within_a_round() -> None:
    found = figures([{"ours": [0.1, 0.3, 0.2], "bare": [0.1]}, {"ours": [0.6], "bare": [0.5, 0.5]}])
    assert found["ratio"] == pytest.approx({"median": 1.6, "low": 1.2, "high": 2.0})
    assert found["overhead_ms"] == pytest.approx({"median": 100.0, "low": 100.0, "high": 100.0})


def test_parts_add_up_and_hooks_stand_apart() -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        model(torch.ones(8, 8)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    found = milliseconds_by_part(step, 3)
    assert {"backward", "optimizer", "norm and clipping", "the rest"} < set(found)
    parts = [value for name, value in found.items() if not name.startswith("whole step")]
    assert sum(parts) == pytest.approx(found["whole step"])
    assert part_of("/x/deepspeed/runtime/zero/linear.py", "forward") == "ZeRO-3's linear"
    assert part_of("/x/torch/nn/modules/linear.py", "forward") is None
