"""One shard against the index: the hash of each file, and every token and document end looked at."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.audit.fault import Fault
from scaletrain.data.shards import DOCS_DTYPE, DTYPES, HEADER_BYTES, Dataset, LocalFiles, Shard, npy_header
from scaletrain.errors import DataError

_BLOCK = 4 << 20  # bytes read at once; a multiple of every token's size
Ends = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardFindings:
    """`tokens` and `documents` as counted, None where the file could not be read to its end."""

    tokens: int | None
    documents: int | None
    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]


def is_prepared(shard: Shard) -> bool:
    """Whether `scaletrain prepare` wrote it: another tool's file has no hash and need not close its documents."""
    return bool(shard.xxh3)


def audit_shard(dataset: Dataset, shard: Shard, advance: Callable[[int], None]) -> ShardFindings:
    """Reads both files whole, and holds a few MiB and the document ends; `advance` hears of the bytes done."""
    faults: list[Fault] = []
    ends = _audit_ends(dataset, shard, faults)
    advance(shard.documents * DOCS_DTYPE.itemsize)
    is_increasing = ends is not None and (len(ends) == 0 or (ends[0] > 0 and bool((np.diff(ends) > 0).all())))
    scan = _Scan(ends if is_increasing else None, dataset.tokenizer.eos_id, dataset.tokenizer.vocab_size)
    tokens = _audit_tokens(dataset, shard, scan, faults, advance)
    faults += scan.ids.told(shard.file, f"below the vocabulary's {dataset.tokenizer.vocab_size}")
    closing = scan.unclosed.told(shard.file, f"the end-of-text id {dataset.tokenizer.eos_id}")
    closing += scan.inner.told(shard.file, "no end-of-text id")
    own = is_prepared(shard)
    documents = None if ends is None else len(ends)
    return ShardFindings(tokens, documents, (*faults, *(closing if own else ())), () if own else tuple(closing))


class _Deviations:
    """Tokens that break one rule: how many, and the first."""

    def __init__(self, what: str) -> None:
        self._what, self._count, self._first, self._found = what, 0, 0, 0

    def add(self, places: npt.NDArray[np.int64], tokens: npt.NDArray[Any], start: int) -> None:
        if len(places) and not self._count:
            self._first, self._found = int(places[0]), int(tokens[int(places[0]) - start])
        self._count += len(places)

    def told(self, file: str, expected: str) -> list[Fault]:
        if not self._count:
            return []
        return [Fault(file, f"{self._count:,} {self._what}, the first at token {self._first:,}", expected,
                      str(self._found))]  # fmt: skip


class _Scan:
    """Looks at the tokens of one shard, block after block; without `ends` only at their range."""

    def __init__(self, ends: Ends | None, eos_id: int, vocab_size: int) -> None:
        self._ends, self._eos_id, self._vocab_size = ends, eos_id, vocab_size
        self.ids = _Deviations("token ids are outside of the vocabulary")
        self.unclosed = _Deviations("documents do not end with the end-of-text id")
        self.inner = _Deviations("end-of-text ids stand inside of documents")

    def look(self, tokens: npt.NDArray[Any], start: int) -> None:
        """`start`: the position of the block in the shard."""
        if int(tokens.max()) >= self._vocab_size:
            self.ids.add(np.flatnonzero(tokens >= self._vocab_size) + start, tokens, start)
        if self._ends is None:
            return
        closes = np.flatnonzero(tokens == self._eos_id) + start
        low, high = np.searchsorted(self._ends, [start, start + len(tokens)], side="right")
        lasts = self._ends[low:high] - 1
        if not np.array_equal(closes, lasts):
            self.unclosed.add(np.setdiff1d(lasts, closes, assume_unique=True), tokens, start)
            self.inner.add(np.setdiff1d(closes, lasts, assume_unique=True), tokens, start)


def _audit_ends(dataset: Dataset, shard: Shard, faults: list[Fault]) -> Ends | None:
    """The document ends, checked as far as the index goes; None where they cannot be read."""
    name, header = shard.docs_file or shard.file, npy_header(DOCS_DTYPE, shard.documents)
    try:
        if isinstance(dataset.files, LocalFiles):
            path = dataset.files.folder / name
            if found := wrong_file(path, name, header, shard.documents * DOCS_DTYPE.itemsize):
                faults.append(found)
                return None
            stored = np.fromfile(path, DOCS_DTYPE, offset=HEADER_BYTES)  # a failed read of a mapped file kills
        else:
            stored = dataset.files.document_ends(shard)
    except DataError as error:
        faults.append(Fault(name, str(error)))
        return None
    except OSError as error:
        faults.append(Fault(name, f"cannot be read ({error.strerror})"))
        return None
    if shard.docs_xxh3:
        digest = xxhash.xxh3_128(header)
        digest.update(np.ascontiguousarray(stored).data)
        faults += _wrong_hash(name, shard.docs_xxh3, digest.hexdigest())
    ends = stored.astype(np.int64)
    before = np.concatenate([[0], ends[:-1]])
    back = np.flatnonzero(ends <= before)
    if len(back):
        at = int(back[0])
        faults.append(Fault(name, f"{len(back):,} document ends do not increase, the first that of document {at:,}",
                            f"above {before[at]:,}", f"{ends[at]:,}"))  # fmt: skip
    last = int(ends[-1]) if len(ends) else 0
    if last != shard.tokens:
        faults.append(Fault(name, "the last document's end", f"the shard's {shard.tokens:,} tokens", f"{last:,}"))
    return ends


def _audit_tokens(
    dataset: Dataset, shard: Shard, scan: _Scan, faults: list[Fault], advance: Callable[[int], None]
) -> int | None:
    """Number of tokens read, all of them seen by `scan`; None where the file is not whole."""
    dtype, name = DTYPES[dataset.dtype], shard.file
    size, done = shard.tokens * dtype.itemsize, 0
    try:
        path, first = dataset.files.tokens(shard)
        header = npy_header(dtype, shard.tokens) if is_prepared(shard) else None
        if found := wrong_file(path, name, header, size, first):
            faults.append(found)
            return None
        digest, buffer = xxhash.xxh3_128(), bytearray(min(_BLOCK, size))
        with path.open("rb") as file:
            digest.update(file.read(first) if header is not None else b"")
            file.seek(first)
            while done < size:
                block = memoryview(buffer)[: min(_BLOCK, size - done)]
                if file.readinto(block) != len(block):
                    faults.append(Fault(name, "ended while it was read", f"{first + size:,} bytes", "fewer"))
                    return None
                digest.update(block)
                scan.look(np.frombuffer(block, dtype), done // dtype.itemsize)
                done += len(block)
                advance(len(block))
    except DataError as error:
        faults.append(Fault(name, str(error)))
        return None
    except OSError as error:
        faults.append(Fault(name, f"cannot be read from byte {done:,} of its tokens on ({error.strerror})"))
        return None
    if header is not None:
        faults += _wrong_hash(name, shard.xxh3, digest.hexdigest())
    return shard.tokens


def wrong_file(path: Path, name: str, header: bytes | None, size: int, first: int = HEADER_BYTES) -> Fault | None:
    """What a look at size and header shows: `size` bytes after the `first`; None when they are as they should be.

    Without `header` the file may begin with anything and go on after its tokens.
    """
    if not path.is_file():
        return Fault(name, "the file is missing", f"{first + size:,} bytes", "no file")
    with path.open("rb") as file:
        found, start = os.fstat(file.fileno()).st_size, file.read(len(header or b""))
    if found < first + size or (header is not None and found > first + size):
        return Fault(name, "size", f"{first + size:,} bytes", f"{found:,}")
    if header is not None and start != header:
        return Fault(name, "the .npy header", repr(_shown(header)), repr(_shown(start)))
    return None


def _wrong_hash(name: str, expected: str, found: str) -> list[Fault]:
    return [] if found == expected else [Fault(name, "xxh3", expected, found)]


def _shown(header: bytes) -> str:
    """The description in a .npy header, without the magic before it and the padding after it."""
    return header[10:].decode("ascii", "backslashreplace").strip()
