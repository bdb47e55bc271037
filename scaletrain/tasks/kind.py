"""What a kind of fine-tuning is: how examples become rows, what is learned from a batch, what an evaluation tells."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import nn

from scaletrain.data.encoded_rows import Row
from scaletrain.data.examples.example import Example
from scaletrain.data.rows import Batch
from scaletrain.data.shards import Split
from scaletrain.model.network import Head
from scaletrain.tasks.scores.result import Scores
from scaletrain.tasks.task import Evaluated, Prediction, Sums


class Encoded(NamedTuple):
    """Rows of a split, and what a person should know of them (such as how many were cut), a line each."""

    rows: list[Row]
    notes: list[str]


class Shown(NamedTuple):
    """A row as a person sees it: its tokens, each with whether something is learned from it, and what is to be said."""

    tokens: list[tuple[str, bool]]
    answer: str


class Kind(Protocol):
    @property
    def head(self) -> Head: ...

    def config(self) -> dict[str, Any]:
        """What the model's config must say."""
        ...

    def extra(self, config: Any) -> nn.Module | None:
        """What is trained beside the transformers model, with unset weights."""
        ...

    def encode(self, examples: Sequence[Example], split: Split) -> Encoded: ...

    def collate(self, rows: Sequence[Row | None]) -> Batch:
        """A batch on the CPU; None is a padding row, which bears no loss."""
        ...

    def weight(self, batch: Batch) -> int: ...

    def tokens(self, batch: Batch) -> int: ...

    def loss_sums(self, model: nn.Module, batch: Batch) -> Sums:
        """`model`: a Network, or the engine around it."""
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Evaluated: ...

    @property
    def metric_names(self) -> Sequence[str]: ...

    def metrics(self, sums: Mapping[str, float], predictions: Sequence[Prediction]) -> Scores: ...

    def describe(self) -> list[str]:
        """What is learned, in lines for a person."""
        ...

    def show(self, row: Row) -> Shown: ...

    def record(self) -> dict[str, Any]:
        """What an exported model must say, so that it can be evaluated later: labels, say."""
        ...
