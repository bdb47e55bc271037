"""A pretraining recipe as the planner takes it. No torch: a plan is told in a second."""

from collections.abc import Mapping
from typing import Any, Literal

from scaletrain.config.architecture import Architecture
from scaletrain.config.deepspeed import batch_plan
from scaletrain.config.schema import BaseRecipe, Precision, Recipe
from scaletrain.engine.plan import plan_run
from scaletrain.engine.state import RunState
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import read_zero


def workload_of(
    recipe: Recipe,
    preset: Mapping[str, Any],
    architecture: Architecture,
    *,
    ranks: int,
    precision: Precision,
    device: Literal["cpu", "cuda"],
) -> Workload:
    """`recipe`: settled with `preset`. ConfigError when its batch does not divide among the ranks."""
    batch = batch_plan(recipe, ranks)
    return Workload(
        arch=architecture,
        context=recipe.data.context_length,
        micro_batch=batch.micro_batch,
        accumulation=batch.accumulation,
        checkpointing=recipe.train.activation_checkpointing,
        precision=precision,
        zero=read_zero(preset),
        ranks=ranks,
        device=device,
        sharing=recipe.train.sequence_parallel,
        optimizer=recipe.optim.name,
        copies_state=_copies(recipe, planned_steps(recipe)),
        fp8=recipe.train.fp8,
    )


def with_checkpointing(recipe: Recipe, mode: str) -> Recipe:
    """In place of train.activation_checkpointing=auto."""
    train = recipe.train.model_copy(update={"activation_checkpointing": mode})
    return recipe.model_copy(update={"train": train})


def modes_of_auto(recipe: Recipe) -> tuple[str, ...]:
    """What train.activation_checkpointing=auto chooses from, the least first."""
    return ("none", "full") if recipe.train.compile == "blocks" else ("none", "selective", "full")


def planned_steps(recipe: Recipe) -> int:
    """Optimizer steps of the whole run."""
    train, context = recipe.train, recipe.data.context_length
    return plan_run(train, RunState(), global_batch=train.global_batch_size, micro_batch=1, context=context).total_steps


def _copies(recipe: BaseRecipe, steps: int) -> bool:
    """Whether a checkpoint is written behind training: the last one is waited for."""
    every = recipe.checkpoint.every_steps
    return recipe.checkpoint.background and (
        recipe.checkpoint.best_metric is not None or (every is not None and every < steps)
    )
