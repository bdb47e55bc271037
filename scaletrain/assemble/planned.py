"""A pretraining recipe as the planner takes it. No torch: a plan is told in a second."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from scaletrain.config.architecture import Architecture
from scaletrain.config.deepspeed import batch_plan
from scaletrain.config.schema import BaseRecipe, Precision, Recipe
from scaletrain.engine.plan import plan_run
from scaletrain.engine.state import RunState
from scaletrain.planner.fit import Room, checkpointing_that_fits
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
        libraries=_libraries(recipe),
    )


def _libraries(recipe: Recipe) -> tuple[str, ...]:
    """Those that most runs do without."""
    eight = ("bitsandbytes",) if recipe.optim.name == "adamw_8bit" else ()
    live = ("datasets",) if recipe.data.source == "huggingface" else ()
    return (*eight, *live, *dict.fromkeys(recipe.log.trackers))


def settle_checkpointing(recipe: Recipe, room: Room, work_of: Callable[[Recipe], Workload]) -> Recipe:
    """With the first mode that fits, from the least that is computed again to the most, in place of
    train.activation_checkpointing=auto; as it is with any other."""
    if recipe.train.activation_checkpointing != "auto":
        return recipe
    modes = ("none", "full") if recipe.train.compile == "blocks" else ("none", "selective", "full")
    work = work_of(_with_checkpointing(recipe, modes[0]))
    return _with_checkpointing(recipe, checkpointing_that_fits(work, room, modes))


def _with_checkpointing(recipe: Recipe, mode: str) -> Recipe:
    train = recipe.train.model_copy(update={"activation_checkpointing": mode})
    return recipe.model_copy(update={"train": train})


def planned_steps(recipe: Recipe) -> int:
    """Optimizer steps of the whole run."""
    train, context = recipe.train, recipe.data.context_length
    return plan_run(train, RunState(), global_batch=train.global_batch_size, micro_batch=1, context=context).total_steps


def steps_between_saves(recipe: BaseRecipe, steps: int) -> int | None:
    """Of a run of so many; None: it saves at its end alone."""
    every = recipe.checkpoint.every_steps
    return every if every is not None and every < steps else None


def _copies(recipe: BaseRecipe, steps: int) -> bool:
    """Whether a checkpoint is written behind training: the last one is waited for."""
    is_saved_before = steps_between_saves(recipe, steps) is not None or recipe.checkpoint.best_metric is not None
    return recipe.checkpoint.background and is_saved_before
