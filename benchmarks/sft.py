"""Tokens a second of instruction tuning on ragged data: this project beside Hugging Face Trainer + PEFT.

    python -m benchmarks.real_data chatterbot-en smollm2
    python benchmarks/sft.py [--rounds 3] [--steps 16] [--output benchmarks/results/NAME.json]

The same model, examples, LoRA, optimizer, length and places a step (rows x max_length) on one process, in turn, each
round in the opposite order. Tokens are those of examples: padding does not count. The first two steps are left out.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, last_line_of, run_program, surroundings

MODEL, DATA = ROOT / "data/real/models/smollm2", ROOT / "data/real/chatterbot-en/train.jsonl"
WARM_UP_STEPS = 2


def ours(steps: int, rows: int, length: int, *, packing: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"run.dir={folder}", "data.validation=null", "evaluate.every_steps=null", "checkpoint.every_steps=null",
            "checkpoint.best_metric=null", "log.every_steps=1", "log.tensorboard=false", f"train.max_steps={steps}",
            f"train.global_batch_size={rows}", f"train.micro_batch_size={rows}", f"data.max_length={length}",
            f"data.packing={str(packing).lower()}", "deepspeed=ds_configs/zero1.json", "adapter.rank=16",
        ]  # fmt: skip
        recipe = ROOT / "launch/recipes/finetune-chat.yaml"
        run_program([sys.executable, str(ROOT / "launch/finetune.py"), str(recipe), *overrides])
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "step_seconds" in line][WARM_UP_STEPS:]
    tokens = sum(line["tokens_per_second"] * line["step_seconds"] for line in lines)
    return _figures(tokens, sum(line["step_seconds"] for line in lines), lines[-1]["peak_memory_bytes"])


def peer(steps: int, rows: int, length: int) -> dict[str, float]:
    command = [sys.executable, str(ROOT / "benchmarks/peers/hf_sft.py"), str(MODEL), str(DATA)]
    command += ["--steps", str(steps), "--batch", str(rows), "--max-length", str(length)]
    found = last_line_of(command)
    tokens, seconds = found["step_tokens"][WARM_UP_STEPS:], found["step_seconds"][WARM_UP_STEPS:]
    return _figures(sum(tokens), sum(seconds), found["peak_memory_bytes"])


def _figures(tokens: float, seconds: float, peak: float) -> dict[str, float]:
    return {"tokens_per_second": tokens / seconds, "peak_memory_mb": peak / 1e6, "tokens": tokens, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="examples a step of the Trainer; ours packs into rows // 4")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    contestants = {
        "scaletrain, packed": lambda: ours(args.steps, max(1, args.rows // 4), args.length, packing=True),
        "scaletrain, an example a row": lambda: ours(args.steps, args.rows, args.length, packing=False),
        "Trainer + PEFT": lambda: peer(args.steps, args.rows, args.length),
    }
    rounds: list[dict[str, Any]] = []
    for number in range(args.rounds):
        names = list(contestants) if number % 2 == 0 else list(reversed(contestants))
        found = {name: contestants[name]() for name in names}
        rounds.append(found)
        base = found["Trainer + PEFT"]
        for name, one in found.items():
            ratio = one["tokens_per_second"] / base["tokens_per_second"]
            print(f"round {number + 1}  {name:30} {one['tokens_per_second']:8.1f} tokens/s  {ratio:5.2f} x  "
                  f"{one['peak_memory_mb']:8,.0f} MB", flush=True)  # fmt: skip
    ratios = {
        name: [r[name]["tokens_per_second"] / r["Trainer + PEFT"]["tokens_per_second"] for r in rounds]
        for name in contestants
    }
    for name, values in ratios.items():
        print(f"{name:30} {statistics.median(values):5.2f} x ({min(values):.2f} to {max(values):.2f})")
    if args.output is not None:
        settings = {name: value for name, value in vars(args).items() if name != "output"}
        report = {"settings": settings, "environment": surroundings("sft.py"), "rounds": rounds}
        args.output.write_text(json.dumps({**report, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
