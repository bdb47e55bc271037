"""Duplicates: which documents repeat an earlier one, found by sorting their hashes in pieces that fit in memory.

A first pass deals the hashes into files by their leading bits, with each document's place in the input; equal hashes
meet in one file. A second pass sorts one file after another and marks all but the first of each. What grows with the
input is on disk: 24 bytes a document for a while, and a byte a document of marks, which the system may page out.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaletrain.data.prepare.segments import read_hashes
from scaletrain.data.shards import SPLITS, Split

Mask = npt.NDArray[np.bool_]

_ROW = np.dtype([("hash", "<u8", (2,)), ("place", "<u8")])
_BUCKET_DOCUMENTS = 1 << 20  # sorting so many takes some 100 MB
_MAX_BUCKETS = 512  # files open at once; common limits allow 1,024


@dataclass(frozen=True)
class Duplicates:
    """A mark for each document of the input, in order; `first` is the place of each segment's first document."""

    segments: Path
    marks: Path
    first: tuple[int, ...]
    count: int

    def kept(self, segment: int, split: Split) -> Iterator[Mask]:
        """For each of the segment's documents in the split, whether it stays, in blocks."""
        marks = np.memmap(self.marks, np.uint8, "r")
        bit, place = 1 << SPLITS.index(split), self.first[segment]
        for rows in read_hashes(self.segments, segment):
            is_in = (rows["splits"] & bit) != 0
            yield marks[place : place + len(rows)][is_in] == 0
            place += len(rows)


def find_duplicates(
    segments: Path,
    counts: Sequence[int],
    folder: Path,
    advance: Callable[[int], None],
    bucket_documents: int = _BUCKET_DOCUMENTS,
) -> Duplicates:
    """Marks every document whose hash an earlier one has; `counts` are the documents of each segment.

    Works in `folder`, which is made anew; `advance` is told the documents of each step, twice all in sum.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    total = sum(counts)
    assert total, "an input without a document is refused before"
    buckets = min(_MAX_BUCKETS, 1 + total // bucket_documents)
    _deal(segments, len(counts), folder, buckets, advance)
    marks = np.memmap(folder / "marks", np.uint8, "w+", shape=(total,))
    count = 0
    for bucket in range(buckets):
        file = _bucket(folder, bucket)
        rows = np.fromfile(file, _ROW)
        places = _repeated(rows)
        marks[places] = 1
        count += len(places)
        file.unlink()
        advance(len(rows))
    marks.flush()
    first = np.cumsum([0, *counts])[:-1]
    return Duplicates(segments, folder / "marks", tuple(first.tolist()), count)


def _deal(segments: Path, count: int, folder: Path, buckets: int, advance: Callable[[int], None]) -> None:
    """Appends each document's hash and place to the file of its hash's leading 32 bits."""
    place = 0
    with ExitStack() as stack:
        files = [stack.enter_context(_bucket(folder, bucket).open("wb")) for bucket in range(buckets)]
        for segment in range(count):
            for hashes in read_hashes(segments, segment):
                rows = np.empty(len(hashes), dtype=_ROW)
                rows["hash"] = hashes["hash"]
                rows["place"] = np.arange(place, place + len(hashes), dtype=np.uint64)
                bucket_of = ((rows["hash"][:, 0] >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)
                order = np.argsort(bucket_of, kind="stable")
                ends = np.searchsorted(bucket_of[order], np.arange(buckets + 1))
                rows = rows[order]
                for bucket, file in enumerate(files):
                    file.write(rows[ends[bucket] : ends[bucket + 1]].tobytes())
                place += len(hashes)
                advance(len(hashes))


def _repeated(rows: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The places of the rows that have an earlier row's hash; rows come in the order of their places."""
    order = np.lexsort((rows["hash"][:, 0], rows["hash"][:, 1]))  # stable: equal hashes keep their order
    hashes = rows["hash"][order]
    is_repeated = np.zeros(len(rows), dtype=bool)
    is_repeated[1:] = (hashes[1:] == hashes[:-1]).all(axis=1)
    places: npt.NDArray[np.uint64] = rows["place"][order][is_repeated]
    return places


def _bucket(folder: Path, bucket: int) -> Path:
    return folder / f"{bucket:03d}.hashes"
