"""What a fine-tuning run reads: encoded rows in memory, in an order that is a function of the seed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from scaletrain.data.encoded_rows import EncodedRows
from scaletrain.data.loader import Step, token_steps
from scaletrain.data.order import Order, SampleOrder, Share
from scaletrain.data.rows import Rows
from scaletrain.data.shards import Split
from scaletrain.data.training_data import Reading
from scaletrain.errors import DataError


@dataclass(frozen=True)
class ExampleData:
    """As RunData. `prints`: what decides the rows (files, tokenizer, settings); `save_tokenizer` makes a folder with
    what AutoTokenizer loads."""

    name: str
    training: EncodedRows
    validation: EncodedRows | None
    seed: int
    shuffle: bool
    prints: Mapping[str, Any]
    lines: Sequence[str]
    save_tokenizer: Callable[[], Path]

    @property
    def tokenizer_folder(self) -> Path:
        return self.save_tokenizer()

    @property
    def train(self) -> Mapping[str, EncodedRows]:
        return {"train": self.training}

    def tokens(self, split: Split) -> int:
        if split == "train":
            return self.training.tokens
        return self.validation.tokens if self.validation is not None else 0

    def renumbered(self, recorded: Mapping[str, Any]) -> "ExampleData":
        del recorded  # one source needs no numbers
        return self

    def reading(self, recorded: Mapping[str, Any], samples_seen: int) -> Reading:
        del recorded, samples_seen  # the order is a function of the seed
        return Reading(self._order, {}, False)

    def rows(self, split: Split) -> Rows:
        if split == "train":
            return self.training
        assert self.validation is not None, "nothing is held out"
        return self.validation

    def validation_rows(self) -> Rows | None:
        return self.validation

    def bytes_per_target(self) -> None:
        return None

    def identity(self) -> dict[str, Any]:
        return {**self.prints, "rows": len(self.training), "shuffle": self.shuffle, "seed": self.seed}

    def describe(self) -> list[str]:
        """As RunData."""
        return list(self.lines)

    def report(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"rows": len(self.training), "tokens": self.training.tokens}
        if self.validation is not None:
            shown |= {"validation_rows": len(self.validation), "validation_tokens": self.validation.tokens}
        return {"data": {"train": {"dataset": self.name, **shown}}}

    @property
    def ends_at_repeats(self) -> bool:
        return False

    def plan_notes(self, tokens: int) -> list[str]:
        del tokens
        return []

    def steps(
        self, reading: Reading, share: Share, *, start: int, position: Mapping[str, Any] | None, pin: bool
    ) -> Iterator[Step]:
        """This rank's steps from sample `start` of the run on; endless."""
        assert position is None  # the start is all that it takes
        return token_steps(self.training, reading.order, share, start=start, pin=pin)

    def check_length(self, global_batch: int) -> None:
        """DataError when a batch is larger than the data."""
        if len(self.training) < global_batch:
            raise DataError(
                f"{self.name} gives {len(self.training):,} rows, fewer than one batch of "
                f"train.global_batch_size={global_batch}: lower the batch, or give more examples"
            )

    def repeat_limit(self, order: SampleOrder, samples: int) -> tuple[int, str] | None:
        del order, samples  # an example may be read in each epoch
        return None

    @cached_property
    def _order(self) -> Order:
        return Order(np.array([len(self.training)], dtype=np.int64), self.seed, shuffle=self.shuffle)
