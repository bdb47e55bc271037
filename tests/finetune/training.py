"""Fine-tuning recipes on the engine, on however many ranks there are, as the trainer's loop does it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from scaletrain.assemble.finetuning import Finetuning, open_job
from scaletrain.assemble.settle import Launch, settle_launch
from scaletrain.config.deepspeed import settle
from scaletrain.config.load import load_with_deepspeed, need_finetuning
from scaletrain.data.order import Share
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.evaluate import Evaluation, evaluate
from scaletrain.engine.state import RunState
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.runtime.seed import seed_step
from scaletrain.runtime.world import World
from scaletrain.tasks.finetune import Finetune
from tests.engine.training import resumed

ZERO = "deepspeed=ds_configs/zero{}.json"


class Trained(NamedTuple):
    """`losses`: the mean of each step; `first`: the weights before it, where a rank holds them whole."""

    losses: list[float]
    first: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    engine: Engine
    task: Finetune
    job: Finetuning


def opened(recipe: Path, overrides: Sequence[str] = ()) -> tuple[Finetuning, Launch]:
    loaded, preset = load_with_deepspeed(recipe, overrides)
    settled = settle(need_finetuning(loaded, recipe), preset)
    launch = settle_launch(settled, preset, World(size=dist.size(), rank=dist.rank()))
    return open_job(settled, launch.precision), launch


def train(
    recipe: str,
    overrides: Sequence[str],
    steps: int,
    *,
    root: Path | None = None,
    save_at: int | None = None,
    resume: bool = False,
) -> Trained:
    """Steps (first..steps); saves or resumes below `root`."""
    job, launch = opened(Path(recipe), overrides)
    task, state = job.task(job.data), RunState()
    engine = Engine(task, launch.deepspeed, job.recipe.optim, torch.device("cpu"))
    if resume:
        assert root is not None
        state = resumed(engine, root)
    share = Share(dist.rank(), dist.size(), launch.batch.micro_batch, launch.batch.accumulation)
    source = job.data.steps(job.data.reading({}, 0), share, start=state.samples_seen, position=None, pin=False)
    losses, first = [], weights(engine)
    while state.step < steps:
        batches = next(source).batches
        (weight,) = dist.sum_integers([sum(map(task.weight, batches))])
        seed_step(job.recipe.seed, state.samples_seen)
        losses.append(engine.train_step(batches, lr_at(state.step, job.recipe.optim, steps), weight).loss())
        state = state.advance(launch.batch.global_batch, weight)
        if state.step == save_at:
            assert root is not None
            stage = launch.deepspeed["zero_optimization"]["stage"]
            identity = Identity(layout={"zero_stage": stage}, model={}, data={})
            checkpoint.finish(checkpoint.begin(root, engine, state, identity, {}))
    return Trained(losses, first, weights(engine), engine, task, job)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in engine._engine.module.named_parameters()}


def evaluated(trained: Trained, batch_size: int) -> Evaluation:
    held_out: Any = trained.job.data.validation
    return evaluate(trained.engine, trained.task, held_out, Share(dist.rank(), dist.size(), batch_size, 1), None)
