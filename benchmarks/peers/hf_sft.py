"""Instruction tuning as most scripts do it: Hugging Face Trainer + PEFT, an example a row, padded to the longest.

    python benchmarks/peers/hf_sft.py MODEL messages.jsonl --steps 12 [--max-length 256] [--batch 8]

bf16, the fused AdamW, LoRA on all linear layers; labels of the answers only, as ours. Prints one JSON object: seconds
and tokens (without padding) of each step, and the peak of resident memory.
"""

import argparse
import json
import resource
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments, set_seed

from scaletrain.data.conversation import read_conversation


class StepTimes(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    set_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = []
    for line in args.data.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        if all(message["content"].strip() for message in messages):
            one = read_conversation(messages, tokenizer, "").cut(args.max_length)
            labels = [token if is_answer else -100 for token, is_answer in zip(one.ids, one.answers, strict=True)]
            examples.append({"input_ids": one.ids.tolist(), "labels": [int(label) for label in labels]})
    tokens: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        longest = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
        pad = tokenizer.pad_token_id
        ids = [row["input_ids"] + [pad] * (longest - len(row["input_ids"])) for row in rows]
        labels = [row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "attention_mask": torch.tensor(mask)}

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    times = StepTimes()
    with tempfile.TemporaryDirectory() as output:
        settings = TrainingArguments(
            output_dir=output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=1e-3,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            logging_steps=1000,
            remove_unused_columns=False,
            dataloader_num_workers=0,
        )
        trainer = Trainer(model, settings, train_dataset=examples, data_collator=collate, callbacks=[times])
        began = time.perf_counter()
        trainer.train()
    ends = [began, *times.ends]
    seconds = [after - before for before, after in pairwise(ends)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_seconds": seconds, "step_tokens": tokens[: len(seconds)], "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
