"""A fine-tuning recipe as a job: a Hugging Face model with a head and perhaps an adapter, on labelled examples."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from scaletrain.assemble.examples import open_examples
from scaletrain.assemble.finetuned import write_trained_adapter
from scaletrain.assemble.settle import DTYPES, Settled, settle_launch
from scaletrain.cluster.env import read_world
from scaletrain.config.deepspeed import settle, zero_stage
from scaletrain.config.finetune_rules import deepspeed_problems
from scaletrain.config.finetune_schema import FinetuneRecipe
from scaletrain.config.load import load_with_deepspeed, need_finetuning
from scaletrain.config.problems import raise_problems
from scaletrain.config.schema import Precision
from scaletrain.data.encoded_rows import padded_length
from scaletrain.data.example_data import ExampleData
from scaletrain.data.run_data import RunData
from scaletrain.data.text_tokenizer import load_text_tokenizer
from scaletrain.engine.checkpoint import Found
from scaletrain.errors import ConfigError
from scaletrain.model.adapters import need_peft
from scaletrain.model.count import short_count
from scaletrain.model.dry_pass import Kept, dry_pass
from scaletrain.model.network import (
    build_network,
    find_model,
    folder_print,
    judges_by_last_token,
    layers_of,
    longest_row,
    need_bitsandbytes,
    read_config,
)
from scaletrain.model.packable import check_packable
from scaletrain.planner.finetune import finetune_memory, finetune_state
from scaletrain.planner.memory import Memory
from scaletrain.planner.zero import Zero
from scaletrain.tasks.finetune import Finetune
from scaletrain.tasks.kind import Kind


@dataclass(frozen=True)
class Finetuning:
    """As Job. `config`: the model's, as the kind wants it; `folder`: of its weights."""

    recipe: FinetuneRecipe
    kind: Kind
    config: Any
    folder: Path
    dtype: torch.dtype
    data: ExampleData

    @property
    def context(self) -> int:
        return self.recipe.data.max_length

    @property
    def max_samples(self) -> int | None:
        epochs = self.recipe.train.max_epochs
        return None if epochs is None else max(1, round(epochs * len(self.data.training)))

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """All, and those that are multiplied with every token: without the look-ups of embeddings."""
        with torch.device("meta"):
            model: Any = build_network(self.config, self.kind.head, torch.float32).model
        total = sum(p.numel() for p in model.parameters())
        output = model.get_output_embeddings()
        looked_up = sum(
            p.numel()
            for m in model.modules()
            if isinstance(m, torch.nn.Embedding)
            for p in m.parameters(recurse=False)
            if output is None or p is not output.weight
        )
        return total, total - looked_up

    @property
    def flops_per_token(self) -> float:
        """2 operations a weight forward and 2 for the gradient of what comes before it, 2 more for the weight's own."""
        return (6 if self.recipe.adapter.kind == "none" else 4) * self.parameters[1]

    @property
    def flops_rule(self) -> str:
        trained = "6 N" if self.recipe.adapter.kind == "none" else "4 N, the frozen weights have no gradients"
        return f"{trained}; attention not counted"

    @cached_property  # reads parts of the model's files
    def identity(self) -> Mapping[str, Any]:
        recipe = self.recipe
        return {
            "path": folder_print(self.folder),
            "task": recipe.task.kind,
            "labels": self.kind.record().get("labels"),
            "adapter": recipe.adapter.model_dump(mode="json"),
            "freeze": recipe.model.freeze,
            "crf": recipe.task.crf,
        }

    @property
    def checkpoint_bytes(self) -> int:
        return 12 * self.parameters[0] if self.recipe.adapter.kind == "none" else 0

    def describe(self) -> list[str]:
        adapter = self.recipe.adapter
        how = {"none": "all weights are trained"}.get(adapter.kind, f"{adapter.kind} in a frozen model")
        if self.recipe.model.freeze != "none":
            how = f"frozen: {self.recipe.model.freeze}"
        name, total = self.recipe.model.path, short_count(self.parameters[0])
        return [f"model   {name}: {self.config.model_type}, {total} parameters; {how}", *self.kind.describe()]

    def dry_pass(self, rows: int) -> Kept:
        """Of so many rows of the longest example; NotPlannableError where the model does not take it. Where blocks are
        computed again, what one of them then holds is counted too."""
        shape = rows, padded_length(max((len(row["input_ids"]) for row in self.data.training.rows), default=0))
        build = self.task(self.data).bare_network
        whole = dry_pass(partial(build, checkpoints=False), self.dtype, *shape)
        if self.recipe.train.activation_checkpointing != "full":
            return whole
        kept = dry_pass(partial(build, checkpoints=True), self.dtype, *shape)
        block = whole.activations // layers_of(self.config)
        return kept._replace(activations=kept.activations + block)

    def memory(self, zero: Zero, precision: Precision, *, ranks: int, rows: int, is_cpu: bool) -> Memory:
        """Of a rank, by plan; NotPlannableError where no dry pass tells its activations."""
        kept = self.dry_pass(rows)
        state = finetune_state(
            kept.parameters,
            kept.trained,
            zero=zero,
            precision=precision,
            ranks=ranks,
            quantize=self.recipe.model.quantize,
            optimizer=self.recipe.optim.name,
        )
        return finetune_memory(state, kept.activations, kept.logits, precision=precision, is_cpu=is_cpu)

    def task(self, data: RunData) -> Finetune:
        assert isinstance(data, ExampleData)
        return Finetune(self.recipe, self.kind, self.config, self.folder, self.dtype, data)

    def finish(self, run: Path, found: Found) -> list[str]:
        if self.recipe.adapter.kind == "none":
            return []
        folder = run / "adapter"
        write_trained_adapter(self.task(self.data), found, folder)
        return [f"adapter {folder}: read back and compared with the checkpoint"]

    def next_steps(self, run: str) -> str:
        return f"scaletrain export {run} OUT_DIR   scaletrain evaluate OUT_DIR --data FILE"


def settle_finetuning(path: Path, overrides: Sequence[str], deepspeed_config: str | None) -> Settled:
    """Reads and checks a recipe for this launch. Raises a ScaleTrainError for anything that cannot run."""
    world = read_world(os.environ)
    loaded, preset = load_with_deepspeed(path, overrides, deepspeed_config)
    recipe = settle(need_finetuning(loaded, path), preset)
    raise_problems(str(path), deepspeed_problems(recipe, zero_stage(preset)))
    launch = settle_launch(recipe, preset, world)
    return Settled(launch, open_job(recipe, launch.precision))


def open_job(recipe: FinetuneRecipe, precision: Precision) -> Finetuning:
    """Opens model folder, tokenizer and examples."""
    if recipe.adapter.kind != "none":
        need_peft()
    if recipe.model.quantize != "none":
        need_bitsandbytes(recipe.model.quantize)
    folder = find_model(recipe.model.path, recipe.model.revision)
    tokenizer = load_text_tokenizer(recipe.model, folder)
    plain = read_config(folder, {})
    _check_model(recipe, plain, folder)
    kind, data = open_examples(recipe, tokenizer)
    config = read_config(folder, kind.config(), recipe.model.dropout)
    return Finetuning(recipe, kind, config, folder, DTYPES[precision], data)


def _check_model(recipe: FinetuneRecipe, config: Any, folder: Path) -> None:
    """ConfigError for what the model cannot do."""
    task, is_prompt = recipe.task.kind, recipe.adapter.kind == "prompt_tuning"
    positions, extra = longest_row(config), recipe.adapter.virtual_tokens if is_prompt else 0
    if positions is not None and recipe.data.max_length + extra > positions:
        more = f" with adapter.virtual_tokens={extra}" if extra else ""
        raise ConfigError(
            f"data.max_length={recipe.data.max_length}{more} is longer than the {positions:,} positions of {folder}: "
            "lower it"
        )
    if task == "sft" and recipe.data.packing:
        check_packable(config.model_type)
    if task == "classify" and is_prompt and judges_by_last_token(config):
        raise ConfigError(
            f"adapter.kind=prompt_tuning does not go with task.kind=classify of a decoder (model_type="
            f"{config.model_type}): transformers would judge a row by its padding; use lora"
        )
