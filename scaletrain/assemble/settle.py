"""A recipe with everything decided that a launch decides, before anything is written."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from scaletrain.assemble.job import Job
from scaletrain.config.deepspeed import BatchPlan, batch_plan, engine_config, zero_stage
from scaletrain.config.load import AnyRecipe
from scaletrain.config.schema import Precision
from scaletrain.config.zeropp import check_zeropp
from scaletrain.data.order import Share
from scaletrain.data.rows import RowPart
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.plan import Plan, plan_run
from scaletrain.engine.state import RunState
from scaletrain.errors import ConfigError
from scaletrain.optim.eight_bit import need_eight_bits
from scaletrain.runtime import dist, processor
from scaletrain.runtime.machine import cores
from scaletrain.runtime.world import World
from scaletrain.track.peak import Peak, peak_of

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Launch:
    """What is decided before the data are opened. `recipe` is settled with `preset`."""

    recipe: AnyRecipe
    preset: dict[str, Any]
    precision: Precision
    batch: BatchPlan
    deepspeed: dict[str, Any]
    world: World
    device: torch.device


@dataclass(frozen=True)
class Settled:
    """A recipe with everything decided that this launch decides; checked, and nothing written yet."""

    launch: Launch
    job: Job

    @property
    def recipe(self) -> AnyRecipe:
        return self.launch.recipe

    @property
    def batch(self) -> BatchPlan:
        return self.launch.batch

    @property
    def world(self) -> World:
        return self.launch.world

    @property
    def device(self) -> torch.device:
        return self.launch.device

    @property
    def deepspeed(self) -> dict[str, Any]:
        return self.launch.deepspeed

    @property
    def zero_stage(self) -> int:
        return zero_stage(self.launch.preset)

    @property
    def share(self) -> Share:
        """What this rank reads of each batch."""
        world, sharing = self.world, self.recipe.train.sequence_parallel
        part = RowPart(world.rank % sharing, sharing)
        return Share(
            world.rank // sharing, world.size // sharing, self.batch.micro_batch, self.batch.accumulation, part
        )

    def plan(self, state: RunState) -> Plan:
        """How far a run that stands at `state` goes, as the recipe has it."""
        return plan_run(
            self.recipe.train,
            state,
            global_batch=self.batch.global_batch,
            micro_batch=self.batch.micro_batch,
            context=self.job.context,
            max_samples=self.job.max_samples,
        )

    @property
    def identity(self) -> Identity:
        return Identity(
            layout={
                "ranks": self.world.size,
                "zero_stage": self.zero_stage,
                "precision": self.launch.precision,
                "moments": "8 bit" if self.recipe.optim.name == "adamw_8bit" else "float32",
            },
            model=self.job.identity,
            data=self.job.data.identity(),
            optimizer={"optim.name": self.recipe.optim.name.removesuffix("_8bit")},
        )


def settle_launch(recipe: AnyRecipe, preset: dict[str, Any], world: World) -> Launch:
    """`recipe`: settled with `preset`. ConfigError for what cannot run on this launch's ranks and devices."""
    device = dist.device_of(world)
    precision = recipe.train.precision or best_precision(device)
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("train.precision=fp16 needs a GPU: use bf16 or fp32 on a CPU")
    if recipe.optim.name == "adamw_8bit":
        need_eight_bits()
    config = engine_config(recipe, preset, ranks=world.size, precision=precision)
    check_zeropp(recipe.deepspeed, config, precision, world.local_size, on_gpu=device.type != "cpu")
    return Launch(
        recipe=recipe,
        preset=preset,
        precision=precision,
        batch=batch_plan(recipe, world.size),
        deepspeed=config,
        world=world,
        device=device,
    )


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device computes in it, else fp32: without the instructions a CPU emulates bf16 slowly."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if processor.flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


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
    return peak_of(settled.device, DTYPES[settled.launch.precision])
