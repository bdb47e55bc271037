"""Rows of token ids in memory, one or several an example; a batch of them is put together by their task."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from scaletrain.data.rows import Batch
from scaletrain.data.shuffle import Ids

Row = dict[str, Any]  # numpy arrays and numbers, as the task's `collate` takes them
Collate = Callable[[Sequence[Row | None]], Batch]  # None: a padding row, which bears no loss


class EncodedRows:
    """As Rows; each batch names its rows in "row", padding -1."""

    def __init__(self, rows: Sequence[Row], collate: Collate) -> None:
        self.rows, self._collate = rows, collate

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)

    def fetch(self, ids: Ids) -> Batch:
        numbers = ids.tolist()
        batch = self._collate([self.rows[number] if number >= 0 else None for number in numbers])
        return {**batch, "row": torch.tensor(numbers, dtype=torch.int64)}


def padded_length(longest: int, multiple: int = 8) -> int:
    """Of the rows of a batch."""
    return max(multiple, -(-longest // multiple) * multiple)


def padded(lists: Sequence[Sequence[int]], fill: int, multiple: int = 8, *, left: bool = False) -> torch.Tensor:
    """(B, T) int64: the lists, filled up to the longest one's length rounded up to `multiple`."""
    longest = padded_length(max((len(values) for values in lists), default=0), multiple)
    out = torch.full((len(lists), longest), fill, dtype=torch.int64)
    for line, values in zip(out, lists, strict=True):
        if len(values):
            place = slice(-len(values), None) if left else slice(len(values))
            line[place] = torch.as_tensor(values, dtype=torch.int64)
    return out
