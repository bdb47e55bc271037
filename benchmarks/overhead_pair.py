"""One pair of step_overhead.py: the engine and a bare torch loop in this process, in alternating blocks of steps.

    python benchmarks/overhead_pair.py --stage 1 --precision fp32 [--profile]

Both start from the same weights and see the same batches, made of random tokens before. A round is A B B A, so that a
drift of the machine's speed falls on both alike. Prints one JSON object: the seconds of each step, by round; with
--profile milliseconds a step by part instead. Under torchrun it is one rank of several.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.bare_loop import BareLoop
from benchmarks.bench_data import RECIPE, Sizes, overrides_for
from benchmarks.step_parts import milliseconds_by_part
from scaletrain.assemble.settle import Launch, set_threads, settle_launch
from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.deepspeed import settle
from scaletrain.config.load import load_with_deepspeed, need_pretraining
from scaletrain.config.schema import Recipe
from scaletrain.data.rows import Batch
from scaletrain.engine.engine import Engine
from scaletrain.model.init import whole_parameter
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from scaletrain.tasks.pretrain import PretrainTask

VOCABULARY = 8192
LR = 3e-4


@dataclass(frozen=True)
class Pair:
    """A step of each, on whatever `batches` holds."""

    ours: Callable[[], torch.Tensor]
    bare: Callable[[], torch.Tensor]


def settled_launch(sizes: Sizes, stage: int, precision: str, accumulation: int, world: World) -> tuple[Launch, Recipe]:
    """What `launch/pretrain.py` would run; sizes.batch samples a rank and step. Nothing is read but the recipe."""
    whole = Sizes(sizes.layers, sizes.heads, sizes.hidden, sizes.context, sizes.batch * world.size)
    overrides = overrides_for(Path("data"), Path("run"), whole, 10**6, stage)
    overrides += [f"train.precision={precision}", f"train.micro_batch_size={sizes.batch // accumulation}"]
    recipe, preset = load_with_deepspeed(RECIPE, overrides)
    recipe = need_pretraining(settle(recipe, preset), RECIPE)
    return settle_launch(recipe, preset, world), recipe


def build_pair(sizes: Sizes, stage: int, precision: str, accumulation: int, world: World) -> Pair:
    launch, recipe = settled_launch(sizes, stage, precision, accumulation, world)
    architecture = resolve_architecture(recipe.model, VOCABULARY, sizes.context)
    task = PretrainTask(architecture, None, seed=1)  # type: ignore[arg-type]
    model = task.build_model()
    task.initialise(model, whole_parameter)
    loop = BareLoop(model, recipe.optim, "bf16-master" if precision == "bf16" else "fp32", launch.device)
    torchs_linear = F.linear
    engine = Engine(task, launch.deepspeed, recipe.optim, launch.device)
    engines_linear = F.linear  # ZeRO-3 puts its own there for good: each side works with the one that it would have
    batches = random_batches(sizes, accumulation)
    weight = sizes.batch * sizes.context * world.size

    def ours() -> torch.Tensor:
        F.linear = engines_linear
        return engine.train_step(batches, LR, weight).loss_sum

    def bare() -> torch.Tensor:
        F.linear = torchs_linear
        return loop.train_step(batches, LR, weight)

    return Pair(ours, bare)


def random_batches(sizes: Sizes, accumulation: int) -> list[Batch]:
    """This rank's micro-batches."""
    generator = torch.Generator().manual_seed(dist.rank())
    shape = (sizes.batch // accumulation, sizes.context + 1)
    drawn = [torch.randint(VOCABULARY, shape, generator=generator) for _ in range(accumulation)]
    return [{"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()} for ids in drawn]


def seconds_of(step: Callable[[], torch.Tensor], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def run_round(pair: Pair, block: int) -> dict[str, list[float]]:
    ours, bare = seconds_of(pair.ours, block), seconds_of(pair.bare, block)
    bare += seconds_of(pair.bare, block)
    return {"ours": ours + seconds_of(pair.ours, block), "bare": bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, choices=range(4), required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--accumulation", type=int, default=1)
    for name, value in (("layers", 6), ("heads", 6), ("hidden", 384), ("context", 512), ("batch", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    world = read_world(os.environ)
    set_threads(world)
    dist.start(world)
    sizes = Sizes(args.layers, args.heads, args.hidden, args.context, args.batch)
    pair = build_pair(sizes, args.stage, args.precision, args.accumulation, world)
    run_round(pair, 1)  # warm-up: buffers, DeepSpeed's trace of the modules
    if args.profile:
        result: object = {
            name: milliseconds_by_part(step, args.rounds * args.block)
            for name, step in (("ours", pair.ours), ("bare", pair.bare))
        }
    else:
        result = [run_round(pair, args.block) for _ in range(args.rounds)]
    if world.is_first:
        print(json.dumps(result), flush=True)
    dist.gather(None)  # a rank that left early would break the other's last collective
    os._exit(0)  # DeepSpeed's threads and gloo's may hold the exit up


if __name__ == "__main__":
    main()
