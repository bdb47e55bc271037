"""The script that most people start from: Hugging Face Trainer + GPT2LMHeadModel, timed step by step.

    python benchmarks/peers/hf_trainer.py DATASET --mode default|tuned [--no-dropout] [--save DIR --lr 1e-3 ...]

`default`: Trainer's and GPT2Config's own settings, dropout of 0.1 among them. `tuned`: bf16 and the fused AdamW on top.
With --save the model is trained for its quality: no dropout, warm-up and cosine, betas as ours, and kept in DIR. Prints
one JSON object.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from scaletrain.data.shards import open_dataset, open_tokens
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.meter import peak_memory_bytes


class Windows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Consecutive windows of the training tokens."""

    def __init__(self, folder: Path, context: int) -> None:
        dataset = open_dataset(folder)
        self.tokens = np.concatenate([open_tokens(dataset, shard) for shard in dataset.train])
        self.context, self.vocab = context, dataset.tokenizer.vocab_size

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        window = self.tokens[index * self.context : (index + 1) * self.context]
        ids = torch.from_numpy(window.astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class StepTimes(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--mode", choices=("default", "tuned"), default="default")
    parser.add_argument("--no-dropout", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    windows, tuned = Windows(args.dataset, args.context), args.mode == "tuned"
    config = GPT2Config(
        n_layer=args.layers,
        n_head=args.heads,
        n_embd=args.hidden,
        vocab_size=windows.vocab,
        n_positions=args.context,
        bos_token_id=0,
        eos_token_id=0,
        **({"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if args.save or args.no_dropout else {}),
    )
    schedule = {
        "learning_rate": args.lr,
        "warmup_steps": args.warmup,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "seed": args.seed,
    }
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output_dir=output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            save_strategy="no",
            report_to=[],
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=tuned,
            optim="adamw_torch_fused" if tuned else "adamw_torch",
            **(schedule if args.save else {}),
        )
        set_seed(args.seed)  # the weights are drawn before Trainer sets it
        times = StepTimes()
        model = GPT2LMHeadModel(config)
        Trainer(model=model, args=settings, train_dataset=windows, callbacks=[times]).train()
    if args.save:
        model.save_pretrained(args.save)
        shutil.copytree(args.dataset / "tokenizer", args.save, dirs_exist_ok=True)
    seconds = [b - a for a, b in zip(times.ends, times.ends[1:], strict=False)]
    print(json.dumps({"step_seconds": seconds, "peak_memory_bytes": peak_memory_bytes(device_of(World()))}))


if __name__ == "__main__":
    main()
