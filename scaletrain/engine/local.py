"""A model in this process, without DeepSpeed, as an evaluation asks for it."""

from dataclasses import dataclass

import torch
from torch import nn

from scaletrain.data.rows import Batch
from scaletrain.tasks.task import Evaluated, Task


@dataclass(frozen=True)
class LocalModel:
    """As Evaluates."""

    task: Task
    model: nn.Module
    device: torch.device

    @torch.no_grad()
    def eval_step(self, batch: Batch) -> Evaluated:
        self.model.eval()
        return self.task.evaluate(self.model, {name: values.to(self.device) for name, values in batch.items()})
