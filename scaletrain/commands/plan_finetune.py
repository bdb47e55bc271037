"""`scaletrain plan` of a fine-tuning: by a dry pass of its model, or of the state alone, counted from its files."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import typer

from scaletrain.commands.plan_text import size
from scaletrain.commands.planned_recipe import precision_of
from scaletrain.config.deepspeed import batch_plan
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.schema import Precision
from scaletrain.errors import EXIT_USER, ConfigError, ScaleTrainError
from scaletrain.model.count import short_count
from scaletrain.planner.finetune import finetune_state
from scaletrain.planner.fit import Room
from scaletrain.planner.zero import Zero, read_zero


def plan_finetuning(recipe: FinetuneRecipe, preset: Mapping[str, Any], *, ranks: int, room: Room) -> None:
    """Prints what a rank holds, and whether it fits: exit code 2 if not. Where the examples are not here, or the model
    does not take a dry pass, the state alone, without a verdict.

    ConfigError when the model's files are not on this machine.
    """
    from scaletrain.assemble.finetuning import open_job  # needs torch and transformers

    precision, zero = precision_of(recipe), read_zero(preset)
    rows = batch_plan(recipe, ranks).micro_batch
    stated = count_in_files(Path(recipe.model.path).expanduser())
    try:
        job = open_job(recipe, precision)
        memory = job.memory(zero, precision, ranks=ranks, rows=rows, is_cpu=room.is_cpu)
    except ScaleTrainError as error:
        _tell_state(recipe, stated, zero, precision, ranks=ranks, room=room, reason=str(error))
        return
    print("\n".join(job.describe()))
    parts = (f"{part.name} {size(part.bytes)}{' in host memory' if part.is_host else ''}" for part in memory.peak.parts)
    how = f"{precision}, ZeRO {zero.stage}, micro-batch {rows} of the longest example"
    print(f"on      {ranks} rank{'s' if ranks > 1 else ''}, {how}")
    print(f"memory  a rank, at most at the {memory.peak.name}: {', '.join(parts)}")
    need, spare = room.need(memory), room.spare(memory)
    if room.holds(memory):
        print(f"fits    {size(need)} with margins of {size(room.bytes)} a rank: {size(spare)} to spare")
        return
    if spare < 0:
        print(
            f"too big by {size(-spare)} a rank ({size(need)} with margins of {size(room.bytes)}): lower "
            "train.micro_batch_size or data.max_length, set train.activation_checkpointing=full, take an adapter or a "
            "DeepSpeed file that splits more"
        )
    else:
        print(
            f"too big by {size(-room.host_spare(memory))} of host memory a rank, which has {size(room.host or 0)}: "
            "take a DeepSpeed file that offloads less"
        )
    raise typer.Exit(EXIT_USER)


def _tell_state(
    recipe: FinetuneRecipe, parameters: int, zero: Zero, precision: Precision, *, ranks: int, room: Room, reason: str
) -> None:
    adapter, freeze = recipe.adapter.kind, recipe.model.freeze
    trained = parameters if adapter == "none" and freeze != "all_but_head" else 0
    state = finetune_state(
        parameters,
        trained,
        zero=zero,
        precision=precision,
        ranks=ranks,
        quantize=recipe.model.quantize,
        optimizer=recipe.optim.name,
    )
    what = "all trained" if trained else f"frozen under {adapter if adapter != 'none' else 'a head'}"
    print(f"model   {recipe.model.path}: {short_count(parameters)} parameters, {what}; {precision}, ZeRO {zero.stage}")
    print(
        f"state   a rank of {ranks}: weights {size(state.weights)}, gradients {size(state.gradients)}, optimizer "
        f"{size(state.optimizer)}{' in host memory' if state.is_offloaded else ''}: {size(state.device)} of "
        f"{size(room.bytes)}"
    )
    missing = "activations, the loss's logits, communication buckets"
    if not trained:
        missing += f", what is trained ({adapter if adapter != 'none' else 'the head'}) and its optimizer state"
    print(f"note    not planned: {missing}: {reason}")
    if state.device > room.bytes:
        print("warning the state alone is larger than the device: split it further (deepspeed=ds_configs/zero3.json)")


def count_in_files(folder: Path) -> int:
    """Elements of the tensors in a model folder's safetensors files, from their headers."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise ConfigError(
            f"model.path={folder} holds no safetensors file on this machine: download the model and give its folder"
        )
    return sum(_elements(file) for file in files)


def _elements(file: Path) -> int:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
        return sum(prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, OverflowError, struct.error) as error:
        raise ConfigError(f"{file} cannot be read as safetensors ({error!r}): download it again") from error
