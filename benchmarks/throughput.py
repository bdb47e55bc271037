"""Tokens a second of a training step: this project beside the script that most people start from.

    python benchmarks/throughput.py [--rounds 3] [--steps 12] [--output benchmarks/results/NAME.json]

Each round runs every contestant once, one after another, each in a process of its own, on the same dataset (Python's
own source files, an 8,192-token vocabulary) with the same sizes. A contestant's figure is the median step of a round,
without the first two; the ratio is taken within a round, so a machine whose speed drifts does not decide it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaletrain.assemble.settle import DTYPES, best_precision
from scaletrain.commands.demo import python_sources
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.data.shards import open_dataset
from scaletrain.engine.run_folder import environment
from scaletrain.model.count import flops_per_token
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.peak import peak_of

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "build" / "benchmark-data"
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Sizes:
    """The model and batch that every contestant trains."""

    layers: int
    heads: int
    hidden: int
    context: int
    batch: int


def prepare_data() -> Path:
    """Python's own source as a dataset; made once."""
    program = Path(sys.executable).parent / "scaletrain"
    inputs = [argument for path in python_sources() for argument in ("--input", path)]
    command = [str(program), "prepare", *inputs, "--glob", "**/*.py", "--output", str(DATA)]
    subprocess.run([*command, "--train-tokenizer", "8192"], check=True, stdout=subprocess.DEVNULL)
    return DATA


def time_ours(data: Path, sizes: Sizes, steps: int, stage: int) -> list[float]:
    """Step times of launch/pretrain.py, from the metrics.jsonl that every run writes."""
    run = Path(tempfile.mkdtemp(prefix="scaletrain-benchmark-"))
    overrides = [
        f"run.dir={run}",
        f"data.path={data}",
        f"data.context_length={sizes.context}",
        "model.preset=null",
        "model.family=gpt2",
        f"model.num_layers={sizes.layers}",
        f"model.num_heads={sizes.heads}",
        f"model.hidden_size={sizes.hidden}",
        f"deepspeed={ROOT}/ds_configs/zero{stage}.json",
        f"train.max_steps={steps}",
        f"train.global_batch_size={sizes.batch}",
        "checkpoint.every_steps=null",
        "evaluate.every_steps=null",
        "evaluate.max_samples=1",
        "log.every_steps=1",
    ]
    recipe = ROOT / "launch" / "recipes" / "pretrain-novels.yaml"
    try:
        _output([sys.executable, str(ROOT / "launch" / "pretrain.py"), str(recipe), *overrides])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    finally:
        shutil.rmtree(run, ignore_errors=True)
    return [line["step_seconds"] for line in lines if "step_seconds" in line]


def time_peer(data: Path, sizes: Sizes, steps: int, mode: str) -> list[float]:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "hf_trainer.py"), str(data), "--mode", mode]
    for name in ("layers", "heads", "hidden", "context", "batch"):
        command += [f"--{name}", str(getattr(sizes, name))]
    seconds: list[float] = json.loads(_output([*command, "--steps", str(steps)]).splitlines()[-1])["step_seconds"]
    return seconds


def _output(command: list[str]) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run_round(data: Path, sizes: Sizes, steps: int) -> dict[str, float]:
    """The median step of each contestant, seconds, and the matrix rate measured between them, FLOP/s."""
    device = device_of(World())
    rate = peak_of(device, DTYPES[best_precision(device)]).flops
    assert rate is not None
    timed = {
        "scaletrain, ZeRO 1": time_ours(data, sizes, steps, 1),
        "Trainer, defaults": time_peer(data, sizes, steps, "default"),
        "scaletrain, ZeRO 0": time_ours(data, sizes, steps, 0),
        "Trainer, bf16 + fused AdamW": time_peer(data, sizes, steps, "tuned"),
    }
    medians = {name: statistics.median(seconds[WARM_UP_STEPS:]) for name, seconds in timed.items()}
    return {**medians, "matrix": rate}


def summarise(rounds: list[dict[str, float]], sizes: Sizes, flops: float) -> list[dict[str, Any]]:
    """A row a contestant: tokens/s, FLOP/s, share of the matrix rate, and how much faster our default is."""
    tokens, rows = sizes.batch * sizes.context, []
    for name in (name for name in rounds[0] if name != "matrix"):
        speed = [tokens / r[name] for r in rounds]
        rows.append(
            {
                "name": name,
                "tokens_per_second": statistics.median(speed),
                "spread": [min(speed), max(speed)],
                "flops": statistics.median(speed) * flops,
                "share_of_matrix_rate": statistics.median(
                    s * flops / r["matrix"] for s, r in zip(speed, rounds, strict=True)
                ),
                "ours_is_faster_by": statistics.median(r[name] / r["scaletrain, ZeRO 1"] for r in rounds),
            }
        )
    return rows


def show(rows: list[dict[str, Any]], sizes: Sizes, rounds: int) -> None:
    table = Table(title=f"{sizes.layers} x {sizes.hidden}, {sizes.batch} x {sizes.context} tokens, {rounds} rounds")
    for column in ("", "tokens/s", "spread", "GFLOP/s", "of matrix rate", "ours / this"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        low, high = row["spread"]
        table.add_row(
            row["name"],
            f"{row['tokens_per_second']:,.0f}",
            f"{low:,.0f} - {high:,.0f}",
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['share_of_matrix_rate']:.0%}",
            f"{row['ours_is_faster_by']:.2f}x",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps a contestant and round")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    args = parser.parse_args()
    sizes = Sizes(args.layers, args.heads, args.hidden, args.context, args.batch)
    data = prepare_data()
    model = Model(family="gpt2", num_layers=args.layers, num_heads=args.heads, hidden_size=args.hidden)
    arch = resolve_architecture(model, open_dataset(data).tokenizer.vocab_size, args.context)
    flops = flops_per_token(arch, args.context)
    rounds = []
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", flush=True)
        rounds.append(run_round(data, sizes, args.steps))
    rows = summarise(rounds, sizes, flops)
    show(rows, sizes, args.rounds)
    print(f"one token: {flops / 1e6:.1f} MFLOP (6 N + causal attention); matrix rate: a 2,048 square product")
    if args.output:
        about = environment(World(), device_of(World()), {})
        about["command"] = ["python", "benchmarks/throughput.py", *sys.argv[1:]]  # no path or name of this machine
        del about["host"]
        result = {"environment": about, "sizes": vars(sizes), "flops_per_token": flops, "rows": rows, "rounds": rounds}
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
