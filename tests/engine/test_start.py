"""What a start does not load."""

import sys

import torch

from benchmarks.rank_steps import Steps, build_engine
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


def test_a_run_loads_torchs_compiler_only_to_compile() -> None:
    assert run_ranks(loads_compiler, 1) == [[False] * 4]
