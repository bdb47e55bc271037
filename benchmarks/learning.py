"""What is learned from the same tokens: this project beside the Hugging Face Trainer, on any prepared dataset.

    scaletrain prepare --input 'novels/*.txt' --output data/novels --train-tokenizer 8192 --validation 0.05
    python benchmarks/learning.py data/novels --steps 400 --seeds 1,2

Equal architecture (GPT-2, 6 x 384), batch, tokens, schedule, betas, clipping and weight decay, no dropout, bf16. Both
models are evaluated by `scaletrain evaluate` in float32 on the validation split.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import ROOT, last_line_of, run_program


def train_ours(data: Path, run: Path, steps: int, seed: int) -> None:
    recipe = ROOT / "launch" / "recipes" / "pretrain-novels.yaml"
    overrides = [f"run.dir={run}", f"data.path={data}", f"train.max_steps={steps}", f"seed={seed}"]
    overrides += ["optim.warmup_steps=50", "optim.min_lr_ratio=0", "train.precision=bf16"]
    overrides += ["checkpoint.every_steps=null", "evaluate.every_steps=null", "log.every_steps=50"]
    run_program([sys.executable, str(ROOT / "launch" / "pretrain.py"), str(recipe), *overrides])


def train_peer(data: Path, folder: Path, steps: int, seed: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "hf_trainer.py"), str(data), "--mode", "tuned"]
    run_program([*command, "--steps", str(steps), "--save", str(folder), "--seed", str(seed)])


def validation_loss(model: Path, data: Path) -> float:
    program = Path(sys.executable).parent / "scaletrain"
    command = [str(program), "evaluate", str(model), "--data", str(data), "--context", "512"]
    loss: float = last_line_of([*command, "--dtype", "float32", "--json"])["loss"]
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of 8 samples of 512 tokens")
    parser.add_argument("--seeds", default="1", help="comma-separated; each trains both")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    dataset: Path = args.dataset.resolve()  # the programs run in the clone
    losses: dict[str, list[float]] = {"scaletrain": [], "Trainer": []}
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            for name, train in (("scaletrain", train_ours), ("Trainer", train_peer)):
                began, model = time.perf_counter(), Path(folder) / name
                train(dataset, model, args.steps, seed)
                losses[name].append(validation_loss(model, dataset))
                seconds = time.perf_counter() - began
                print(f"seed {seed}: {name:10} validation loss {losses[name][-1]:.4f} in {seconds:.0f} s", flush=True)
    ours, theirs = (statistics.mean(values) for values in losses.values())
    print(f"mean {ours:.4f} against {theirs:.4f}: {ours / theirs - 1:+.2%}")
    if args.output:
        result = {
            "command": ["python", "benchmarks/learning.py", *sys.argv[1:]],
            "steps": args.steps,
            "validation_loss": losses,
        }
        args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
