"""Segments: the tokens of one unit, written by one process and complete once its record is there."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from scaletrain.data.prepare.splitting import Piece
from scaletrain.data.prepare.units import Findings
from scaletrain.data.shards import SPLITS, Split, Tokens
from scaletrain.data.tokenizer import Tokenizer
from scaletrain.runtime.files import write_json

_LENGTHS = np.dtype("<u8")  # a document: its tokens, the end-of-text token included, and its UTF-8 bytes
# A document's xxh3 (128 bits), and a bit for each split that holds some of it (as numbered in SPLITS).
HASHES = np.dtype([("hash", "<u8", (2,)), ("splits", "u1")])
_BATCH_BYTES = 1 << 20  # text encoded by one call and thread; an encoding takes some 40 times its text's memory
_BATCH_TEXTS = 4096
BLOCK_DOCUMENTS = 1 << 18  # documents whose lengths or hashes are in memory at once

Lengths = npt.NDArray[np.uint64]


def _zeros() -> dict[Split, int]:
    return dict.fromkeys(SPLITS, 0)


@dataclass
class SegmentRecord:
    """What one or more finished units hold: sizes to check the files by, and what was found amiss."""

    tokens: dict[Split, int] = field(default_factory=_zeros)
    documents: dict[Split, int] = field(default_factory=_zeros)
    bytes: dict[Split, int] = field(default_factory=_zeros)
    hashes: int = 0
    findings: Findings = field(default_factory=Findings)

    def add(self, other: "SegmentRecord") -> None:
        for split in SPLITS:
            self.tokens[split] += other.tokens[split]
            self.documents[split] += other.documents[split]
            self.bytes[split] += other.bytes[split]
        self.hashes += other.hashes
        self.findings.add(other.findings)


class SegmentWriter:
    """Encodes pieces in batches and appends them; `close` makes the segment complete."""

    def __init__(self, folder: Path, number: int, tokenizer: Tokenizer, threads: int) -> None:
        self.bytes_done = self.tokens_done = 0
        self._folder, self._number, self._tokenizer = folder, number, tokenizer
        self._limit = _BATCH_BYTES * threads
        self._eos = np.array([tokenizer.eos_id], dtype=tokenizer.dtype)
        self._files: dict[Path, BinaryIO] = {}
        self._record = SegmentRecord()
        self._open: dict[Split, tuple[int, int]] = dict.fromkeys(SPLITS, (0, 0))
        self._batch: list[Piece] = []
        self._batch_bytes = 0
        self._hashes = bytearray()

    def add(self, piece: Piece) -> bool:
        """Takes a piece; True when this filled a batch, which is then encoded and written."""
        self._batch.append(piece)
        self._batch_bytes += len(piece.text)
        if self._batch_bytes < self._limit and len(self._batch) < _BATCH_TEXTS:
            return False
        self._flush()
        return True

    def add_hash(self, digest: bytes, splits: Iterable[Split]) -> None:
        """Takes the hash of a whole document, once all its pieces were added, and the splits that they went to."""
        self._hashes += digest
        self._hashes.append(sum(1 << SPLITS.index(split) for split in splits))
        self._record.hashes += 1

    def close(self, findings: Findings) -> SegmentRecord:
        """Writes what is left, then the record, last and atomically."""
        self._flush()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._record.findings.add(findings)
        write_json(_record_file(self._folder, self._number), asdict(self._record))
        return self._record

    def _flush(self) -> None:
        ids = self._tokenizer.encode_batch([piece.text for piece in self._batch])
        ready: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}
        lengths: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        for piece, tokens in zip(self._batch, ids, strict=True):
            size = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            length, total = self._open[piece.split]
            length, total = length + len(tokens), total + size
            ready[piece.split].append(tokens)
            if piece.is_last:
                ready[piece.split].append(self._eos)
                lengths[piece.split].append((length + 1, total))
                length = total = 0
            self._open[piece.split] = (length, total)
            self.bytes_done += size
            self.tokens_done += len(tokens) + piece.is_last
            self._record.bytes[piece.split] += size
            self._record.tokens[piece.split] += len(tokens) + piece.is_last
        for split in SPLITS:
            if ready[split]:
                self._append(tokens_file(self._folder, self._number, split), np.concatenate(ready[split]).tobytes())
            if lengths[split]:
                rows = np.array(lengths[split], dtype=_LENGTHS)
                self._append(_lengths_file(self._folder, self._number, split), rows.tobytes())
                self._record.documents[split] += len(rows)
        if self._hashes:
            self._append(_hashes_file(self._folder, self._number), bytes(self._hashes))
            self._hashes.clear()
        self._batch, self._batch_bytes = [], 0

    def _append(self, path: Path, data: bytes) -> None:
        if path not in self._files:
            self._files[path] = path.open("wb")
        self._files[path].write(data)


def tokens_file(folder: Path, number: int, split: Split) -> Path:
    """Raw little-endian ids of one unit and split; absent where it has none."""
    return folder / f"{number:08d}-{split}.tokens"


def read_record(folder: Path, number: int, itemsize: int) -> SegmentRecord | None:
    """The record of a finished segment, None where the unit is not done (or a file of it is not whole)."""
    try:
        value = json.loads(_record_file(folder, number).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    record = SegmentRecord(**{**value, "findings": Findings(**value["findings"])})
    expected = {_hashes_file(folder, number): record.hashes * HASHES.itemsize}
    for split in SPLITS:
        expected[tokens_file(folder, number, split)] = record.tokens[split] * itemsize
        expected[_lengths_file(folder, number, split)] = record.documents[split] * 2 * _LENGTHS.itemsize
    is_whole = all(not size or _size(file) == size for file, size in expected.items())
    return record if is_whole else None


def read_lengths(folder: Path, number: int, split: Split, counts: Iterable[int] | None = None) -> Iterator[Lengths]:
    """Tokens and bytes of the segment's documents in blocks [documents, 2], of the sizes `counts` if they are given."""
    file = _lengths_file(folder, number, split)
    if file.exists():
        with file.open("rb") as source:
            for count in repeat(BLOCK_DOCUMENTS) if counts is None else counts:
                block = np.fromfile(source, _LENGTHS, 2 * count).reshape(-1, 2)
                if counts is None and not len(block):
                    return
                yield block


def read_hashes(folder: Path, number: int) -> Iterator[npt.NDArray[np.void]]:
    """The rows of HASHES of the segment's documents, in blocks."""
    file = _hashes_file(folder, number)
    if file.exists():
        with file.open("rb") as source:
            while len(rows := np.fromfile(source, HASHES, BLOCK_DOCUMENTS)):
                yield rows


def _record_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def _lengths_file(folder: Path, number: int, split: Split) -> Path:
    return folder / f"{number:08d}-{split}.lengths"


def _hashes_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.hashes"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1
