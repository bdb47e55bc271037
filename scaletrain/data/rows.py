"""Samples of a token stream: row i is `context` inputs and the same tokens one position on."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from scaletrain.data.shards import Dataset, Split, Tokens, open_tokens
from scaletrain.data.shuffle import Ids
from scaletrain.errors import DataError

Batch = dict[str, torch.Tensor]
IGNORED = -100  # label that bears no loss, as in torch.nn.functional.cross_entropy


class Rows(Protocol):
    """Samples by number. `fetch` builds one batch on the CPU; the id -1 gives a padding row that bears no loss."""

    def __len__(self) -> int: ...
    def fetch(self, ids: Ids) -> Batch: ...


class TokenRows:
    """Concatenate-and-cut rows over arrays of tokens, such as the shards of a split; `source` names them in an error.

    Training rows are whole: the last (tokens - 1) % context tokens are left out. With `partial` the last row is short
    and padded, so that an evaluation sees each token once.
    """

    def __init__(self, arrays: Sequence[Tokens], context: int, source: str, *, partial: bool = False) -> None:
        self._tokens = list(arrays)
        self._starts = np.cumsum([0, *map(len, self._tokens)])
        self.context = context
        self.total = int(self._starts[-1])
        self._rows = -(-(self.total - 1) // context) if partial else (self.total - 1) // context
        if self._rows < 1:
            need = 2 if partial else context + 1
            raise DataError(
                f"{source} has {self.total:,} tokens, fewer than the {need:,} that one sample "
                f"of context_length={context} takes: prepare more text or shorten data.context_length"
            )

    def __len__(self) -> int:
        return self._rows

    def fetch(self, ids: Ids) -> Batch:
        """input_ids (B, T) int64 and labels (B, T) int64, label t being token t + 1 of the stream."""
        tokens = np.zeros((len(ids), self.context + 1), dtype=np.int64)
        short: list[tuple[int, int]] = []
        for row, sample in enumerate(ids.tolist()):
            found = self._read(sample * self.context, tokens[row]) if sample >= 0 else 0
            if found <= self.context:
                short.append((row, found))
        stream = torch.from_numpy(tokens)
        labels = stream[:, 1:].contiguous()
        for row, found in short:
            labels[row, max(found - 1, 0) :] = IGNORED
        return {"input_ids": stream[:, :-1].contiguous(), "labels": labels}

    def _read(self, start: int, out: np.ndarray) -> int:
        """Copies the tokens from position `start` into `out`, over shard ends; how many there were."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(out) and shard < len(self._tokens):
            offset = start + filled - int(self._starts[shard])
            part = self._tokens[shard][offset : offset + len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            shard += 1
        return filled


def split_rows(dataset: Dataset, split: Split, context: int, *, partial: bool = False) -> TokenRows:
    """The rows of a split, read from its memory-mapped shards when they are fetched."""
    arrays = [open_tokens(dataset, shard) for shard in dataset.shards(split)]
    return TokenRows(arrays, context, f"{dataset.path}: the {split} split", partial=partial)
