"""Best-fit packing: documents laid into rows so that none that fits into a row is cut (Ding et al. 2024).

A document longer than a row gives full rows and a remainder. Remainders and shorter documents go, longest first, each
into the row that it leaves the least room in (best-fit decreasing); only then is a new row opened.
"""

import os
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scaletrain.data.shards import HEADER_BYTES, npy_header
from scaletrain.errors import DataError
from scaletrain.runtime.files import write_whole

_MARK = int.from_bytes(b"packing1", "little")  # first word of a saved packing
_WORD = np.dtype("<u8")
_HEAD = 5  # words before its arrays: mark, context, cut documents, pieces, rows

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """The rows of one shard. Within a row pieces stand in the order of the shard; rows follow their last piece.

    A cut document's pieces thus keep their order. `cut_documents` are longer than the context.
    """

    starts: npt.NDArray[np.uint64]  # (pieces,) first token of each piece inside the shard
    lengths: npt.NDArray[np.uint32]  # (pieces,)
    rows: npt.NDArray[np.uint64]  # (rows + 1,): row r holds the pieces rows[r]:rows[r + 1]
    context: int
    cut_documents: int

    def __len__(self) -> int:
        return len(self.rows) - 1

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.uint64))

    @property
    def padding_tokens(self) -> int:
        return len(self) * self.context - self.tokens

    @property
    def padding(self) -> float:
        """Share of the rows' places that hold no token."""
        return self.padding_tokens / (len(self) * self.context) if len(self) else 0.0

    @property
    def nbytes(self) -> int:
        return int(self.starts.nbytes + self.lengths.nbytes + self.rows.nbytes)

    def save(self, path: Path) -> None:
        """Writes one .npy file of 64-bit words, whole or not at all."""
        pieces = len(self.starts)
        words = np.zeros(_words(pieces, len(self)), dtype=_WORD)
        words[:_HEAD] = _MARK, self.context, self.cut_documents, pieces, len(self)
        words[_HEAD : _HEAD + pieces] = self.starts
        words[_HEAD + pieces : _HEAD + pieces + len(self.rows)] = self.rows
        words[_HEAD + pieces + len(self.rows) :].view("<u4")[:pieces] = self.lengths
        write_whole(path, npy_header(_WORD, len(words)) + words.tobytes())

    @staticmethod
    def load(path: Path) -> "Packing":
        """A saved packing, its arrays in memory and read-only; DataError if the file holds none."""
        counts = read_counts(path)
        with _reading(path):
            words = np.fromfile(path, _WORD, offset=HEADER_BYTES)
        words.flags.writeable = False
        pieces, rows = counts.pieces, counts.rows
        starts, offsets = words[_HEAD : _HEAD + pieces], words[_HEAD + pieces : _HEAD + pieces + rows + 1]
        lengths = words[_HEAD + pieces + rows + 1 :].view("<u4")[:pieces]
        return Packing(starts, lengths, offsets, counts.context, counts.cut_documents)


class Counts(NamedTuple):
    """What the first words of a saved packing say."""

    context: int
    cut_documents: int
    pieces: int
    rows: int


def read_counts(path: Path) -> Counts:
    """The counts of a saved packing, its arrays left alone; DataError if the file holds none."""
    with _reading(path), path.open("rb") as file:
        header, head, size = file.read(HEADER_BYTES), file.read(_HEAD * 8), os.fstat(file.fileno()).st_size
    words = np.frombuffer(head, _WORD).tolist() if len(head) == _HEAD * 8 else [0] * _HEAD
    length = _words(words[3], words[4])
    if words[0] != _MARK or size != HEADER_BYTES + length * 8 or header != npy_header(_WORD, length):
        raise DataError(f"{path} is no whole packing of this version: delete it and pack again")
    return Counts(*words[1:])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): delete it and pack again") from error


def _words(pieces: int, rows: int) -> int:
    return _HEAD + pieces + rows + 1 + (pieces + 1) // 2


def pack_documents(ends: npt.NDArray[np.uint64], context: int) -> Packing:
    """Rows of at most `context` tokens for the documents that end at `ends` (exclusive; the first begins at token 0).

    Empty documents are left out. DataError if the ends decrease.
    """
    assert context >= 1
    begins, lengths = _documents(ends)
    counts = -(-lengths // context)  # pieces of each document
    firsts = np.cumsum(counts) - counts
    place = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(firsts, counts)  # of a piece in its document
    starts = np.repeat(begins, counts) + place * context
    sizes = np.minimum(np.repeat(begins + lengths, counts) - starts, context)
    rows_of = _assign(sizes, context)
    # Pieces come in the order of the shard, so the last one written is the greatest of its row.
    last = np.empty(int(rows_of.max(initial=-1)) + 1, dtype=np.int64)
    last[rows_of] = np.arange(len(rows_of))
    rank = np.empty_like(last)
    rank[np.argsort(last)] = np.arange(len(last))
    rows_of = rank[rows_of]
    by_row = np.argsort(rows_of, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows_of, minlength=len(last)))])
    return Packing(
        starts[by_row].astype(np.uint64),
        sizes[by_row].astype(np.uint32),
        offsets.astype(np.uint64),
        context,
        int((lengths > context).sum()),
    )


def cut_documents(ends: npt.NDArray[np.uint64], context: int) -> int:
    """How many documents rows that begin at each multiple of `context` cut: those with a row's end inside."""
    assert context >= 1
    begins, lengths = _documents(ends)
    return int(((begins + lengths - 1) // context > begins // context).sum())


def _documents(ends: npt.NDArray[np.uint64]) -> tuple[Ints, Ints]:
    """First token and length of each document that has tokens."""
    signed = ends.astype(np.int64)
    lengths = np.diff(signed, prepend=0)
    if len(lengths) and lengths.min() < 0:
        at = int(np.argmax(lengths < 0))
        before = int(signed[at - 1]) if at else 0
        raise DataError(
            f"document {at} ends at token {signed[at]}, before the one that ends at {before}: ends never decrease; "
            "copy or prepare the dataset again"
        )
    full = lengths > 0
    return (signed - lengths)[full], lengths[full]


def _assign(sizes: Ints, context: int) -> Ints:
    """The row of each piece, by best-fit decreasing."""
    order = np.argsort(-sizes, kind="stable")
    values, counts = np.unique(sizes, return_counts=True)
    runs = np.array(_fill_rows(values[::-1].tolist(), counts[::-1].tolist(), context), dtype=np.int64).reshape(-1, 3)
    first, count, each = runs.T
    # A run is `count` rows from `first` on that take `each` pieces: written out, the rows of the sorted pieces.
    before = np.cumsum(count) - count
    rows = np.repeat(first - before, count) + np.arange(int(count.sum()))
    rows_of = np.empty(len(sizes), dtype=np.int64)
    rows_of[order] = np.repeat(rows, np.repeat(each, count))
    return rows_of


def _fill_rows(sizes: list[int], counts: list[int], context: int) -> list[tuple[int, int, int]]:
    """Best-fit decreasing of `counts` pieces of each of the (falling) `sizes`, as runs (first row, rows, pieces each).

    All pieces of a size and all rows of a room are one step. The row with the least room that takes a piece of a size
    is, until it is full, the best fit for the next piece of that size too: it takes room // size of them.
    """
    runs: list[tuple[int, int, int]] = []
    rooms: list[int] = []  # that some row has left, rising
    with_room: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # rows of a room: (first, how many)
    opened = 0

    def put(room: int, first: int, count: int) -> None:
        if not count or not room:
            return
        if not with_room[room]:
            insort(rooms, room)
        with_room[room].append((first, count))

    for size, pieces in zip(sizes, counts, strict=True):
        waiting = pieces
        while waiting:
            at = bisect_left(rooms, size)
            if at == len(rooms):
                room, first, count = context, opened, -(-waiting // (context // size))
                opened += count
            else:
                room = rooms[at]
                first, count = with_room[room].pop()
                if not with_room[room]:
                    del rooms[at]
            full, rest = divmod(waiting, room // size)
            if full >= count:
                full, rest = count, 0
            if full:
                runs.append((first, full, room // size))
                put(room - room // size * size, first, full)
            if rest:  # the last pieces of this size, into one more row
                runs.append((first + full, 1, rest))
                put(room - rest * size, first + full, 1)
                put(room, first + full + 1, count - full - 1)
            else:
                put(room, first + full, count - full)
            waiting -= full * (room // size) + rest
    return runs
