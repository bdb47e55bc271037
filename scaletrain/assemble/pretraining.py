"""A pretraining recipe as a job: a GPT of the recipe's sizes, or of a Hugging Face folder, on tokens."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from scaletrain.assemble.flash import activate_flash_attention_3
from scaletrain.assemble.fp8 import capability_of, check_fp8_place
from scaletrain.assemble.planned import settle_checkpointing, workload_of
from scaletrain.assemble.settle import Launch, Settled, settle_launch
from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import Architecture, architecture_problems, resolve_architecture
from scaletrain.config.deepspeed import settle, zero_stage
from scaletrain.config.fp8_rules import check_fp8_recipe, check_fp8_sizes
from scaletrain.config.load import load_with_deepspeed, need_pretraining
from scaletrain.config.schema import Recipe
from scaletrain.data.live.text import LiveText, open_live_text
from scaletrain.data.run_data import RunData
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.data.training_data import TrainingData, open_training_data
from scaletrain.engine.checkpoint import Found
from scaletrain.errors import ConfigError, DataError
from scaletrain.model.count import checkpoint_bytes, count_parameters, flops_per_token, short_count
from scaletrain.model.hf import architecture_from_hf
from scaletrain.model.native.build import lacks_compiler
from scaletrain.planner.fit import Room
from scaletrain.planner.workload import Workload
from scaletrain.runtime.machine import whole_memory
from scaletrain.runtime.sequence import join_sequence
from scaletrain.runtime.world import World
from scaletrain.tasks.continuation import Beginnings
from scaletrain.tasks.pretrain import PretrainTask
from scaletrain.tasks.task import Task

COMPILERS = ("g++", "clang++", "c++")  # one of them torch.compile calls
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Pretraining:
    """As Job."""

    recipe: Recipe
    data: TrainingData | LiveText
    architecture: Architecture
    begun: Beginnings | None = None

    @property
    def context(self) -> int:
        return self.recipe.data.context_length

    @property
    def max_samples(self) -> None:
        return None

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.architecture, self.context)

    @property
    def flops_rule(self) -> str:
        return "6 N + causal attention, recomputation not counted"

    @property
    def identity(self) -> Mapping[str, Any]:
        return asdict(self.architecture)

    @property
    def checkpoint_bytes(self) -> int:
        return checkpoint_bytes(self.architecture, self.recipe.optim.name)

    def describe(self) -> list[str]:
        arch, model, mode = self.architecture, self.recipe.model, self.recipe.train.activation_checkpointing
        lines = [
            f"model   {model.preset or model.init_from or arch.family}: {arch.num_layers} layers, "
            f"{arch.hidden_size} wide, {arch.num_heads} heads, {arch.vocab_size:,} tokens, "
            f"{short_count(count_parameters(arch).total)} parameters"
            f"{'' if mode == 'none' else f', checkpointing {mode}'}"
        ]
        if lacks_compiler() and self.recipe.train.precision != "fp32" and not torch.cuda.is_available():
            lines.append("kernels left out, a fifth slower: this CPU has some in C++, and there is no g++; install one")
        return lines

    def task(self, data: RunData) -> Task:
        return PretrainTask(
            self.architecture,
            data,
            seed=self.recipe.seed,
            init_from=Path(self.recipe.model.init_from) if self.recipe.model.init_from else None,
            activation_checkpointing=self.recipe.train.activation_checkpointing,
            compiled=self.recipe.train.compile == "blocks",
            fp8=self.recipe.train.fp8,
            sequence=join_sequence(sharing) if (sharing := self.recipe.train.sequence_parallel) > 1 else None,
            begun=self.begun,
        )

    def finish(self, run: Path, found: Found) -> list[str]:
        del run, found  # its checkpoint is all that it leaves
        return []

    def next_steps(self, run: str) -> str:
        return f'scaletrain generate {run} --prompt "..."   scaletrain export {run} OUT_DIR'


def settle_pretraining(path: Path, overrides: Sequence[str], deepspeed_config: str | None) -> Settled:
    """Reads and checks a recipe for this launch. Raises a ScaleTrainError for anything that cannot run."""
    world = read_world(os.environ)
    loaded, preset = load_with_deepspeed(path, overrides, deepspeed_config)
    recipe = settle(need_pretraining(loaded, path), preset)
    if recipe.train.compile == "blocks":
        check_compiling(str(path), zero_stage(preset))
    launch = settle_launch(recipe, preset, world)
    data = _open_data(recipe, world)
    architecture = _architecture(recipe, data)
    check_sharing(str(path), recipe.train.sequence_parallel, architecture)
    if recipe.train.flash_attention == "fa3":
        activate_flash_attention_3(str(path), capability_of(launch.device))
    if recipe.train.activation_checkpointing == "auto":
        recipe = _choose_checkpointing(str(path), recipe, launch, architecture)
        launch = replace(launch, recipe=recipe)
    if recipe.train.fp8:
        micro_tokens = launch.batch.micro_batch * recipe.data.context_length // recipe.train.sequence_parallel
        check_fp8_recipe(str(path), recipe.train, launch.precision, zero_stage(preset))
        check_fp8_place(str(path), capability_of(launch.device))
        check_fp8_sizes(str(path), architecture, micro_tokens)
    return Settled(launch, Pretraining(recipe, data, architecture, begin(str(path), recipe, data.tokenizer_folder)))


def _choose_checkpointing(source: str, recipe: Recipe, launch: Launch, architecture: Architecture) -> Recipe:
    """By the memory that the device, or the machine, has in all: what is free of it differs from rank to rank, and all
    must compute alike. ConfigError where the machine does not tell."""
    device: Literal["cpu", "cuda"] = "cpu" if launch.device.type == "cpu" else "cuda"
    if device == "cuda":
        room = Room(int(torch.cuda.get_device_properties(launch.device).total_memory))
    elif (memory := whole_memory()) is not None:
        room = Room(memory // launch.world.local_size, is_cpu=True)
    else:
        raise ConfigError(
            f"{source}: train.activation_checkpointing=auto goes by the machine's memory, which this system does not "
            "tell: set none, selective or full"
        )

    def work_of(recipe: Recipe) -> Workload:
        size, precision = launch.world.size, launch.precision
        return workload_of(recipe, launch.preset, architecture, ranks=size, precision=precision, device=device)

    return settle_checkpointing(recipe, room, work_of)


def begin(source: str, recipe: Recipe, tokenizer_folder: Path) -> Beginnings | None:
    """The prompts of the recipe as tokens; ConfigError where they cannot be gone on with."""
    wanted, longest = recipe.evaluate, recipe.data.context_length
    if not wanted.prompts:
        return None
    if recipe.train.sequence_parallel > 1:
        raise ConfigError(
            f"{source}: evaluate.prompts with train.sequence_parallel={recipe.train.sequence_parallel}: no rank sees a "
            "whole row: leave the prompts out, and call scaletrain generate beside the run"
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    encoded = [row.tolist() or [tokenizer.eos_id] for row in tokenizer.encode_batch(wanted.prompts)]
    for number, row in enumerate(encoded):
        if len(row) + wanted.prompt_tokens > longest:
            raise ConfigError(
                f"{source}: evaluate.prompts[{number}] has {len(row):,} tokens, with evaluate.prompt_tokens="
                f"{wanted.prompt_tokens} more than data.context_length={longest}: shorten it, or add fewer"
            )
    return Beginnings(wanted.prompts, encoded, wanted.prompt_tokens, longest, tokenizer)


def check_sharing(source: str, sharing: int, architecture: Architecture) -> None:
    """ConfigError where the ranks that share samples could not share the heads."""
    heads = architecture.num_kv_heads
    if heads % sharing:
        raise ConfigError(
            f"{source}: train.sequence_parallel={sharing} does not divide the model's {heads} key/value heads, of "
            "which each rank takes an equal part: use a divisor of them"
        )


def check_compiling(source: str, stage: int) -> None:
    """ConfigError where train.compile=blocks cannot work, or would be slow."""
    if stage == 3:
        raise ConfigError(
            f"{source}: train.compile=blocks with ZeRO stage 3: DeepSpeed gathers weights inside the blocks, "
            "which would be compiled anew again and again: use stage 1 or 2, or train.compile=none"
        )
    if not any(map(shutil.which, COMPILERS)):
        raise ConfigError(
            f"{source}: train.compile=blocks needs a C++ compiler, and none of {', '.join(COMPILERS)} is there: "
            "install one, or set train.compile=none"
        )


def _open_data(recipe: Recipe, world: World) -> TrainingData | LiveText:
    if recipe.data.source == "huggingface":
        return open_live_text(recipe.data, recipe.seed, rank=world.rank, ranks=world.size)
    return open_training_data(recipe.data, recipe.seed)


def _architecture(recipe: Recipe, data: TrainingData | LiveText) -> Architecture:
    """From the recipe's sizes, or from the Hugging Face folder that training starts from."""
    tokenizer, context = data.tokenizer, recipe.data.context_length
    if recipe.model.init_from is None:
        return resolve_architecture(recipe.model, tokenizer.vocab_size, context)
    folder = Path(recipe.model.init_from)
    architecture = architecture_from_hf(folder)
    given = recipe.model.model_dump(exclude_none=True, exclude={"init_from"})
    problems = [
        f"model.{name}={value} differs from the {getattr(architecture, name)} of {folder}: remove it"
        for name, value in given.items()
        if getattr(architecture, name) != value
    ]
    if problems := problems + architecture_problems(architecture, tokenizer.vocab_size, context):
        raise ConfigError("; ".join(problems))
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if has_tokenizer and load_tokenizer(folder).fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{data.name} was prepared with the tokenizer {tokenizer.name}, not with that of {folder}: prepare the "
            f"text again with --tokenizer {folder}"
        )
    return architecture
