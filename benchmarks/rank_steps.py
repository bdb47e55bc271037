"""Training steps of one rank on random tokens, for scaling.py, which starts as many of these as there are ranks.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.rank_steps '{"layers": 2, ...}'

The fields of `Steps` as JSON. Rank 0 prints the figures as one line of JSON.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks import resident
from benchmarks.record import ROOT
from benchmarks.traffic import Collectives, loopback_bytes
from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model, Optim, OptimizerName
from scaletrain.engine.engine import Engine
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from scaletrain.tasks.pretrain import PretrainTask

ITEMSIZE = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Steps:
    """A model, the samples of `context` tokens that each rank trains in a step, and how."""

    layers: int
    heads: int
    hidden: int
    vocab: int
    context: int
    samples: int
    stage: int
    steps: int
    family: str = "gpt2"
    checkpointing: str = "none"
    precision: str = "bf16"
    warm_up: int = 2
    reduce_bucket: int | None = None  # elements; None: as in ds_configs/
    accumulation: int = 1  # micro-batches of a step, of `samples` each
    optimizer: OptimizerName = "adamw"

    def architecture(self) -> Architecture:
        sizes: dict[str, Any] = {"num_layers": self.layers, "num_heads": self.heads, "hidden_size": self.hidden}
        return resolve_architecture(Model(family=self.family, vocab_size=self.vocab, **sizes), self.vocab, self.context)

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.precision]

    def speed(self, step_seconds: Sequence[float], ranks: int) -> float:
        """Tokens a second of all ranks, by the median step."""
        return self.samples * self.context * ranks / statistics.median(step_seconds)

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def plural(ranks: int) -> str:
    return f"{ranks} rank{'s' if ranks > 1 else ''}"


def read_preset(steps: Steps) -> dict[str, Any]:
    """The DeepSpeed file of the stage."""
    preset: dict[str, Any] = json.loads((ROOT / "ds_configs" / f"zero{steps.stage}.json").read_text(encoding="utf-8"))
    if steps.reduce_bucket is not None:
        preset["zero_optimization"]["reduce_bucket_size"] = steps.reduce_bucket
    return preset


def build_engine(steps: Steps, device: torch.device) -> Engine:
    task = PretrainTask(steps.architecture(), None, seed=1, activation_checkpointing=steps.checkpointing)  # type: ignore[arg-type]
    zero = read_preset(steps)["zero_optimization"]
    config = {
        "train_batch_size": steps.samples * steps.accumulation * dist.size(),
        "train_micro_batch_size_per_gpu": steps.samples,
        "gradient_accumulation_steps": steps.accumulation,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": steps.precision == "bf16"},
        "zero_optimization": zero,
        "timers": {"throughput": {"enabled": False}},
        "steps_per_print": 10**9,
    }
    return Engine(task, config, Optim(name=steps.optimizer), device)


def bind(world: World) -> None:
    """Each rank has its part of the processors, and as many threads."""
    processors = sorted(os.sched_getaffinity(0))
    share = max(1, len(processors) // world.local_size)
    mine = processors[world.local_rank * share : (world.local_rank + 1) * share]
    os.sched_setaffinity(0, mine or processors)
    torch.set_num_threads(share)


def measure(steps: Steps) -> dict[str, Any]:
    world = read_world(os.environ)
    bind(world)
    dist.start(world)
    device = dist.device_of(world)
    engine = build_engine(steps, device)

    def step(context: int, samples: int) -> float:
        ids = torch.randint(0, steps.vocab, (samples, context + 1), generator=torch.Generator().manual_seed(1))
        batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
        began = time.perf_counter()
        engine.train_step([batch], 1e-4, samples * context * dist.size())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    step(8, 1)  # makes the optimizer's state, so that what comes on top is the batch's
    before = resident.begin(device)
    for _ in range(steps.warm_up):
        step(steps.context, steps.samples)
    wire = loopback_bytes()
    seconds = [step(steps.context, steps.samples) for _ in range(steps.steps)]
    wire = None if wire is None else (loopback_bytes() or wire) - wire
    memory = resident.peak(device) - before
    with Collectives() as collectives:
        step(steps.context, steps.samples)
    return {
        "step_seconds": seconds,
        "whole_bytes": dict(collectives.whole),
        "wire_bytes": None if wire is None else wire / steps.steps / dist.size(),
        "held_bytes": before,
        "step_bytes": max(dist.gather(memory)),
    }


def main() -> None:
    found = measure(Steps(**json.loads(sys.argv[1])))
    if dist.rank() == 0:
        print(json.dumps(found), flush=True)
    os._exit(0)  # a thread of gloo's that is still there at the exit aborts the rank, and torchrun with it


if __name__ == "__main__":
    main()
