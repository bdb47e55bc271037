"""A task small enough to train in a test: next-token prediction on a made-up stream by a small MLP."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shuffle import Ids
from scaletrain.model.init import Gather
from scaletrain.tasks.scores.result import Scores
from scaletrain.tasks.task import Evaluated, Prediction, Sums, Text

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
    needs_compiler = False

    def build_model(self) -> nn.Module:
        return TinyModel()

    def initialise(self, model: nn.Module, gather: Gather) -> None:
        for number, parameter in enumerate(model.parameters()):
            with torch.no_grad(), gather(parameter) as writes:
                if writes:
                    values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
                    parameter.copy_(values)

    def learning_rate_scale(self, name: str) -> float:
        return 1.0

    def rows(self, split: str) -> TinyRows:
        return TinyRows()

    def tokens(self, batch: Batch) -> int:
        return batch["input_ids"].numel()

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        logits = model(batch["input_ids"]).float().flatten(0, 1)
        loss = functional.cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")
        return {"loss": loss, "items": (batch["labels"] != IGNORED).sum()}

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        return Evaluated(self.loss_sums(model, batch))

    def texts(self, model: nn.Module) -> Sequence[Text]:
        del model
        return ()

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        assert not predictions
        return Scores({"loss": sums["loss"] / sums["items"]})
