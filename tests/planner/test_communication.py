"""Planned bytes beside those that DeepSpeed's own comms logger counts."""

from typing import Any

import pytest
import torch

from benchmarks.rank_steps import Steps, build_engine
from benchmarks.traffic import sent
from scaletrain.planner.communication import sent_bytes
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero
from tests.ranks import run_ranks

RANKS = 2
STEPS = [
    Steps(layers=3, heads=2, hidden=64, vocab=512, context=32, samples=2, stage=stage, steps=1, reduce_bucket=50_000)
    for stage in range(4)
]
# The collective, and how many of the logger's message sizes make the whole tensor: of a gather it counts what a rank
# gives (deepspeed/utils/comms_logging.py).
LOGGED = {
    "all_reduce": ("all_reduce", 1),
    "all_gather_into_tensor": ("all_gather", RANKS),
    "reduce_scatter_tensor": ("reduce_scatter", 1),
    "broadcast": ("broadcast", 1),
}


def logged_bytes(steps: Steps) -> dict[str, int]:
    """Of an optimizer step's collectives, the whole tensors by kind."""
    engine = build_engine(steps, torch.device("cpu"))
    import deepspeed

    ids = torch.randint(0, steps.vocab, (steps.samples, steps.context + 1), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
    count = steps.samples * steps.context * RANKS
    engine.train_step([batch], 1e-4, count)  # the first makes the optimizer's state
    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)
    engine.train_step([batch], 1e-4, count)
    whole: dict[str, int] = {}
    for name, sizes in deepspeed.comm.comm.comms_logger.comms_dict.items():
        kind, times = LOGGED[name]
        whole[kind] = whole.get(kind, 0) + times * sum(size * told[0] for size, told in sizes.items())
    return whole


@pytest.mark.parametrize("steps", STEPS, ids=[f"stage {steps.stage}" for steps in STEPS])
def test_deepspeeds_comms_logger_counts_what_is_planned(steps: Steps) -> None:
    counted: list[dict[str, Any]] = run_ranks(logged_bytes, RANKS, steps)
    work = Workload(
        arch=steps.architecture(),
        context=steps.context,
        micro_batch=steps.samples,
        accumulation=1,
        checkpointing="none",
        precision="bf16",
        zero=Zero(steps.stage, reduce_bucket=steps.reduce_bucket),
        ranks=RANKS,
        device="cpu",
    )
    assert sent_bytes(work) == pytest.approx(sent(counted[0], RANKS), rel=0.02)
