"""Seconds that a checkpoint stalls training, and seconds until it is on the disk, beside DeepSpeed's and torch's own.

    python benchmarks/checkpoint.py [--rounds 3] [--folder DIR] [--output benchmarks/results/NAME.json]

One process, one rank, GPT-2 124M in float32 under ZeRO stage 1 (1.5 GB of weights and moments). Each round saves the
same state once in each way, one after another, into new folders below --folder, with all of the disk's queue written
before (sync). `stall`: until training could go on. `total`: until the way's own call says that it is done; whether that
means the page cache or the disk, and whether a hash was taken, is in the table. `raw`: as many zeros written in blocks
of 16 MiB, with fsync. Peers: engine.save_checkpoint of DeepSpeed (which stores the model's own weights beside the
masters, a third more bytes), torch.distributed.checkpoint save and async_save (gloo, with its defaults).
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import checkpoint_torch
from rich.console import Console
from rich.table import Table

from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Model, Optim
from scaletrain.engine import checkpoint, fragments
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.run_folder import environment
from scaletrain.engine.state import RunState
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from scaletrain.tasks.pretrain import PretrainTask

BLOCK = 16 << 20
Times = tuple[float, float]  # stall and total, seconds
WAYS = {
    "scaletrain, background": "disk, hashed",
    "scaletrain, waiting": "disk, hashed",
    "DeepSpeed": "page cache",
    "torch DCP": "disk",
    "torch DCP, async": "disk",
    "raw": "disk",
}


def build_engine() -> Engine:
    """GPT-2 124M after one step, so that the optimizer has its moments."""
    architecture = resolve_architecture(Model(preset="gpt2-124m", vocab_size=50304), 50304, 64)
    task = PretrainTask(architecture, None, seed=1, init_from=None, activation_checkpointing="none")  # type: ignore[arg-type]
    config: dict[str, Any] = {
        "train_batch_size": 1,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 1},
        "steps_per_print": 10**9,
    }
    engine = Engine(task, config, Optim(), torch.device("cpu"))
    ids = torch.arange(64)[None]
    engine.train_step([{"input_ids": ids, "labels": ids}], 1e-4, 64)
    return engine


def save_ours(engine: Engine, folder: Path, *, background: bool) -> Times:
    began = time.perf_counter()
    pending = checkpoint.begin(folder, engine, RunState(1), Identity({}, {}, {}), {}, background=background)
    stall = time.perf_counter() - began
    checkpoint.finish(pending)
    total = time.perf_counter() - began
    return (stall if background else total), total


def save_deepspeed(engine: Engine, folder: Path) -> Times:
    began = time.perf_counter()
    engine._engine.save_checkpoint(str(folder), tag="one")
    total = time.perf_counter() - began
    return total, total


def write_raw(size: int, folder: Path) -> Times:
    block = bytes(BLOCK)
    began = time.perf_counter()
    folder.mkdir()
    with (folder / "raw").open("wb", buffering=0) as file:
        for at in range(0, size, BLOCK):
            file.write(block[: size - at])
        os.fsync(file.fileno())
    total = time.perf_counter() - began
    return total, total


def run_round(engine: Engine, root: Path) -> dict[str, Times]:
    """Each way once; every folder is removed and the disk quiet before the next."""
    held = fragments.pieces(engine._engine, 1)
    state = {
        f"{kind}/{piece.name}": values
        for kind in fragments.KINDS
        for piece in held
        if (values := fragments.values(engine._engine, piece, kind)) is not None
    }
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    ways: dict[str, Callable[[Path], Times]] = {
        "scaletrain, background": lambda folder: save_ours(engine, folder, background=True),
        "scaletrain, waiting": lambda folder: save_ours(engine, folder, background=False),
        "DeepSpeed": lambda folder: save_deepspeed(engine, folder),
        "torch DCP": lambda folder: checkpoint_torch.save(state, folder, background=False),
        "torch DCP, async": lambda folder: checkpoint_torch.save(state, folder, background=True),
        "raw": lambda folder: write_raw(size, folder),
    }
    found = {}
    for number, (name, way) in enumerate(ways.items()):
        os.sync()
        folder = root / str(number)
        found[name] = way(folder)
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    dist.start(World())
    engine = build_engine()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        run_round(engine, Path(root))  # warm-up: buffers, imports, the disk's allocation
        rounds = [run_round(engine, Path(root)) for _ in range(options.rounds)]
    medians = {name: [statistics.median(r[name][i] for r in rounds) for i in (0, 1)] for name in WAYS}
    table = Table("way", "stall s", "total s", "stall / DeepSpeed's", "total / raw", "when done")
    for name, (stall, total) in medians.items():
        ratios = [stall / medians["DeepSpeed"][0], total / medians["raw"][1]]
        table.add_row(name, f"{stall:.2f}", f"{total:.2f}", *(f"{ratio:.2f}" for ratio in ratios), WAYS[name])
    Console().print(table)
    if options.output:
        found = {"medians_stall_total": medians, "rounds": rounds, **environment(World(), torch.device("cpu"), {})}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
