"""Training by the engine and by a bare torch loop, on the same weights and batches."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scaletrain.config.schema import Optim
from scaletrain.data.order import Order, Share
from scaletrain.data.rows import RowPart
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.optim.groups import parameter_groups
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.tasks.task import Task


def engine_dict(stage: int, precision: str, ranks: int, accumulation: int = 1, sharing: int = 1) -> dict[str, Any]:
    """A DeepSpeed config for batches of 8 samples, of which `sharing` ranks share each."""
    return {
        "train_batch_size": 8 * sharing,
        "train_micro_batch_size_per_gpu": 8 * sharing // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        # DeepSpeed keeps small parameters whole at stage 3; 0 has them partitioned, as large ones are.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 10**9,
    }


TOTAL_STEPS = 60  # of the schedule
# Not higher: after five steps of warm-up a GPT at 3e-3 is unstable, and rounding differences grow a hundredfold.
OPTIM = Optim(lr=1e-3, warmup_steps=5, grad_clip=0.5, weight_decay=0.3)


def train(
    stage: int,
    precision: str,
    task: Task,
    *,
    steps: int = 20,
    accumulation: int = 1,
    save_at: int | None = None,
    root: Path | None = None,
    resume: bool = False,
    sharing: int = 1,
    optim: Optim = OPTIM,
    zero: Mapping[str, Any] | None = None,
) -> list[float]:
    """Losses of steps (first..steps) with this stage on however many ranks there are, of which `sharing` share each
    sample; saves or resumes below `root`. `zero`: further keys of zero_optimization."""
    config = engine_dict(stage, precision, dist.size(), accumulation, sharing)
    config["zero_optimization"] |= zero or {}
    share = share_of(config["train_micro_batch_size_per_gpu"], accumulation, sharing)
    engine = Engine(task, config | {"gradient_clipping": optim.grad_clip}, optim, torch.device("cpu"))
    state, losses, rows = RunState(), [], task.rows("train")
    identity = Identity(layout={"zero_stage": stage}, model={}, data={})
    if resume:
        assert root is not None
        state = resumed(engine, root)
    order = Order(np.array([len(rows)]), seed=1)
    while state.step < steps:
        batches = [share.part.of(rows.fetch(ids)) for ids in share.of(order.ids(state.samples_seen, 8))]
        (weight,) = dist.sum_integers([sum(map(task.weight, batches))])
        losses.append(engine.train_step(batches, lr_at(state.step, optim, TOTAL_STEPS), weight).loss())
        state = state.advance(8, weight)
        if state.step == save_at:
            assert root is not None
            checkpoint.finish(checkpoint.begin(root, engine, state, identity, {}))
    return losses


def train_and_resume(
    root: Path, cases: Iterable[tuple[int, str]], task: Callable[[], Task], optim: Optim, steps: int
) -> dict[tuple[int, str], tuple[list[float], list[float]]]:
    """The losses of each ZeRO stage and precision, and those of its other half after a resume from a checkpoint at step
    10, in the folder PRECISION-STAGE below `root`."""
    found = {}
    for stage, precision in cases:
        folder = root / f"{precision}-{stage}"
        whole = train(stage, precision, task(), steps=steps, save_at=10, root=folder, optim=optim)
        again = train(stage, precision, task(), steps=steps, resume=True, root=folder, optim=optim)
        found[stage, precision] = whole, again
    return found


def share_of(micro_batch: int, accumulation: int = 1, sharing: int = 1) -> Share:
    """What this rank reads."""
    rank, ranks = dist.rank(), dist.size()
    part = RowPart(rank % sharing, sharing)
    return Share(rank // sharing, ranks // sharing, micro_batch, accumulation, part)


def resumed(engine: Engine, root: Path) -> RunState:
    """Takes the newest checkpoint below `root`."""
    found = checkpoint.newest_good(root, lambda name, why: None)
    assert found is not None
    engine.load(found.folder, found.manifest["files"], found.manifest["digest"])
    return found.state


def train_plainly(task: Task, steps: int = 20) -> list[float]:
    """The same training by a bare torch loop, float32, one process: what the engine must equal."""
    rows = task.rows("train")
    order = Order(np.array([len(rows)]), seed=1)
    model = task.build_model()
    task.initialise(model, lambda parameter: nullcontext(True))
    groups = parameter_groups(model, OPTIM.weight_decay)
    for group in groups:
        del group["param_names"]
    optimizer = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps)
    losses = []
    for step in range(steps):
        batch = rows.fetch(order.ids(step * 8, 8))
        loss = task.loss_sums(model, batch)["loss"] / task.weight(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, OPTIM, TOTAL_STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def largest_difference(a: list[float], b: list[float]) -> float:
    assert len(a) == len(b)
    return max(abs(x - y) for x, y in zip(a, b, strict=True))
