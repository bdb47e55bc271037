"""Samples of a token stream: row i is `context` inputs, and for each the token that follows it.

Rows never leave their shard, so that a shard is all that a row needs: remote shards come one by one, and the last row
of each is short and padded. No token is left out.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from scaletrain.data.packing import cut_documents
from scaletrain.data.reader import ShardReader, TokenSource
from scaletrain.data.shards import Dataset, Split
from scaletrain.data.shuffle import Ids
from scaletrain.errors import DataError

Batch = dict[str, torch.Tensor]
_REPORTED_SHARDS = 8
IGNORED = -100  # label that bears no loss, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class RowsReport:
    """Number of rows; padding as a share of their tokens; documents that a row end cuts, as a share of all."""

    rows: int
    padding: float
    cut_documents: float


@dataclass(frozen=True)
class RowPart:
    """Which tokens of each row a rank reads: the `place`-th of `size` equal parts."""

    place: int = 0
    size: int = 1

    def of(self, batch: Batch) -> Batch:
        """input_ids and labels of this part, (B, T / size); documents stay whole, since attention sees all of them."""
        if self.size == 1:
            return batch
        count = batch["input_ids"].shape[1] // self.size
        mine = slice(self.place * count, (self.place + 1) * count)
        return {**batch, "input_ids": batch["input_ids"][:, mine], "labels": batch["labels"][:, mine]}


WHOLE = RowPart()


class Rows(Protocol):
    """Samples by number. `fetch` builds one batch on the CPU; the id -1 gives a padding row that bears no loss."""

    def __len__(self) -> int: ...

    def fetch(self, ids: Ids) -> Batch: ...


class CutRows:
    """Concatenate-and-cut: row i of a shard is its tokens from i * context on.

    With `document_mask` a batch names each token's document (the model keeps attention inside it), and the last token
    of a document bears no loss: what follows it is another text.
    """

    def __init__(self, source: TokenSource, context: int, *, document_mask: bool = False) -> None:
        self._source, self.context, self.document_mask = source, context, document_mask
        self.lengths = np.array(source.lengths, dtype=np.int64)
        self.shard_rows: Ids = -(-np.maximum(self.lengths - 1, 0) // context)
        self._first_rows = np.concatenate([[0], np.cumsum(self.shard_rows)])
        self._buffer: npt.NDArray[np.unsignedinteger] = np.empty((0, 0), source.dtype)
        self._lines: list[memoryview] = []
        if not len(self):
            raise DataError(
                f"{source.name} has {int(self.lengths.sum()):,} tokens, fewer than the 2 that a sample takes: "
                "prepare more text"
            )

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def targets(self) -> int:
        """Tokens that all rows together predict: all but the first of each shard, or of each document under a mask."""
        firsts = self._source.documents() if self.document_mask else int((self.lengths > 0).sum())
        return int(self.lengths.sum()) - firsts

    def report(self) -> RowsReport:
        """The share of cut documents is of the first eight shards: remote ones must be fetched for it."""
        inputs = int((self.lengths - (self.lengths % self.context == 1)).sum())
        seen = cut = 0
        for shard in range(min(_REPORTED_SHARDS, len(self.lengths))):
            ends = self._source.ends(shard)
            seen, cut = seen + len(ends), cut + cut_documents(ends, self.context)
        return RowsReport(len(self), 1 - inputs / (len(self) * self.context), cut / max(1, seen))

    def pieces(self, shard: int, start: int) -> list[tuple[int, int]]:
        """First token and number of tokens of a row, in the form of PackedRows."""
        return [(start, min(self.context, int(self.lengths[shard]) - start))]

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Shard and first token of each sample."""
        shards = np.searchsorted(self._first_rows, ids, side="right") - 1
        return shards, (ids - self._first_rows[shards]) * self.context

    def prefetch(self, ids: Ids) -> None:
        """These samples are needed soon, in this order."""
        self._source.prefetch(list(dict.fromkeys(self.locate(ids)[0].tolist())))

    def fetch(self, ids: Ids) -> Batch:
        """input_ids and labels (B, T) int64, label t being token t + 1 of the stream; documents (B, T) int32 if asked.

        Both are views of the same memory where every label bears loss.
        """
        padding = ids < 0
        shards, starts = self.locate(np.maximum(ids, 0))
        found = np.where(padding, 0, np.minimum(self.lengths[shards] - starts, self.context + 1))
        stream = torch.from_numpy(self._read(shards.tolist(), starts.tolist(), found.tolist()))
        batch = {"input_ids": stream[:, :-1], "labels": stream[:, 1:]}
        short = np.flatnonzero(found <= self.context).tolist()
        if short or self.document_mask:
            batch["labels"] = batch["labels"].clone()
        for row in short:
            batch["labels"][row, max(int(found[row]) - 1, 0) :] = IGNORED
        if self.document_mask:
            batch["documents"] = self._documents(shards.tolist(), starts.tolist(), found.tolist(), batch["labels"])
        return batch

    def _read(self, shards: list[int], starts: list[int], found: list[int]) -> npt.NDArray[np.int64]:
        """Tokens of the rows, (B, T + 1), 0 where there are none."""
        if len(self._buffer) != len(shards):
            self._buffer = np.empty((len(shards), self.context + 1), self._source.dtype)
            self._lines = [memoryview(line).cast("B") for line in self._buffer]
        read, whole, itemsize = self._source.read, self.context + 1, self._source.dtype.itemsize
        for row, (shard, start, count) in enumerate(zip(shards, starts, found, strict=True)):
            if count == whole:
                read(shard, start, self._lines[row])
                continue
            self._buffer[row, count:] = 0
            if count:
                read(shard, start, self._lines[row][: count * itemsize])
        return self._buffer.astype(np.int64)

    def _documents(self, shards: list[int], starts: list[int], found: list[int], labels: torch.Tensor) -> torch.Tensor:
        """Number of each token's document within its row; takes the loss from the last token of each document."""
        begins = np.zeros((len(shards), self.context + 1), dtype=np.int32)
        for row, (shard, start, count) in enumerate(zip(shards, starts, found, strict=True)):
            if count:
                begins[row, inner_ends(self._source, shard, start, min(count, self.context))] = 1
        labels[torch.from_numpy(begins[:, 1:] != 0)] = IGNORED
        return torch.from_numpy(np.cumsum(begins[:, :-1], axis=1, dtype=np.int32))


def inner_ends(source: TokenSource, shard: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Ends of documents in start < end <= start + count, relative to start."""
    ends = source.ends(shard)
    low, high = np.searchsorted(ends, np.array([start, start + count], np.uint64), side="right")
    return ends[low:high].astype(np.int64) - start


def split_rows(dataset: Dataset, split: Split, context: int, *, document_mask: bool = False) -> CutRows:
    """Concatenate-and-cut rows of a split, read from its shards when they are fetched."""
    return CutRows(ShardReader(dataset, split), context, document_mask=document_mask)
