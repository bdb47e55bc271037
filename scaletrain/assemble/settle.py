"""A recipe with everything decided that a launch decides, before anything is written."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from scaletrain.cluster.env import read_world
from scaletrain.config.architecture import Architecture, architecture_problems, resolve_architecture
from scaletrain.config.deepspeed import (
    BatchPlan,
    batch_plan,
    engine_config,
    settle,
    zero_stage,
)
from scaletrain.config.load import load_with_deepspeed
from scaletrain.config.schema import Precision, Recipe
from scaletrain.data.live.text import open_live_text
from scaletrain.data.run_data import RunData
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.data.training_data import open_training_data
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.plan import Plan, plan_run
from scaletrain.engine.state import RunState
from scaletrain.errors import ConfigError, DataError
from scaletrain.model.count import flops_per_token
from scaletrain.model.hf import architecture_from_hf
from scaletrain.runtime import dist
from scaletrain.runtime.machine import cores
from scaletrain.runtime.world import World
from scaletrain.track.peak import Peak, peak_of

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Settled:
    """A recipe with everything decided that this launch decides; checked, and nothing written yet."""

    recipe: Recipe
    preset: dict[str, Any]
    precision: Precision
    batch: BatchPlan
    data: RunData
    architecture: Architecture
    deepspeed: dict[str, Any]
    world: World
    device: torch.device

    def plan(self, state: RunState) -> Plan:
        """How far a run that stands at `state` goes, as the recipe has it."""
        recipe, batch = self.recipe, self.batch
        return plan_run(
            recipe.train,
            state,
            global_batch=batch.global_batch,
            micro_batch=batch.micro_batch,
            context=recipe.data.context_length,
        )

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.architecture, self.recipe.data.context_length)

    @property
    def identity(self) -> Identity:
        return Identity(
            layout={"ranks": self.world.size, "zero_stage": zero_stage(self.preset), "precision": self.precision},
            model=asdict(self.architecture),
            data=self.data.identity(),
        )


def settle_recipe(path: Path, overrides: Sequence[str], deepspeed_config: str | None) -> Settled:
    """Reads and checks a recipe for this launch. Raises a ScaleTrainError for anything that cannot run."""
    world = read_world(os.environ)
    recipe, preset = load_with_deepspeed(path, overrides, deepspeed_config)
    recipe = settle(recipe, preset)
    device = dist.device_of(world)
    precision = recipe.train.precision or best_precision(device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    batch = batch_plan(recipe, world.size)
    data = _open_data(recipe, world)
    return Settled(
        recipe=recipe,
        preset=preset,
        precision=precision,
        batch=batch,
        data=data,
        architecture=_architecture(recipe, data),
        deepspeed=engine_config(recipe, preset, ranks=world.size, precision=precision),
        world=world,
        device=device,
    )


def _open_data(recipe: Recipe, world: World) -> RunData:
    if recipe.data.source == "huggingface":
        return open_live_text(recipe.data, recipe.seed, rank=world.rank, ranks=world.size)
    return open_training_data(recipe.data, recipe.seed)


def _architecture(recipe: Recipe, data: RunData) -> Architecture:
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


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device computes in it, else fp32: without the instructions a CPU emulates bf16 slowly."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "fp32"
    return "bf16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else "fp32"


def set_threads(world: World) -> None:
    """Shares the cores of this machine among its ranks, unless OMP_NUM_THREADS says otherwise or the launcher gave each
    rank its own.

    Left alone each rank takes all cores: a first step of 0.1 s takes 2.5 to 4 s with two ranks on two cores.
    """
    given = os.environ.get("OMP_NUM_THREADS")
    if given is None or (given == "1" and "TORCHELASTIC_RUN_ID" in os.environ):  # torchrun sets 1 by itself
        torch.set_num_threads(min(world.cores, cores()) if world.cores else max(1, cores() // world.local_size))


def measure_peak(settled: Settled) -> Peak:
    """What MFU divides by, for each rank."""
    return peak_of(settled.device, DTYPES[settled.precision])
