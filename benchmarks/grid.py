"""The cells of the throughput grid, and the arguments that ask for them."""

import argparse
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cell import Cell
from benchmarks.timed import WARM_UP_STEPS
from scaletrain.assemble.settle import DTYPES
from scaletrain.config.schema import Model

HEAD = 64


def grid(args: argparse.Namespace, precision: str) -> list[Cell]:
    """Every combination of what was asked for; `precision` where none was."""
    models = [(preset, Model(preset=preset, vocab_size=args.vocab), 1024) for preset in args.presets]
    sizes = args.sizes or ([] if models else [(6, 384, 512)])
    for layers, hidden, context in sizes:
        heads = max(1, hidden // HEAD)
        model = Model(family=args.family, num_layers=layers, num_heads=heads, hidden_size=hidden, vocab_size=args.vocab)
        models.append((f"{args.family} {layers}x{hidden}", model, context))
    return [
        Cell(label, model, context or own_context, stage, checkpointing, chosen or precision, ranks, batch, more=more)
        for (label, model, own_context), context, stage, checkpointing, chosen, ranks, batch, more in product(
            models,
            args.contexts or [None],
            args.stages,
            args.checkpointing,
            args.precisions or [None],
            args.ranks,
            args.micro_batches,
            args.variants or [()],
        )
    ]


def listed(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument of several values, comma-separated."""

    def read(text: str) -> list[Any]:
        return [kind(word.strip()) for word in text.split(",")]

    read.__name__ = "list"
    return read


def size(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is no size: give layers x hidden x context, such as 6x384x512")
    return int(parts[0]), int(parts[1]), int(parts[2])


def micro_batch(text: str) -> int | None:
    if text == "max":
        return None
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no micro-batch: give a number of samples, or max")
    return int(text)


def precision(text: str) -> str:
    if text not in DTYPES:
        raise argparse.ArgumentTypeError(f"{text} is no precision: choose {', '.join(DTYPES)}")
    return text


def steps(text: str) -> int:
    if not text.isdigit() or int(text) <= WARM_UP_STEPS:
        raise argparse.ArgumentTypeError(f"{text} is too few: give more than the {WARM_UP_STEPS} that are left out")
    return int(text)


def earlier(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file: give what --output wrote in an earlier run")
    return Path(text)


def parser(description: str | None = None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sizes", type=listed(size), default=[])
    made.add_argument("--presets", type=listed(str), default=[])
    made.add_argument("--family", choices=["gpt2", "llama"], default="gpt2", help="of --sizes")
    made.add_argument("--vocab", type=int, help="rows of the embedding; default: the tokenizer's 8,192")
    made.add_argument("--contexts", type=listed(int), help="default: a size's own, 1,024 for a preset")
    made.add_argument("--stages", type=listed(int), default=[1])
    made.add_argument("--checkpointing", type=listed(str), default=["none"])
    made.add_argument("--precisions", type=listed(precision), help="default: bf16 where the device computes in it")
    made.add_argument("--micro-batches", type=listed(micro_batch), default=[8])
    made.add_argument("--ranks", type=listed(int), default=[1])
    made.add_argument(
        "--variant",
        dest="variants",
        type=lambda text: tuple(text.split()),
        action="append",
        metavar="'KEY=VALUE ...'",
        help="overrides of the recipe, such as 'train.compile=blocks train.fp8=true' or "
        "deepspeed=ds_configs/zero2-offload.json; again for another variant, '' for the plain one beside them",
    )
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=steps, default=12, help="optimizer steps of a run; the first two are left out")
    made.add_argument("--memory-gb", type=float, help="on a CPU, for a run; default: 0.8 of what is free")
    made.add_argument("--profile", action="store_true", help="one more run a cell, with torch's profiler on a step")
    made.add_argument("--against", type=earlier, help="JSON of an earlier run: what became slower ends it with 1")
    made.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    return made
