"""A recipe and devices as a plan: what `scaletrain plan` and `scaletrain submit` ask of the planner. No torch, but for
the matrix rate of this machine."""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from scaletrain.assemble.planned import planned_steps, settle_checkpointing, steps_between_saves, workload_of
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.data_rules import source_places
from scaletrain.config.deepspeed import batch_plan, zero_stage
from scaletrain.config.deepspeed_file import load_deepspeed
from scaletrain.config.fp8_rules import check_fp8_recipe, check_fp8_sizes
from scaletrain.config.hardware import CPU, Hardware, cpu, hardware
from scaletrain.config.load import AnyRecipe, find_deepspeed
from scaletrain.config.schema import Precision, Recipe
from scaletrain.data.shards import INDEX, open_dataset
from scaletrain.errors import ConfigError
from scaletrain.planner.calibration import at_speed, read_speed
from scaletrain.planner.fit import Room, Variant, remedy
from scaletrain.planner.plan import Plan
from scaletrain.planner.time import Cluster
from scaletrain.planner.workload import Workload
from scaletrain.planner.zero import Zero, read_zero
from scaletrain.runtime.machine import available_memory

VOCABULARY = 50_304  # where nothing tells: GPT-2's 50,257, padded
PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero1-offload", "zero2-offload", "zero3-offload")


def plan_recipe(
    recipe: Recipe,
    preset: Mapping[str, Any],
    device: Hardware,
    *,
    nodes: int,
    devices_per_node: int,
    vocab_size: int | None = None,
    host_memory_gb: float | None = None,
) -> Plan:
    """`recipe`: settled with `preset`. Its speed is a roofline's. ConfigError where FP8 is asked for and cannot be."""
    architecture = _architecture(recipe, vocab_size)
    cluster = Cluster(device, nodes, devices_per_node, device.network)
    room = room_of(device, devices_per_node, host_memory_gb)

    def work_of(recipe: Recipe) -> Workload:
        kind: Literal["cpu", "cuda"] = "cpu" if device.is_cpu else "cuda"
        return workload_of(
            recipe, preset, architecture, ranks=cluster.ranks, precision=precision_of(recipe), device=kind
        )

    recipe = settle_checkpointing(recipe, room, work_of)
    if recipe.train.fp8:
        _check_fp8(recipe, preset, architecture, device, cluster.ranks)
    work = work_of(recipe)
    steps, said = planned_steps(recipe), recipe.checkpoint
    every = steps_between_saves(recipe, steps)
    stay = int(said.best_metric is not None)
    if every is not None and said.keep_every_steps is not None:
        stay += steps // math.lcm(every, said.keep_every_steps)
    return Plan(work, cluster, room, steps, said.keep_last, kept=stay, save_steps=every)


def _check_fp8(
    recipe: Recipe, preset: Mapping[str, Any], architecture: Architecture, device: Hardware, ranks: int
) -> None:
    if device.fp8_gain is None:
        raise ConfigError(f"train.fp8=true with --gpu {device.name}, which has no FP8 products: set train.fp8=false")
    check_fp8_recipe("the recipe", recipe.train, precision_of(recipe), zero_stage(dict(preset)))
    tokens = batch_plan(recipe, ranks).micro_batch * recipe.data.context_length // recipe.train.sequence_parallel
    check_fp8_sizes("the recipe", architecture, tokens)


def precision_of(recipe: AnyRecipe) -> Precision:
    """Of the devices that are planned, which have bf16."""
    return recipe.train.precision or "bf16"


def at_speed_of(plan: Plan, run: Path) -> Plan:
    """The plan at the speed of a run. ConfigError where it does not tell."""
    cluster = plan.cluster
    return at_speed(plan, read_speed(run, cluster.link, cluster.hardware), f"as {run} reached")


def remedy_of(plan: Plan, recipe: Path) -> Variant | None:
    """The first change that makes it fit."""
    return remedy(plan.work, plan.room, shipped_presets(recipe))


def shipped_presets(recipe: Path) -> dict[str, Zero]:
    """The shipped DeepSpeed files, as a recipe names them."""
    names = {name: find_deepspeed(name, recipe) for name in (f"ds_configs/{preset}.json" for preset in PRESETS)}
    return {name: read_zero(load_deepspeed(path)) for name, path in names.items() if isinstance(path, Path)}


def device_of(gpu: str, ranks: int, recipe: AnyRecipe, tflops: float | None = None) -> Hardware:
    """What is known of a GPU, or this machine as one of `ranks`; with `tflops` its matrix rate is that."""
    if gpu != CPU:
        known = hardware(gpu)
        return known if tflops is None else replace(known, rates=dict.fromkeys(known.rates, tflops * 1e12))
    if tflops is not None:
        return cpu(tflops * 1e12, "this machine; rate as given")
    rate = _probe(precision_of(recipe))
    return cpu(rate / ranks, f"this machine; {rate / 1e12:.3g} TFLOP/s in a 2,048 square product now")


def room_of(device: Hardware, ranks: int, host_memory_gb: float | None = None) -> Room:
    """Memory of each of a node's `ranks`; ConfigError where this machine is planned and does not tell its own."""
    if not device.is_cpu:
        return Room(device.memory, host=None if host_memory_gb is None else int(host_memory_gb * 1e9 / ranks))
    available = available_memory()
    if available is None:
        raise ConfigError("--gpu cpu: this system does not tell its free memory (no /proc/meminfo): name a GPU")
    return Room(available // ranks, is_cpu=True)


def _architecture(recipe: Recipe, vocab_size: int | None) -> Architecture:
    """With the tokenizer's size from the option, the data, the recipe, or else assumed."""
    if recipe.model.init_from is not None:
        from scaletrain.model.hf import architecture_from_hf  # needs torch

        return architecture_from_hf(Path(recipe.model.init_from))
    size = vocab_size or _vocabulary(recipe) or recipe.model.vocab_size
    if size is None:
        size = VOCABULARY
        print(
            f"note    {size:,} tokens of vocabulary assumed, the data are not here: --vocab-size says better",
            file=sys.stderr,
        )
    return resolve_architecture(recipe.model, size, recipe.data.context_length)


def _vocabulary(recipe: Recipe) -> int | None:
    """Of the prepared data that are on this machine; None where there are none."""
    for place in source_places(recipe.data).values():
        if "://" not in place and (Path(place).expanduser() / INDEX).is_file():
            return open_dataset(Path(place).expanduser()).tokenizer.vocab_size
    return None


def _probe(precision: Precision) -> float:
    import torch

    from scaletrain.track.peak import measure_matrix_rate

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return measure_matrix_rate(torch.device("cpu"), dtypes[precision], seconds=0.0)
