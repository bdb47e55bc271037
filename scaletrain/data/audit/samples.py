"""Samples decoded for eyes: of each piece the source, the place in the shard, the document and the text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.reader import ShardReader
from scaletrain.data.rows import CutRows
from scaletrain.data.shards import DTYPES, Dataset, Split
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.data.training_data import TrainingData


@dataclass(frozen=True)
class Piece:
    """Tokens of one document in a sample: where they begin in the shard and in the document, and whether it ends."""

    file: str
    first_token: int
    tokens: int
    document: int
    document_token: int
    is_end: bool
    text: str


@dataclass(frozen=True)
class Sample:
    """A row of a source, from its first piece to the padding (tokens) at its end."""

    source: str
    row: int
    pieces: tuple[Piece, ...]
    padding: int


def decode_samples(data: TrainingData, split: Split, rows: Sequence[tuple[str, int]]) -> list[Sample]:
    """These rows, each given by its source and its number there."""
    tokenizer = load_tokenizer(data.tokenizer_folder)
    all_rows = data.train if split == "train" else data.validation
    return [
        _decode(data.sources[name], split, all_rows[name], name, row, tokenizer, data.options.context_length)
        for name, row in rows
    ]


def _decode(
    dataset: Dataset, split: Split, rows: CutRows | PackedRows, name: str, row: int, tokenizer: Tokenizer, context: int
) -> Sample:
    shards, places = rows.locate(np.array([row], dtype=np.int64))
    shard, reader = int(shards[0]), ShardReader(dataset, split)
    runs = rows.pieces(shard, int(places[0]))
    pieces = [
        _piece(reader, dataset, split, shard, begin, end, tokenizer)
        for start, count in runs
        for begin, end in _by_document(reader, shard, start, start + count)
    ]
    return Sample(name, row, tuple(pieces), context - sum(count for _, count in runs))


def _by_document(reader: ShardReader, shard: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Tokens start..end-1 of a shard, cut where documents end."""
    low, high = np.searchsorted(reader.ends(shard), np.array([start, end - 1], np.uint64), side="right")
    edges = [start, *map(int, reader.ends(shard)[low:high]), end]
    yield from pairwise(edges)


def _piece(
    reader: ShardReader, dataset: Dataset, split: Split, shard: int, start: int, end: int, tokenizer: Tokenizer
) -> Piece:
    ends = reader.ends(shard)
    document = int(np.searchsorted(ends, np.uint64(start), side="right"))
    tokens = np.empty(end - start, DTYPES[dataset.dtype])
    reader.read(shard, start, tokens.data.cast("B"))
    return Piece(
        file=dataset.shards(split)[shard].file,
        first_token=start,
        tokens=end - start,
        document=document,
        document_token=start - (int(ends[document - 1]) if document else 0),
        is_end=document < len(ends) and int(ends[document]) == end,
        text=tokenizer.decode(tokens, skip_special_tokens=False),
    )
