"""A bare torch loop without DeepSpeed, timed step by step: this project's GPT or a plain one, in several precisions.

    python benchmarks/peers/torch_loop.py DATASET --model ours|plain --precision fp32|autocast|bf16-master|bf16
        [--compile] --steps 12

Prints one JSON object.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.bare_loop import BareLoop
from benchmarks.plain_gpt import PlainGPT, copy_weights
from scaletrain.config.architecture import Architecture, resolve_architecture
from scaletrain.config.schema import Model, Optim
from scaletrain.data.rows import Batch
from scaletrain.data.shards import Dataset, open_dataset, open_tokens
from scaletrain.model.gpt import GPT
from scaletrain.model.init import init_parameters
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.meter import peak_memory_bytes


def batches(dataset: Dataset, context: int, batch: int) -> Iterator[Batch]:
    """Windows of the training tokens, one after another."""
    tokens = np.concatenate([open_tokens(dataset, shard) for shard in dataset.train])
    at = 0
    while True:
        if at + batch * context >= len(tokens):
            at = 0
        ids = torch.from_numpy(tokens[at : at + batch * context + 1].astype(np.int64))
        yield {"input_ids": ids[:-1].view(batch, context), "labels": ids[1:].view(batch, context)}
        at += batch * context


def build(arch: Architecture, model: str) -> nn.Module:
    ours = GPT(arch)
    init_parameters(ours, seed=1)
    if model == "ours":
        return ours
    plain = PlainGPT(arch)
    copy_weights(ours, plain)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--model", choices=("ours", "plain"), required=True)
    parser.add_argument("--precision", choices=("fp32", "autocast", "bf16-master", "bf16"), required=True)
    parser.add_argument("--compile", action="store_true")
    for name in ("layers", "heads", "hidden", "context", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    dataset, device = open_dataset(args.dataset), device_of(World())
    sizes = Model(family="gpt2", num_layers=args.layers, num_heads=args.heads, hidden_size=args.hidden)
    arch = resolve_architecture(sizes, dataset.tokenizer.vocab_size, args.context)
    loop = BareLoop(build(arch, args.model), Optim(), args.precision, device, compiled=args.compile)
    ends = [time.perf_counter()]
    for _, batch in zip(range(args.steps), batches(dataset, args.context, args.batch), strict=False):
        loop.train_step([batch], 3e-4, args.batch * args.context)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(ends)]
    print(json.dumps({"step_seconds": seconds, "peak_memory_bytes": peak_memory_bytes(device)}))


if __name__ == "__main__":
    main()
