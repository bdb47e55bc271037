"""Rows of a live stream: tokens cut at the row length, drawn from blocks in random order, laid into batches."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaletrain.data.live.documents import Cursor, RankDocuments
from scaletrain.data.loader import pinned
from scaletrain.data.rows import IGNORED, Batch
from scaletrain.data.shards import Tokens
from scaletrain.data.tokenizer import Tokenizer

_FIRST_BLOCK = 32  # rows; each block is twice the one before, so that a run need not wait for a full one


@dataclass(frozen=True)
class RowPosition:
    """Before which row a rank stands: row `row`, in drawn order, of block `block`.

    The block's first token is `skip` tokens after the document at `cursor`. This is all that a checkpoint holds: the
    rows of the block are read again, and drawn again in the order that seed, rank and block give.
    """

    cursor: Cursor = field(default_factory=Cursor)
    skip: int = 0
    block: int = 0
    row: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor.to_dict(), "skip": self.skip, "block": self.block, "row": self.row}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RowPosition":
        return cls(Cursor(**values["cursor"]), values["skip"], values["block"], values["row"])


class RowCutter:
    """Rows of `context` inputs and the token after each, of a rank's documents in the order in which they come.

    Each document ends with the end-of-text token; row t + 1 begins at the token after row t's last input.
    """

    def __init__(self, documents: RankDocuments, tokenizer: Tokenizer, context: int, cursor: Cursor, skip: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._parts = documents.read(cursor)
        self._after = cursor  # of the texts that were taken last
        self._held: deque[tuple[Cursor, Tokens]] = deque()  # tokens of the texts after each cursor
        self._skip = skip  # tokens of those held that earlier rows used
        self._size = 0  # tokens held

    @property
    def place(self) -> tuple[Cursor, int]:
        """Where the next row begins."""
        return (self._held[0][0] if self._held else self._after), self._skip

    def next(self) -> Tokens:
        """The next row, (context + 1,)."""
        whole = self._context + 1
        while self._size < self._skip + whole:
            self._take()
        parts: list[npt.NDArray[Any]] = []
        need, skip = whole, self._skip
        for _, tokens in self._held:
            parts.append(tokens[skip : skip + need])
            need, skip = need - len(parts[-1]), max(0, skip - len(tokens))
            if not need:
                break
        self._skip += self._context
        while self._skip >= len(self._held[0][1]):
            self._skip -= len(self._held[0][1])
            self._size -= len(self._held.popleft()[1])
        return np.concatenate(parts)

    def _take(self) -> None:
        part = next(self._parts)
        tokens = encode_documents(part.texts, self._tokenizer)
        if len(tokens):
            self._held.append((self._after, tokens))
            self._size += len(tokens)
        self._after = part.after


def encode_documents(texts: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    """The tokens of texts one after the other, each ended by the end-of-text token."""
    encoded = tokenizer.encode_batch(texts)
    end = np.array([tokenizer.eos_id], encoded[0].dtype) if encoded else None
    return np.concatenate([part for ids in encoded for part in (ids, end)]) if encoded else np.empty(0, np.uint32)


def draw_rows(
    documents: RankDocuments,
    tokenizer: Tokenizer,
    context: int,
    start: RowPosition,
    *,
    block_rows: int,
    seed: Sequence[int],
) -> Iterator[tuple[Tokens, RowPosition]]:
    """Rows from `start` on, each with the position after it; endless. Two blocks of rows are in memory.

    `block_rows`: rows that are drawn from in random order, 0: none. While a block is used up the next is filled at the
    same pace, so that no step waits for a whole block.
    """
    cutter = RowCutter(documents, tokenizer, context, start.cursor, start.skip)
    first, block = cutter.place, start.block
    rows = [cutter.next() for _ in range(_size_of(block, block_rows))]
    used = start.row
    while True:
        order = np.random.default_rng([*seed, block]).permutation(len(rows))
        following_first, following, size = cutter.place, list[Tokens](), _size_of(block + 1, block_rows)
        for number, chosen in enumerate(order.tolist(), 1):
            while len(following) * len(rows) < number * size:
                following.append(cutter.next())
            if number == len(rows):
                yield rows[chosen], RowPosition(*following_first, block + 1, 0)
            elif number > used:
                yield rows[chosen], RowPosition(*first, block, number)
        first, rows, block, used = following_first, following, block + 1, 0


def _size_of(block: int, block_rows: int) -> int:
    return max(1, min(block_rows, _FIRST_BLOCK << min(block, 32)))


def to_batch(rows: Sequence[Tokens], eos: int, *, document_mask: bool, pin: bool) -> Batch:
    """input_ids and labels (B, T) int64, and documents (B, T) int32 if asked, as CutRows.fetch gives them.

    A document ends at each end-of-text token: encode_batch gives that for no text.
    """
    stream_BT = torch.from_numpy(np.stack(rows).astype(np.int64))
    batch = {"input_ids": stream_BT[:, :-1], "labels": stream_BT[:, 1:]}
    if document_mask:
        is_last_BT = batch["input_ids"] == eos
        batch["labels"] = batch["labels"].masked_fill(is_last_BT, IGNORED)
        # Exclusive: the end-of-text token itself belongs to the document that it ends.
        batch["documents"] = (is_last_BT.cumsum(1) - is_last_BT.long()).to(torch.int32)
    return pinned(batch, pin)
