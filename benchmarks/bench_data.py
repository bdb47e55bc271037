"""What the training benchmarks train on: Python's own sources as a dataset, and a recipe's overrides for some sizes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import ROOT, run_program
from scaletrain.commands.demo import python_sources

DATA = ROOT / "build" / "benchmark-data"
RECIPE = ROOT / "launch" / "recipes" / "pretrain-novels.yaml"


@dataclass(frozen=True)
class Sizes:
    """A GPT-2 and the samples of a step; `context` is in tokens."""

    layers: int
    heads: int
    hidden: int
    context: int
    batch: int


def prepare_data() -> Path:
    """Python's own sources as a dataset with a vocabulary of 8,192; made once, kept under build/."""
    inputs = [word for path in python_sources() for word in ("--input", path)]
    words = ["prepare", *inputs, "--glob", "**/*.py", "--output", DATA, "--train-tokenizer", "8192"]
    run_program([Path(sys.executable).parent / "scaletrain", *words])
    return DATA


def model_overrides(sizes: Sizes) -> list[str]:
    """The model and its context, in place of the recipe's."""
    return [
        f"data.context_length={sizes.context}",
        "model.preset=null",
        "model.family=gpt2",
        f"model.num_layers={sizes.layers}",
        f"model.num_heads={sizes.heads}",
        f"model.hidden_size={sizes.hidden}",
    ]


def run_overrides(data: Path, run: Path, batch: int, steps: int, stage: int) -> list[str]:
    """A run of `steps` that logs each of them, and neither saves nor evaluates before its end."""
    return [
        f"run.dir={run}",
        f"data.path={data}",
        f"deepspeed={ROOT}/ds_configs/zero{stage}.json",
        f"train.max_steps={steps}",
        f"train.global_batch_size={batch}",
        "checkpoint.every_steps=null",
        "evaluate.every_steps=null",
        "evaluate.max_samples=1",
        "log.every_steps=1",
        "log.tensorboard=false",
    ]


def overrides_for(data: Path, run: Path, sizes: Sizes, steps: int, stage: int) -> list[str]:
    """What turns RECIPE into a run of these sizes at this ZeRO stage."""
    return [*run_overrides(data, run, sizes.batch, steps, stage), *model_overrides(sizes)]
