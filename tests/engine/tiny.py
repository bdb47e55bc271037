"""A task small enough to train in a test: next-token prediction on a made-up stream by a small MLP."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scaletrain.config.schema import Optim
from scaletrain.data.order import Order, Share
from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shuffle import Ids
from scaletrain.engine import checkpoint
from scaletrain.engine.checkpoint import Identity
from scaletrain.engine.engine import Engine
from scaletrain.engine.state import RunState
from scaletrain.optim.schedule import lr_at
from scaletrain.runtime import dist
from scaletrain.tasks.task import Gather, Sums

VOCAB, CONTEXT = 32, 8


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 16)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.head = nn.Linear(32, VOCAB)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(functional.gelu(self.up(self.norm(self.embedding(input_ids)))))


class TinyRows:
    """Arithmetic progressions: learnable, and row i is the same everywhere."""

    def __init__(self, count: int = 64) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fetch(self, ids: Ids) -> Batch:
        start = (ids * 7) % VOCAB
        stride = 1 + ids % 3
        stream = torch.from_numpy((start[:, None] + stride[:, None] * np.arange(CONTEXT + 1)) % VOCAB)
        labels = stream[:, 1:].clone()
        labels[torch.from_numpy(ids) < 0] = IGNORED
        return {"input_ids": stream[:, :-1].contiguous(), "labels": labels}


class TinyTask:
    def build_model(self) -> nn.Module:
        return TinyModel()

    def initialise(self, model: nn.Module, gather: Gather) -> None:
        for number, parameter in enumerate(model.parameters()):
            with torch.no_grad(), gather(parameter) as writes:
                if writes:
                    values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
                    parameter.copy_(values)

    def rows(self, split: str) -> TinyRows:
        return TinyRows()

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        logits = model(batch["input_ids"]).float().flatten(0, 1)
        loss = functional.cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")
        return {"loss": loss, "items": (batch["labels"] != IGNORED).sum()}

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return {"loss": sums["loss"] / sums["items"]}


def engine_dict(stage: int, precision: str, ranks: int, accumulation: int = 1) -> dict[str, Any]:
    """A DeepSpeed config for batches of 8 samples."""
    return {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 8 // ranks // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
        # DeepSpeed keeps small parameters whole at stage 3; 0 has them partitioned, as large ones are.
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "steps_per_print": 10**9,
    }


OPTIM = Optim(lr=1e-2, warmup_steps=5, grad_clip=0.5, weight_decay=0.3)


def train(
    stage: int,
    precision: str,
    *,
    steps: int = 20,
    accumulation: int = 1,
    save_at: int | None = None,
    root: Path | None = None,
    resume: bool = False,
) -> list[float]:
    """Losses of steps (first..steps) with this stage on however many ranks there are; saves or resumes below `root`."""
    share = Share(dist.rank(), dist.size(), 8 // dist.size() // accumulation, accumulation)
    engine = Engine(TinyTask(), engine_dict(stage, precision, dist.size(), accumulation), OPTIM, torch.device("cpu"))
    state, losses, rows = RunState(), [], TinyRows()
    identity = Identity(layout={"zero_stage": stage}, model={}, data={})
    if resume:
        assert root is not None
        found = checkpoint.newest_good(root, lambda name, why: None)
        assert found is not None
        engine.load(found.folder)
        state = found.state
    order = Order(len(rows), seed=1)
    while state.step < steps:
        batches = [rows.fetch(ids) for ids in share.of(order.ids(state.samples_seen, 8))]
        losses.append(engine.train_step(batches, lr_at(state.step, OPTIM, 40), 8 * CONTEXT).loss())
        state = state.advance(8, 8 * CONTEXT)
        if state.step == save_at:
            assert root is not None
            checkpoint.save(root, engine, state, identity, {})
    return losses


def train_plainly(steps: int = 20) -> list[float]:
    """The same training by a bare torch loop, float32, one process: what the engine must equal."""
    task, rows, order = TinyTask(), TinyRows(), Order(64, seed=1)
    model = task.build_model()
    task.initialise(model, lambda parameter: nullcontext(True))
    decay = [p for n, p in model.named_parameters() if n in ("up.weight", "head.weight")]
    rest = [p for n, p in model.named_parameters() if n not in ("up.weight", "head.weight")]
    groups = [{"params": decay, "weight_decay": 0.3}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=OPTIM.betas, eps=OPTIM.eps)
    losses = []
    for step in range(steps):
        batch = rows.fetch(order.ids(step * 8, 8))
        loss = task.loss_sums(model, batch)["loss"] / (8 * CONTEXT)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, OPTIM, 40)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
