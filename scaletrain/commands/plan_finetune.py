"""What can be planned of a fine-tuning: the state of the model, counted from its files; and what cannot."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from scaletrain.commands.plan_text import size
from scaletrain.commands.planned_recipe import precision_of
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.errors import ConfigError
from scaletrain.model.count import short_count
from scaletrain.planner.finetune import finetune_state
from scaletrain.planner.fit import Room
from scaletrain.planner.zero import read_zero


def plan_finetuning(recipe: FinetuneRecipe, preset: Mapping[str, Any], *, ranks: int, room: Room) -> None:
    """Prints the state of a rank. No verdict but a warning: activations of another library's model are not known.

    ConfigError when the model's files are not on this machine.
    """
    folder, precision = Path(recipe.model.path).expanduser(), precision_of(recipe)
    parameters = count_in_files(folder)
    adapter, freeze = recipe.adapter.kind, recipe.model.freeze
    trained = parameters if adapter == "none" and freeze != "all_but_head" else 0
    zero = read_zero(preset)
    state = finetune_state(
        parameters, trained, zero=zero, precision=precision, ranks=ranks, quantize=recipe.model.quantize
    )
    what = "all trained" if trained else f"frozen under {adapter if adapter != 'none' else 'a head'}"
    print(f"model   {folder}: {short_count(parameters)} parameters, {what}; {precision}, ZeRO {zero.stage}")
    print(
        f"state   a rank of {ranks}: weights {size(state.weights)}, gradients {size(state.gradients)}, optimizer "
        f"{size(state.optimizer)}{' in host memory' if state.is_offloaded else ''}: {size(state.device)} of "
        f"{size(room.bytes)}"
    )
    missing = "activations, the loss's logits, communication buckets"
    if not trained:
        missing += f", what is trained ({adapter if adapter != 'none' else 'the head'}) and its optimizer state"
    print(f"note    not planned: {missing}")
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
