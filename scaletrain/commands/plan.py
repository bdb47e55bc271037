"""`scaletrain plan`: whether a recipe fits, how fast it goes and what it costs, before anything is started."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaletrain.config.hardware import CPU, hardware_names
from scaletrain.errors import EXIT_USER, ConfigError

if TYPE_CHECKING:
    from scaletrain.planner.plan import Plan
    from scaletrain.planner.zero import Zero

_BEST = 10


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="section.key=value", help="As for training")] = None,
    nodes: Annotated[int, typer.Option(min=1, max=100_000, help="How many nodes")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, max=1024, help="Devices, and ranks, of each node")] = 1,
    gpu: Annotated[str, typer.Option(help=f"Device: {', '.join(hardware_names())} (this machine)")] = "h100",
    price: Annotated[float | None, typer.Option(min=0, max=1e6, help="Of one device's hour")] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(min=0.01, max=1e9, help="Hours between faults of one node; default: Llama 3's")
    ] = None,
    link_gbps: Annotated[
        float | None, typer.Option(min=0.001, max=1e6, help="Network of a device to other nodes")
    ] = None,
    host_memory_gb: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="Memory of a GPU node; without it, it is told and not judged"),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=1e-6, max=1e6, help="Matrix rate of a rank, in place of the known")
    ] = None,
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
    from scaletrain.commands.plan_finetune import plan_finetuning
    from scaletrain.commands.planned_recipe import at_speed_of, device_of, plan_recipe, room_of
    from scaletrain.config.deepspeed import settle
    from scaletrain.config.finetune_schema import FinetuneRecipe
    from scaletrain.config.load import load_with_deepspeed

    if host_memory_gb is not None and gpu == CPU:
        raise ConfigError(f"--host-memory-gb {host_memory_gb:g}: this machine tells its own memory: leave it out")
    if calibrate is not None and tflops is not None:
        raise ConfigError(f"--calibrate {calibrate} and --tflops {tflops:g} both tell how fast a rank is: give one")
    if write is not None and not search:
        raise ConfigError(f"--write {write} writes what a search finds: give --search too")
    loaded, preset = load_with_deepspeed(recipe, overrides or [], deepspeed_config)
    if search:  # it finds its own; the given one may not divide among so many ranks
        train = loaded.train.model_copy(update={"micro_batch_size": None})
        loaded = loaded.model_copy(update={"train": train})
    settled = settle(loaded, preset)
    device = device_of(gpu, gpus_per_node, settled, tflops)
    if link_gbps is not None:
        device = replace(device, network=link_gbps / 8 * 1e9)
    if isinstance(settled, FinetuneRecipe):
        given = {
            "--search": search, "--json": as_json, "--price": price is not None, "--calibrate": calibrate is not None,
            "--mtbf-hours": mtbf_hours is not None, "--vocab-size": vocab_size is not None,
            "--link-gbps": link_gbps is not None, "--tflops": tflops is not None and gpu != CPU,
        }  # fmt: skip
        if any(given.values()):
            words = ", ".join(name for name, is_given in given.items() if is_given)
            raise ConfigError(f"{words}: of a fine-tuning memory alone is planned, and told in words: leave it out")
        room = room_of(device, gpus_per_node, host_memory_gb)
        plan_finetuning(settled, preset, ranks=nodes * gpus_per_node, room=room)
        return
    made = plan_recipe(
        settled,
        preset,
        device,
        nodes=nodes,
        devices_per_node=gpus_per_node,
        vocab_size=vocab_size,
        host_memory_gb=host_memory_gb,
    )
    made = replace(made, price=price, node_mtbf_hours=mtbf_hours or made.node_mtbf_hours)
    if tflops is not None:
        made = replace(made, share=1.0, share_source="as given")
    if calibrate is not None:
        made = at_speed_of(made, calibrate)
    if search:
        own = {str(deepspeed_config or loaded.deepspeed): made.work.zero}
        _search(made, recipe, own, write, as_json=as_json)
        return
    _tell(made, recipe, as_json=as_json)


def _tell(made: "Plan", recipe: Path, *, as_json: bool) -> None:
    from scaletrain.commands.plan_text import describe, verdict
    from scaletrain.commands.planned_recipe import remedy_of

    change = None if made.fits else remedy_of(made, recipe)
    if as_json:
        print(json.dumps(made.to_dict() | {"remedy": list(change.overrides) if change else None}, indent=1))
    else:
        print("\n".join([*describe(made), verdict(made, change)]))
    if not made.fits:
        raise typer.Exit(EXIT_USER)


def _search(made: "Plan", recipe: Path, own: "dict[str, Zero]", write: Path | None, *, as_json: bool) -> None:
    """`own`: the recipe's DeepSpeed file, which need not be a shipped one."""
    from scaletrain.commands.plan_text import table
    from scaletrain.commands.planned_recipe import shipped_presets
    from scaletrain.planner.search import search
    from scaletrain.runtime.files import write_whole

    shipped = shipped_presets(recipe)
    presets = shipped if set(own.values()) <= set(shipped.values()) else shipped | own
    found = search(made, presets)[:_BEST]
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
