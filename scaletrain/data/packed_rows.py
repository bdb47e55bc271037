"""Samples packed from whole documents: only those longer than the context are cut, the rest of a row is padding."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from scaletrain.data.cache_folder import making, writing_cache
from scaletrain.data.packing import Packing, pack_documents, read_counts
from scaletrain.data.reader import ARRAYS, TokenSource
from scaletrain.data.rows import IGNORED, Batch, RowsReport
from scaletrain.data.shuffle import Ids
from scaletrain.errors import DataError


class PackedRows:
    """Best-fit packing of each shard's documents into rows of `context` tokens; the plans are kept in `cache`.

    The last token of a document bears no loss; with `document_mask` a batch also names each token's document.
    """

    def __init__(self, source: TokenSource, context: int, cache: Path, *, document_mask: bool = False) -> None:
        self._source, self.context, self.document_mask = source, context, document_mask
        with writing_cache(cache):
            self._plans = _pack(source, context, cache / "packing")
        counts = [read_counts(plan) for plan in self._plans]
        self._packings: dict[int, Packing] = {}
        self._cut_documents = sum(found.cut_documents for found in counts)
        self.shard_rows: Ids = np.array([found.rows for found in counts], dtype=np.int64)
        self._first_rows = np.concatenate([[0], np.cumsum(self.shard_rows)])
        if not len(self):
            raise DataError(f"{source.name} has no document: prepare more text")

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    @property
    def targets(self) -> int:
        """Tokens that all rows together predict: all but the first of each document."""
        return sum(self._source.lengths) - self._source.documents()

    def report(self) -> RowsReport:
        places = len(self) * self.context
        cut = self._cut_documents / self._source.documents()
        return RowsReport(len(self), 1 - sum(self._source.lengths) / places, cut)

    def locate(self, ids: Ids) -> tuple[Ids, Ids]:
        """Shard of each sample, and its row there."""
        shards = np.searchsorted(self._first_rows, ids, side="right") - 1
        return shards, ids - self._first_rows[shards]

    def pieces(self, shard: int, row: int) -> list[tuple[int, int]]:
        """First token and number of tokens of each piece of a row."""
        packing = self._packing(shard)
        low, high = int(packing.rows[row]), int(packing.rows[row + 1])
        return list(zip(packing.starts[low:high].tolist(), packing.lengths[low:high].tolist(), strict=True))

    def prefetch(self, ids: Ids) -> None:
        """As CutRows."""
        self._source.prefetch(list(dict.fromkeys(self.locate(ids)[0].tolist())))

    def fetch(self, ids: Ids) -> Batch:
        """input_ids and labels (B, T) int64, and documents (B, T) int32 if asked; padding bears no loss."""
        inputs = np.zeros((len(ids), self.context), dtype=np.int64)
        labels = np.full((len(ids), self.context), IGNORED, dtype=np.int64)
        begins = np.zeros((len(ids), self.context + 1), dtype=np.int32)
        shards, rows = self.locate(np.maximum(ids, 0))
        for line, (sample, shard, row) in enumerate(zip(ids.tolist(), shards.tolist(), rows.tolist(), strict=True)):
            place = 0
            for start, count in self.pieces(shard, row) if sample >= 0 else []:
                # One token more where the document goes on: the last token of a cut piece has a target too.
                tokens = self._tokens(shard, start, count + self._goes_on(shard, start, count))
                inputs[line, place : place + count] = tokens[:count]
                labels[line, place : place + len(tokens) - 1] = tokens[1:]
                place += count
                begins[line, place] = 1
        batch = {"input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}
        if self.document_mask:
            batch["documents"] = torch.from_numpy(np.cumsum(begins[:, :-1], axis=1, dtype=np.int32))
        return batch

    def _tokens(self, shard: int, start: int, count: int) -> npt.NDArray[np.unsignedinteger]:
        tokens = np.empty(count, self._source.dtype)
        self._source.read(shard, start, tokens.data.cast("B"))
        return tokens

    def _goes_on(self, shard: int, start: int, count: int) -> bool:
        """Whether the document has tokens after this piece, which only a piece that fills its row can have."""
        if count < self.context:
            return False
        ends = self._source.ends(shard)
        return bool(ends[np.searchsorted(ends, np.uint64(start + count))] != start + count)

    def _packing(self, shard: int) -> Packing:
        found = self._packings.get(shard)
        if found is not None:
            ARRAYS.mark(self._packings, shard)
            return found
        found = Packing.load(self._plans[shard])
        ARRAYS.add(self._packings, shard, found, found.nbytes)
        return found


def _pack(source: TokenSource, context: int, folder: Path) -> list[Path]:
    """The file with the plan of each shard, made once for a machine.

    Processes begin at different shards and pass over those that another one is at, to wait for these at last.
    """
    count = len(source.lengths)
    plans = [folder / f"{source.documents_key(shard)}-{context}.npy" for shard in range(count)]
    first = os.getpid() % max(1, count)
    missing = [shard for shard in [*range(first, count), *range(first)] if not plans[shard].exists()]
    if missing:
        source.prefetch_documents(missing)
    for is_last in (False, True):
        for shard in missing:
            if plans[shard].exists():
                continue
            with making(plans[shard], wait=is_last) as is_mine:
                if is_mine and not plans[shard].exists():
                    pack_documents(source.ends(shard), context).save(plans[shard])
    return plans
