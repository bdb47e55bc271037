"""Equal to the Hugging Face Trainer: the same weights, data, order, schedule and float32 give the same losses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaletrain.optim.schedule import lr_at
from tests.finetune.conftest import Write
from tests.finetune.training import ZERO, opened, train
from tests.ranks import run_ranks

STEPS = 50


def ours(recipe: str, overrides: list[str], weights: str) -> list[float]:
    """The losses; the weights before the first step go into a file."""
    trained = train(recipe, overrides, STEPS)
    torch.save({name.removeprefix("model."): tensor for name, tensor in trained.first.items()}, weights)
    return trained.losses


@pytest.mark.parametrize(
    ("model", "schedule"),
    [
        ("bert", "constant"),
        pytest.param("llama", "constant", marks=pytest.mark.slow),
        ("gpt2", "linear"),
        pytest.param("llama", "cosine", marks=pytest.mark.slow),
    ],
)
def test_losses_equal_the_trainers_over_fifty_steps(
    model: str, schedule: str, write: Write, models: Path, tmp_path: Path
) -> None:
    """Constant without a warm-up, the others with one, over equal batches."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    recipe, started = write("classify", model), tmp_path / "started.pt"
    warmup = 0 if schedule == "constant" else 10
    changes = [f"optim.schedule={schedule}", f"optim.warmup_steps={warmup}", "optim.weight_decay=0", "optim.lr=1e-3"]
    (losses,) = run_ranks(ours, 1, str(recipe), changes, str(started))
    job, _ = opened(recipe, changes)
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

    class Ordered(Trainer):
        """Takes our order, and our learning rate: the Trainer's own warm-up begins at 0 and loses a step."""

        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(Rows())

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            share = [lr_at(step, job.recipe.optim, STEPS) / job.recipe.optim.lr for step in range(STEPS + 1)]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share.__getitem__)
            return self.lr_scheduler

    network = AutoModelForSequenceClassification.from_pretrained(models / model, config=job.config)
    network.load_state_dict(torch.load(started), strict=True)
    settings = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=1e-3,
        weight_decay=0.0, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        remove_unused_columns=False, max_grad_norm=1.0,
    )  # fmt: skip
    Ordered(network, settings, train_dataset=Rows(), data_collator=collate, callbacks=[Losses()]).train()
    assert len(theirs) == STEPS
    difference = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    print(f"{model}, {schedule}: largest difference {difference:.1e} over {STEPS} steps")
    assert difference < 1e-4
    assert min(losses[-5:]) < losses[0] - 0.05  # and it learned


CASES = [
    ("classify", "bert", []), ("tag", "bert", ["task.crf=true"]), ("span_qa", "bert", []), ("sft", "llama", []),
    ("classify", "llama", ["adapter.kind=lora"]), ("sft", "gpt2", ["adapter.kind=lora"]),
    ("tag", "bert", ["task.crf=true", "adapter.kind=lora", "adapter.targets=all-linear"]),
]  # fmt: skip


def losses_of_all(recipes: list[tuple[str, list[str]]], stage: int) -> list[list[float]]:
    return [train(recipe, [*overrides, ZERO.format(stage)], 6).losses for recipe, overrides in recipes]


def test_losses_are_those_of_one_rank_on_two_at_each_stage(write: Write) -> None:
    recipes = [(str(write(kind, model)), overrides) for kind, model, overrides in CASES]
    single = run_ranks(losses_of_all, 1, recipes, 0, seconds=200)[0]
    for stage in (2, 3):
        double = run_ranks(losses_of_all, 2, recipes, stage, seconds=300)[0]
        for case, one, two in zip(CASES, single, double, strict=True):
            assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 2e-4, (case, stage, json.dumps([one, two]))
