"""What a start does not load."""

import math
import sys

import torch

from benchmarks.rank_steps import Steps, build_engine
from scaletrain.engine.engine import Engine
from scaletrain.tasks.pretrain import PretrainTask
from tests.engine.training import OPTIM, engine_dict
from tests.ranks import run_ranks


def loads_compiler() -> list[bool]:
    """Whether torch's compiler is there after two steps at each stage, with each mode of checkpointing activations."""
    found = []
    for stage, mode in enumerate(("none", "full", "selective", "every_2")):
        steps = Steps(2, 2, 64, 64, 16, 2, stage, 2, "llama", mode)
        engine = build_engine(steps, torch.device("cpu"))
        ids = torch.zeros(2, 16, dtype=torch.int64)
        for _ in range(2):
            engine.train_step([{"input_ids": ids, "labels": ids}], 1e-3, 32)
        found.append("torch._dynamo.eval_frame" in sys.modules)
    return found


def compiles_under_zero_init() -> float:
    """The loss of a step of compiled blocks that zero.Init builds."""
    task = PretrainTask(Steps(1, 2, 64, 64, 16, 2, 3, 1).architecture(), None, seed=1, compiled=True)  # type: ignore[arg-type]
    engine = Engine(task, engine_dict(3, "fp32", 1), OPTIM, torch.device("cpu"))
    ids = torch.arange(128).view(8, 16) % 64
    return engine.train_step([{"input_ids": ids, "labels": ids}], 1e-3, 128).loss()


def test_compiled_blocks_are_built_under_zero_init() -> None:
    (loss,) = run_ranks(compiles_under_zero_init, 1)
    assert 0.8 * math.log(64) < loss < math.log(64)  # a token's own embedding says most of it


def test_a_run_loads_torchs_compiler_only_to_compile() -> None:
    assert run_ranks(loads_compiler, 1) == [[False] * 4]
