"""Tokens a second of a training step: this project beside other trainers on the same model, batch and data.

    python benchmarks/peers.py [--size small|base] [--rounds 3] [--steps 12] [--output benchmarks/results/NAME.json]

Contestants: this project at ZeRO 1 and 0, on a GPU also with its blocks compiled; the Hugging Face Trainer with its
defaults (dropout of 0.1 among them, which no other here has), with bf16 and the fused AdamW, and so without dropout;
LitGPT; nanoGPT's train.py; and a bare torch loop, on this project's GPT and on a plain one of torch's own parts.
A peer that is not installed is left out, and told. In each round everyone runs once, one after another, in a process of
its own, on Python's own source files with a vocabulary of 8,192. A contestant's figure is the median step of a round,
without the first two (torch.compile works in the first). Ratios are taken within a round, and shares are of the
round's median matrix rate, measured before each turn, so a machine whose speed drifts decides neither. All see one GPU.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.bench_data import RECIPE, Sizes, overrides_for, prepare_data
from benchmarks.record import ROOT, in_turn, last_line_of, matrix_rate, run_program, save
from benchmarks.turn import OURS, WARM_UP_STEPS, Turn, median_step, rows_of
from scaletrain.config.architecture import resolve_architecture
from scaletrain.config.schema import Model
from scaletrain.data.shards import open_dataset
from scaletrain.model.count import flops_per_token

PEERS, INSTALLED = ROOT / "benchmarks" / "peers", ROOT / "build" / "peers"
SIZES = {"small": Sizes(6, 6, 384, 512, 8), "base": Sizes(12, 12, 768, 1024, 4)}
# Name, script, what it is told.
SCRIPTS: dict[str, tuple[str, str]] = {
    "Trainer, defaults": ("hf_trainer.py", "--mode default"),
    "Trainer, bf16 + fused AdamW": ("hf_trainer.py", "--mode tuned"),
    "Trainer, bf16 + fused AdamW, no dropout": ("hf_trainer.py", "--mode tuned --no-dropout"),
    "LitGPT, bf16-mixed": ("litgpt_loop.py", "--precision bf16-mixed"),
    "LitGPT, bf16-true": ("litgpt_loop.py", "--precision bf16-true"),
    "nanoGPT's train.py": ("nanogpt_loop.py", ""),
    "torch loop, our GPT, bf16 + float32 weights": ("torch_loop.py", "--model ours --precision bf16-master"),
    "torch loop, plain GPT, float32": ("torch_loop.py", "--model plain --precision fp32"),
    "torch loop, plain GPT, autocast": ("torch_loop.py", "--model plain --precision autocast"),
    "torch loop, plain GPT, autocast, compiled": ("torch_loop.py", "--model plain --precision autocast --compile"),
    "torch loop, plain GPT, bf16 weights": ("torch_loop.py", "--model plain --precision bf16"),
    "torch loop, plain GPT, bf16 weights, compiled": ("torch_loop.py", "--model plain --precision bf16 --compile"),
}
# Of those that install.sh installs: its name there, and the Python that runs it where that is not ours.
NEEDS: dict[str, tuple[str, Path | None]] = {
    "litgpt_loop.py": ("litgpt", INSTALLED / "litgpt" / "bin" / "python"),
    "nanogpt_loop.py": ("nanogpt", None),
}


def one_gpu() -> dict[str, str]:
    """With several the Trainer would train on all, in DataParallel."""
    return {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}


def run_ours(data: Path, sizes: Sizes, steps: int, stage: int, *more: str) -> Turn:
    """launch/pretrain.py, by the metrics.jsonl that every run writes."""
    rate = matrix_rate()
    with tempfile.TemporaryDirectory(prefix="scaletrain-benchmark-") as folder:
        run = Path(folder) / "run"
        words = [*overrides_for(data, run, sizes, steps, stage), *more]
        run_program([sys.executable, ROOT / "launch" / "pretrain.py", RECIPE, *words], **one_gpu())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "step_seconds" in line]
    return Turn(rate, median_step([line["step_seconds"] for line in lines]), lines[-1]["peak_memory_bytes"])


def run_peer(data: Path, sizes: Sizes, steps: int, script: str, told: str) -> Turn:
    rate = matrix_rate()
    numbers = {**asdict(sizes), "steps": steps}
    words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    _, python = NEEDS.get(script, ("", None))
    found = last_line_of([python or sys.executable, PEERS / script, data, *told.split(), *words], **one_gpu())
    return Turn(rate, median_step(found["step_seconds"]), found["peak_memory_bytes"])


def contestants(data: Path, sizes: Sizes, steps: int, wanted: str) -> dict[str, Callable[[], Turn]]:
    """Those in whose name the pattern `wanted` is found, ours at ZeRO 1 in any case; says what is missing."""
    runs: dict[str, Callable[[], Turn]] = {
        f"scaletrain, ZeRO {stage}": partial(run_ours, data, sizes, steps, stage) for stage in (1, 0)
    }
    if torch.cuda.is_available():
        runs["scaletrain, ZeRO 1, compiled"] = partial(run_ours, data, sizes, steps, 1, "train.compile=blocks")
    for name, (script, told) in SCRIPTS.items():
        installed, _ = NEEDS.get(script, ("", None))
        if installed and not (INSTALLED / installed).exists():
            print(f"without {name}: benchmarks/peers/install.sh {installed} installs it", flush=True)
            continue
        runs[name] = partial(run_peer, data, sizes, steps, script, told)
    return {name: run for name, run in runs.items() if name == OURS or re.search(wanted, name)}


def show(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    table = Table(title=title)
    for column in ("", "tokens/s", "range", "of matrix rate", "ours / this", "range", "peak MB"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        speed, ratio = row["tokens_per_second"], row["ours_is_faster_by"]
        table.add_row(
            row["name"],
            f"{speed['median']:,.0f}",
            f"{speed['low']:,.0f} - {speed['high']:,.0f}",
            f"{row['share_of_matrix_rate']['median']:.0%}",
            f"{ratio['median']:.2f}x",
            f"{ratio['low']:.2f} - {ratio['high']:.2f}",
            f"{row['peak_memory_bytes'] / 1e6:,.0f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    for name in asdict(SIZES["small"]):
        parser.add_argument(f"--{name}", type=int, help="in place of that of --size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps a contestant and round")
    parser.add_argument("--only", default="", help="contestants in whose name this regular expression is found")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    args = parser.parse_args()
    if args.steps <= WARM_UP_STEPS + 1:
        parser.error(f"--steps {args.steps}: the first {WARM_UP_STEPS} do not count, give {WARM_UP_STEPS + 2} or more")
    given = {name: vars(args)[name] for name in asdict(SIZES["small"]) if vars(args)[name] is not None}
    sizes = Sizes(**{**asdict(SIZES[args.size]), **given})
    data = prepare_data()
    model = Model(family="gpt2", num_layers=sizes.layers, num_heads=sizes.heads, hidden_size=sizes.hidden)
    arch = resolve_architecture(model, open_dataset(data).tokenizer.vocab_size, sizes.context)
    flops, tokens = flops_per_token(arch, sizes.context), sizes.batch * sizes.context

    def tell(number: int, name: str, turn: Turn) -> None:
        print(
            f"round {number + 1} of {args.rounds}  {name:46} {tokens / turn.step_seconds:10,.0f} tokens/s", flush=True
        )

    rounds = in_turn(contestants(data, sizes, args.steps, args.only), args.rounds, tell)
    rows = rows_of(rounds, tokens, flops)
    show(rows, f"{sizes.layers} x {sizes.hidden}, {sizes.batch} x {sizes.context} tokens, {args.rounds} rounds")
    print(f"one token: {flops / 1e6:.1f} MFLOP (6 N + causal attention)")
    if args.output:
        settings = {**asdict(sizes), "rounds": args.rounds, "steps": args.steps, "flops_per_token": flops}
        raw = [{name: asdict(turn) for name, turn in one.items()} for one in rounds]
        save(args.output, "peers.py", settings, rows, rounds=raw)


if __name__ == "__main__":
    main()
