"""The memory of one rank from its start to a checkpoint and on, for plan_memory.py, which starts as many as there are
ranks.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.rank_memory '{"layers": 2, ...}'

The fields of rank_steps.Steps as JSON. Rank 0 prints the figures as one line of JSON.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import resident
from benchmarks.rank_steps import Steps, bind, build_engine
from benchmarks.traffic import Collectives
from scaletrain.cluster.env import read_world
from scaletrain.engine.engine import prepare_process
from scaletrain.runtime import dist


def measure(steps: Steps) -> dict[str, Any]:
    """Bytes above what the process holds with all libraries loaded: of the rank that held most, at most until each
    point, and the bytes that collectives were given in a step."""
    world = read_world(os.environ)
    bind(world)
    dist.start(world)
    device = dist.device_of(world)
    prepare_process(device)
    import deepspeed  # noqa: F401  costs memory of its own
    import torch._dynamo  # noqa: F401  as does what the first step of an optimizer loads

    dist.sum_numbers([1.0])
    torch.randn(512, 512, device=device).to(torch.bfloat16).square().sum()
    before = resident.begin(device)
    engine = build_engine(steps, device)
    ids = torch.randint(0, steps.vocab, (steps.samples, steps.context + 1))
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}

    def step() -> None:
        engine.train_step([batch], 1e-4, steps.samples * steps.context * dist.size())

    found = {"built": resident.peak(device) - before}
    for _ in range(steps.steps):
        step()
    found["trained"] = resident.peak(device) - before
    with tempfile.TemporaryDirectory() as folder:
        engine.writer(copy=True)(Path(folder))
    step()
    found["saved"] = resident.peak(device) - before
    with Collectives() as collectives:
        step()
    found["held"] = resident.begin(device) - before
    return {**{name: max(dist.gather(size)) for name, size in found.items()}, "whole_bytes": dict(collectives.whole)}


def main() -> None:
    found = measure(Steps(**json.loads(sys.argv[1])))
    if dist.rank() == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
