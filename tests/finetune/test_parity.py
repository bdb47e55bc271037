"""Equal to the Hugging Face Trainer: the same weights, data, order, schedule and float32 give the same losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaletrain.assemble.finetuning import Finetuning, open_job
from scaletrain.assemble.settle import settle_launch
from scaletrain.config.deepspeed import settle
from scaletrain.config.load import load_with_deepspeed, need_finetuning
from scaletrain.data.order import Share
from scaletrain.engine.engine import Engine
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.runtime.world import World
from tests.finetune.conftest import Write
from tests.ranks import run_ranks

STEPS = 50


def opened(recipe: Path, *overrides: str) -> tuple[Finetuning, Any]:
    loaded, preset = load_with_deepspeed(recipe, overrides)
    settled = settle(need_finetuning(loaded, recipe), preset)
    launch = settle_launch(settled, preset, World(size=dist.size(), rank=dist.rank()))
    return open_job(settled, launch), launch


def our_losses(recipe: str, overrides: list[str], steps: int) -> tuple[list[float], str]:
    """Mean losses of each step, and the initial weights in a file."""
    job, launch = opened(Path(recipe), *overrides)
    task = job.task(job.data)
    engine = Engine(task, launch.deepspeed, job.recipe.optim, torch.device("cpu"))
    weights = Path(recipe).with_suffix(".pt")
    if launch.deepspeed["zero_optimization"]["stage"] != 3:
        torch.save({n: p.clone() for n, p in engine._engine.module.named_parameters()}, weights)
    share = Share(dist.rank(), dist.size(), launch.batch.micro_batch, launch.batch.accumulation)
    found, source = [], job.data.steps(job.data.reading({}, 0), share, start=0, position=None, pin=False)
    for step in range(steps):
        batches = next(source).batches
        mine = sum(task.weight(batch) for batch in batches)
        (weight,) = dist.sum_integers([mine])
        result = engine.train_step(batches, lr_at(step, job.recipe.optim, steps), weight)
        found.append(result.loss())
    return found, str(weights)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_losses_equal_the_trainers_over_fifty_steps(model: str, write: Write, models: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    recipe = write("classify", model)
    changes = ["optim.schedule=constant", "optim.warmup_steps=0", "optim.weight_decay=0", "optim.lr=1e-3"]
    (ours, weights), *_ = run_ranks(our_losses, 1, str(recipe), changes, STEPS)
    job, _ = opened(recipe, *changes)
    order = job.data.reading({}, 0).order.ids(0, STEPS * 8)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return STEPS * 8

        def __getitem__(self, place: int) -> int:
            return int(order[place])

    def collate(numbers: list[int]) -> dict[str, torch.Tensor]:
        batch = job.data.training.fetch(np.array(numbers))
        types = {"token_type_ids": batch["token_type_ids"]} if "token_type_ids" in batch else {}
        return {name: batch[name] for name in ("input_ids", "attention_mask")} | types | {"labels": batch["target"]}

    theirs: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                theirs.append(float(logs["loss"]))

    network = AutoModelForSequenceClassification.from_pretrained(models / model, config=job.config)
    started = torch.load(weights)
    network.load_state_dict({n.removeprefix("model."): p for n, p in started.items()}, strict=False)

    class Unshuffled(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(Rows())

    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-3,
        lr_scheduler_type="constant", weight_decay=0.0, logging_steps=1, save_strategy="no", report_to=[],
        use_cpu=True, remove_unused_columns=False, max_grad_norm=1.0,
    )  # fmt: skip
    Unshuffled(network, settings, train_dataset=Rows(), data_collator=collate, callbacks=[Losses()]).train()
    assert len(theirs) == STEPS
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert min(ours[-5:]) < ours[0] - 0.05  # and it learned


CASES = [
    ("classify", "bert", []), ("tag", "bert", ["task.crf=true"]), ("span_qa", "bert", []), ("sft", "llama", []),
    ("classify", "llama", ["adapter.kind=lora"]), ("sft", "gpt2", ["adapter.kind=lora"]),
    ("tag", "bert", ["task.crf=true", "adapter.kind=lora", "adapter.targets=all-linear"]),
]  # fmt: skip


def losses_of_all(recipes: list[tuple[str, list[str]]]) -> list[list[float]]:
    return [our_losses(recipe, overrides, 6)[0] for recipe, overrides in recipes]


def test_losses_are_those_of_one_rank_on_two_at_each_stage(write: Write) -> None:
    def recipes(stage: int) -> list[tuple[str, list[str]]]:
        return [(str(write(kind, model, stage)), overrides) for kind, model, overrides in CASES]

    single = run_ranks(losses_of_all, 1, recipes(0), seconds=200)[0]
    for stage in (2, 3):
        double = run_ranks(losses_of_all, 2, recipes(stage), seconds=300)[0]
        for case, one, two in zip(CASES, single, double, strict=True):
            assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 2e-4, (case, stage, json.dumps([one, two]))
