"""The one seam between the engine and the work: what a task gives, and what it never sees (ranks, DeepSpeed, files)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from scaletrain.data.rows import Batch, Rows
from scaletrain.data.shards import Split
from scaletrain.model.init import Gather
from scaletrain.tasks.scores.result import Scores

Sums = dict[str, torch.Tensor]  # "loss" and "items", and whatever else the task's metrics need; scalars
Text = dict[str, str]  # "prompt" and how it goes on, "text"
Prediction = dict[str, Any]  # what a model said of one row, for JSON; "row" is its number


class Evaluated(NamedTuple):
    """Of one batch; `predictions` without those of padding rows."""

    sums: Sums
    predictions: Sequence[Prediction] = ()


class Task(Protocol):
    """What is trained on what. Sums, never means: the engine divides by the items of all ranks."""

    @property
    def needs_compiler(self) -> bool:
        """Whether the model is compiled, or its library loads torch's compiler."""
        ...

    def build_model(self) -> nn.Module:
        """The model with unset weights."""
        ...

    def initialise(self, model: nn.Module, gather: Gather) -> None:
        """Sets every weight, one parameter at a time inside `gather`. May put adapters into the model."""
        ...

    def learning_rate_scale(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied with."""
        ...

    def rows(self, split: Split) -> Rows: ...

    def weight(self, batch: Batch) -> int:
        """Loss-bearing items of a CPU batch."""
        ...

    def tokens(self, batch: Batch) -> int:
        """Tokens of a CPU batch that count as read."""
        ...

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        """`loss` (differentiable) and `items`, summed over the batch."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated:
        """As loss_sums, and what the metrics need of single rows. All ranks call it at once."""
        ...

    def texts(self, model: nn.Module) -> Sequence[Text]:
        """What the model writes by itself after an evaluation. All ranks call it at once."""
        ...

    @property
    def metric_names(self) -> Sequence[str]:
        """What `metrics` may tell."""
        ...

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores:
        """Metrics of an evaluation from its sums over all batches and ranks, and the predictions of every row once,
        in the order of their numbers."""
        ...
