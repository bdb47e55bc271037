"""LitGPT's own GPT and pretraining step, timed step by step; run by the Python that install.sh litgpt makes.

    build/peers/litgpt/bin/python benchmarks/peers/litgpt_loop.py DATASET --precision bf16-mixed|bf16-true --steps 12

As litgpt/pretrain.py does it: Fabric, its initial weights, torch.compile, AdamW, chunked_cross_entropy, gradients
clipped at 1.0, a running mean of the loss; no logs, evaluation or files. The model is a Pythia with our sizes and
GPT-2's residual order: rotary positions on a quarter of each head in place of learned ones, tied embeddings, GELU in
its tanh form. AdamW is fused on a CPU too, where pretrain.py's is not: to its advantage. Imports nothing of this
project. Prints one JSON object.
"""

import argparse
import json
import resource
import time
from itertools import pairwise
from pathlib import Path

import lightning as L
import numpy as np
import torch
from litgpt.model import GPT, Config
from litgpt.pretrain import initialize_weights
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from torch.utils.data import DataLoader, Dataset
from torchmetrics.aggregation import RunningMean


class Windows(Dataset):  # type: ignore[type-arg]
    """Windows of context + 1 training tokens, as litgpt's data modules give."""

    def __init__(self, folder: Path, context: int) -> None:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        files = [shard["file"] for shard in index["train"]]
        self.tokens = np.concatenate([np.load(folder / file) for file in files])
        self.context, self.vocabulary = context, index["tokenizer"]["vocab_size"]

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.tokens[index * self.context :][: self.context + 1].astype(np.int64))


def build(fabric: L.Fabric, args: argparse.Namespace, vocabulary: int) -> torch.nn.Module:
    config = Config(
        name="gpt2-like",
        block_size=args.context,
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.hidden,
        padded_vocab_size=-(-vocabulary // 128) * 128,
        intermediate_size=4 * args.hidden,
        parallel_residual=False,
        gelu_approximate="tanh",
    )
    with fabric.init_module(empty_init=True):
        model = GPT(config)
    initialize_weights(fabric, model, n_layer=config.n_layer, n_embd=config.n_embd)
    model.transformer.wte.weight = model.lm_head.weight
    model.max_seq_length = args.context
    return fabric.setup(torch.compile(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--precision", choices=("bf16-mixed", "bf16-true"), required=True)
    for name in ("layers", "heads", "hidden", "context", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    fabric = L.Fabric(devices=1, precision=args.precision)
    fabric.launch()
    fabric.seed_everything(42, verbose=False)
    windows = Windows(args.dataset, args.context)
    model = build(fabric, args, windows.vocabulary)
    optimizer = fabric.setup_optimizers(instantiate_torch_optimizer("AdamW", model.parameters(), fused=True))
    loader = fabric.setup_dataloaders(DataLoader(windows, batch_size=args.batch))
    loss_mean = RunningMean(window=1, sync_on_compute=False).to(fabric.device)
    ends = [time.perf_counter()]
    for _, rows in zip(range(args.steps), loader, strict=False):
        loss = chunked_cross_entropy(model(rows[:, :-1].contiguous()), rows[:, 1:].contiguous())
        fabric.backward(loss)
        loss_mean.update(loss.detach())
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss_mean.compute().item()
        ends.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if fabric.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"step_seconds": [b - a for a, b in pairwise(ends)], "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
