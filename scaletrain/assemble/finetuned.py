"""A fine-tuned model again: from a run's checkpoint, or from the folder that was exported of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scaletrain.assemble.examples import make_kind
from scaletrain.assemble.settle import DTYPES
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.schema import Precision
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.engine.checkpoint import Found
from scaletrain.engine.weights import read_weights
from scaletrain.errors import CheckpointError, ConfigError
from scaletrain.model.adapters import add_adapter, write_adapter
from scaletrain.model.init import whole_parameter
from scaletrain.model.network import Network, build_network, find_model, read_config
from scaletrain.runtime.files import replacing_folder
from scaletrain.tasks.finetune import Finetune

RECORD = "scaletrain.json"  # in an exported folder: the recipe and the labels
EXTRA = "scaletrain_extra.safetensors"  # what a task adds to the transformers model


@dataclass(frozen=True)
class Finetuned:
    """A task, its model with trained weights on the CPU in evaluation mode, and its tokenizer."""

    task: Finetune
    network: Network
    tokenizer: Any
    recipe: FinetuneRecipe
    labels: tuple[str, ...]
    trained_in: Precision


def is_finetuned(found: Found) -> bool:
    return "task" in found.manifest["recipe"]


def was_taught_to_answer(folder: Path) -> bool:
    """Whether an exported folder is of task.kind=sft."""
    record = folder / RECORD
    return record.is_file() and bool(json.loads(record.read_text(encoding="utf-8"))["recipe"]["task"]["kind"] == "sft")


def _recipe_of(found: Found) -> FinetuneRecipe:
    try:
        return FinetuneRecipe.model_validate(found.manifest["recipe"])
    except ValidationError as error:
        name = ".".join(map(str, error.errors()[0]["loc"]))
        raise CheckpointError(
            f"{found.folder}: its recipe is of another version of scaletrain ({name}): use that version"
        ) from error


def open_finetuned(found: Found, dtype: torch.dtype | None = None, *, quantized: bool = False) -> Finetuned:
    """From a checkpoint, by default in the precision of its training: the recipe's base model with what was trained.

    `quantized`: the base model in few bits, if it was so in training; else in all of them, into which an adapter can be
    merged. CheckpointError when the base model is not there any more.
    """
    recipe, trained_in = _recipe_of(found), found.manifest["layout"]["precision"]
    if not quantized:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": "none"})})
    dtype = dtype or DTYPES[trained_in]
    labels = tuple(found.manifest["model"].get("labels") or ())
    try:
        folder = find_model(recipe.model.path, recipe.model.revision)
    except ConfigError as error:
        raise CheckpointError(f"{found.folder} needs the model that it was trained from: {error}") from error
    task, tokenizer = _task(recipe, labels, folder, found.tokenizer_folder, dtype)
    network = task.build_model()
    assert isinstance(network, Network)
    task.initialise(network, whole_parameter)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in read_weights(found).items():
            if name in parameters:
                parameters[name].copy_(tensor)
    return Finetuned(task, network.eval(), tokenizer, recipe, labels, trained_in)


def read_exported(folder: Path, dtype: torch.dtype | None = None) -> Finetuned:
    """From an exported folder, by default in the precision of its training.

    CheckpointError when its record cannot be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recipe = FinetuneRecipe.model_validate(record["recipe"])
        labels, trained_in = tuple(record["labels"]), record["precision"]
        dtype = dtype or DTYPES[trained_in]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / RECORD} cannot be read ({error}): export the run again") from error
    given = {"path": str(folder), "freeze": "none", "quantize": "none", "tokenizer": None}
    whole = recipe.model.model_copy(update=given)
    recipe = recipe.model_copy(update={"model": whole, "adapter": type(recipe.adapter)()})
    task, tokenizer = _task(recipe, labels, folder, folder, dtype)
    network = task.build_model()
    assert isinstance(network, Network)
    task.initialise(network, whole_parameter)
    if network.extra is not None:
        network.extra.load_state_dict(load_file(folder / EXTRA))
    return Finetuned(task, network.eval(), tokenizer, recipe, labels, trained_in)


def _task(
    recipe: FinetuneRecipe, labels: tuple[str, ...], folder: Path, tokenizer_folder: Path, dtype: torch.dtype
) -> tuple[Finetune, Any]:
    given = recipe.model.model_copy(update={"tokenizer": str(tokenizer_folder), "chat_template": None})
    tokenizer = load_text_tokenizer(given, folder)
    kind = make_kind(recipe, tokenizer, labels)
    config = read_config(folder, kind.config(), recipe.model.dropout)
    return Finetune(recipe, kind, config, folder, dtype), tokenizer


def merged_model(model: Any) -> Any:
    """The transformers model with its adapter, if any, added to the weights."""
    if not hasattr(model, "peft_config"):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ConfigError("adapter.kind=prompt_tuning adds no weights that could be merged: export it with --adapter")
    return model.merge_and_unload(safe_merge=True)


def write_finetuned(folder: Path, model: Finetuned, dtype: torch.dtype) -> None:
    """Writes what AutoModelFor... and AutoTokenizer load, with the record that `scaletrain evaluate` reads.

    Whole or not at all, see replacing_folder.
    """
    with replacing_folder(folder, "config.json") as partial:
        whole = merged_model(model.network.model).to(dtype)
        whole.config.use_cache = True
        whole.save_pretrained(partial)
        model.tokenizer.save_pretrained(partial)
        if model.network.extra is not None:
            save_file(model.network.extra.state_dict(), partial / EXTRA)
        record = {
            "recipe": model.recipe.model_dump(mode="json"),
            "labels": list(model.labels),
            "precision": model.trained_in,
        }
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def write_trained_adapter(task: Finetune, found: Found, folder: Path, tokenizer: Any = None) -> None:
    """Writes the adapter of a checkpoint as a PEFT folder, with a tokenizer if given, and compares what can be read of
    it."""
    with torch.device("meta"):
        model = build_network(task.config, task.kind.head, torch.float32).model
        wrapped = add_adapter(model, task.recipe.adapter, task.kind.head, task.recipe.seed, task.folder)
    weights = read_weights(found)
    with replacing_folder(folder, "adapter_config.json") as partial:
        write_adapter(partial, wrapped, _split(weights, "model."), task.recipe.model.path)
        if extra := _split(weights, "extra."):
            save_file(extra, partial / EXTRA)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def _split(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def write_adapter_folder(folder: Path, found: Found) -> None:
    """The adapter of a checkpoint alone, with its tokenizer. ConfigError when the run trained none."""
    recipe = _recipe_of(found)
    if recipe.adapter.kind == "none":
        raise ConfigError(f"{found.folder} has no adapter, all its weights were trained: export it without --adapter")
    labels = tuple(found.manifest["model"].get("labels") or ())
    base = find_model(recipe.model.path, recipe.model.revision)
    task, tokenizer = _task(recipe, labels, base, found.tokenizer_folder, torch.float32)
    write_trained_adapter(task, found, folder, tokenizer)
