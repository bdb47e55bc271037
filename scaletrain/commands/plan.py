"""`scaletrain plan`: whether a recipe fits, how fast it goes and what it costs, before anything is started."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaletrain.config.hardware import CPU, Hardware, cpu, hardware, hardware_names
from scaletrain.errors import EXIT_USER, ConfigError

if TYPE_CHECKING:
    from scaletrain.config.architecture import Architecture
    from scaletrain.config.schema import Precision, Recipe
    from scaletrain.planner.fit import Room
    from scaletrain.planner.plan import Plan
    from scaletrain.planner.zero import Zero

VOCABULARY = 50_304  # where nothing tells: GPT-2's 50,257, padded
PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero1-offload", "zero2-offload", "zero3-offload")
_BEST = 10


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="As for training")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Devices, and ranks, of each node")] = 1,
    gpu: Annotated[str, typer.Option(help=f"Device: {', '.join(hardware_names())} (this machine)")] = "h100",
    price: Annotated[float | None, typer.Option(min=0, help="Of one device's hour")] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(min=0.01, help="Hours between faults of one node; default: Llama 3's")
    ] = None,
    link_gbps: Annotated[float | None, typer.Option(min=0.001, help="Network of a device to other nodes")] = None,
    tflops: Annotated[float | None, typer.Option(min=1e-6, help="Matrix rate of a rank, in place of the known")] = None,
    vocab_size: Annotated[int | None, typer.Option(min=2, help="Of the tokenizer, where the data are not here")] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Speed as this run reached it, on one such device or more")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain values for a program")] = False,
    search: Annotated[bool, typer.Option("--search", help="Rank all ways that fit by planned tokens/s")] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --search: write the best as words of a launch line")
    ] = None,
    deepspeed_config: Annotated[
        str | None,
        typer.Option("--deepspeed_config", metavar="FILE", help="DeepSpeed JSON that wins over the recipe's"),
    ] = None,
) -> None:
    """Plan memory, speed and cost of a recipe on a cluster by formula: exit code 0 if it fits, 2 if not.

    docs/planning.md says how it counts.
    """
    from scaletrain.assemble.planned import planned_steps, workload_of
    from scaletrain.commands.plan_finetune import plan_finetuning
    from scaletrain.config.deepspeed import settle
    from scaletrain.config.finetune_schema import FinetuneRecipe
    from scaletrain.config.load import load_with_deepspeed
    from scaletrain.planner.calibration import at_speed, read_speed
    from scaletrain.planner.cost import DEFAULT_NODE_MTBF_HOURS
    from scaletrain.planner.plan import Plan
    from scaletrain.planner.time import COMPUTE_SHARE, Cluster

    if calibrate is not None and tflops is not None:
        raise ConfigError(f"--calibrate {calibrate} and --tflops {tflops:g} both tell how fast a rank is: give one")
    if write is not None and not search:
        raise ConfigError(f"--write {write} writes what a search finds: give --search too")
    loaded, preset = load_with_deepspeed(recipe, overrides or [], deepspeed_config)
    settled = settle(loaded, preset)
    precision = settled.train.precision or "bf16"
    device = _device(gpu, gpus_per_node, tflops, precision)
    room = _room(device, gpus_per_node)
    if isinstance(settled, FinetuneRecipe):
        plan_finetuning(settled, preset, ranks=nodes * gpus_per_node, precision=precision, room=room)
        return
    work = workload_of(
        settled,
        preset,
        _architecture(settled, vocab_size),
        ranks=nodes * gpus_per_node,
        precision=precision,
        device="cpu" if gpu == CPU else "cuda",
    )
    network = device.network if link_gbps is None else link_gbps / 8 * 1e9
    made = Plan(
        work,
        Cluster(device, nodes, gpus_per_node, network),
        room,
        planned_steps(settled),
        settled.checkpoint.keep_last,
        price,
        mtbf_hours or DEFAULT_NODE_MTBF_HOURS,
        1.0 if tflops is not None else COMPUTE_SHARE,
        "as given" if tflops is not None else "assumed",
    )
    if calibrate is not None:
        made = at_speed(made, read_speed(calibrate, made.cluster.link), f"as {calibrate} reached")
    if search:
        _search(made, recipe, write, as_json=as_json)
        return
    _tell(made, recipe, as_json=as_json)


def _tell(made: "Plan", recipe: Path, *, as_json: bool) -> None:
    from scaletrain.commands.plan_text import describe, verdict
    from scaletrain.planner.fit import remedy

    change = None if made.fits else remedy(made.work, made.room, _presets(recipe))
    if as_json:
        print(json.dumps(made.to_dict() | {"remedy": list(change.overrides) if change else None}, indent=1))
    else:
        print("\n".join([*describe(made), verdict(made, change)]))
    if not made.fits:
        raise typer.Exit(EXIT_USER)


def _search(made: "Plan", recipe: Path, write: Path | None, *, as_json: bool) -> None:
    from scaletrain.commands.plan_text import table
    from scaletrain.planner.search import search
    from scaletrain.runtime.files import write_whole

    found = search(made, _presets(recipe))[:_BEST]
    if as_json:
        rows = [
            {
                "overrides": list(one.variant.overrides),
                "tokens_per_second": one.time.tokens_per_second,
                "peak_with_margins_bytes": made.room.need(one.memory),
            }
            for one in found
        ]
        print(json.dumps(rows, indent=1))
    elif found:
        print("\n".join(table(found, made)))
    if not found:
        raise ConfigError(
            f"{recipe}: no ZeRO stage, checkpointing, micro-batch or offload fits: use more devices or larger ones"
        )
    if write is not None:
        write_whole(write, " ".join(found[0].variant.overrides) + "\n")


def _presets(recipe: Path) -> "dict[str, Zero]":
    """The shipped DeepSpeed files, as a recipe names them."""
    from scaletrain.config.deepspeed_file import load_deepspeed
    from scaletrain.config.load import find_deepspeed
    from scaletrain.planner.zero import read_zero

    names = {name: find_deepspeed(name, recipe) for name in (f"ds_configs/{preset}.json" for preset in PRESETS)}
    return {name: read_zero(load_deepspeed(path)) for name, path in names.items() if isinstance(path, Path)}


def _architecture(recipe: "Recipe", vocab_size: int | None) -> "Architecture":
    """With the tokenizer's size from the option, the data, the recipe, or else assumed."""
    from scaletrain.config.architecture import resolve_architecture

    if recipe.model.init_from is not None:
        from scaletrain.model.hf import architecture_from_hf

        return architecture_from_hf(Path(recipe.model.init_from))
    size = vocab_size or _vocabulary(recipe) or recipe.model.vocab_size
    if size is None:
        size = VOCABULARY
        print(
            f"note    {size:,} tokens of vocabulary assumed, the data are not here: --vocab-size says better",
            file=sys.stderr,
        )
    return resolve_architecture(recipe.model, size, recipe.data.context_length)


def _vocabulary(recipe: "Recipe") -> int | None:
    """Of the prepared data that are on this machine; None where there are none."""
    from scaletrain.config.data_rules import source_places
    from scaletrain.data.shards import INDEX, open_dataset

    for place in source_places(recipe.data).values():
        if "://" not in place and (Path(place).expanduser() / INDEX).is_file():
            return open_dataset(Path(place).expanduser()).tokenizer.vocab_size
    return None


def _device(gpu: str, ranks: int, tflops: float | None, precision: "Precision") -> Hardware:
    """What is known of it, or this machine as one of `ranks`."""
    from dataclasses import replace

    if gpu != CPU:
        known = hardware(gpu)
        return known if tflops is None else replace(known, rates=dict.fromkeys(known.rates, tflops * 1e12))
    rate = tflops * 1e12 if tflops is not None else _probe(precision) / ranks
    return cpu(rate, "this machine; rate " + ("as given" if tflops is not None else "of a 2,048 square product now"))


def _probe(precision: "Precision") -> float:
    import torch

    from scaletrain.track.peak import measure_matrix_rate

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    return measure_matrix_rate(torch.device("cpu"), dtypes[precision], rounds=2)


def _room(device: Hardware, ranks: int) -> "Room":
    from scaletrain.planner.fit import Room
    from scaletrain.runtime.machine import available_memory

    if device.name != CPU:
        return Room(device.memory)
    available = available_memory()
    if available is None:
        raise ConfigError("--gpu cpu: this system does not tell its free memory (no /proc/meminfo): name a GPU")
    return Room(available // ranks, is_cpu=True)
