"""Segments: the tokens of one unit, written by one process and complete once its record is there."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
_BATCH_BYTES = 1 << 20  # text encoded by one call and thread; an encoding takes some 40 times its text's memory
_BATCH_TEXTS = 4096

Lengths = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SegmentRecord:
    """What a finished unit holds: sizes to check its files by, and what was found amiss."""

    tokens: dict[Split, int]
    documents: dict[Split, int]
    bytes: dict[Split, int]
    findings: Findings


class SegmentWriter:
    """Encodes pieces in batches and appends them; `close` makes the segment complete."""

    def __init__(self, folder: Path, number: int, tokenizer: Tokenizer, threads: int) -> None:
        self.bytes_done = self.tokens_done = 0
        self._folder, self._number, self._tokenizer = folder, number, tokenizer
        self._limit = _BATCH_BYTES * threads
        self._eos = np.array([tokenizer.eos_id], dtype=tokenizer.dtype)
        self._files: dict[Split, BinaryIO] = {}
        self._lengths: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        self._open: dict[Split, tuple[int, int]] = dict.fromkeys(SPLITS, (0, 0))
        self._batch: list[Piece] = []
        self._batch_bytes = 0

    def add(self, piece: Piece) -> bool:
        """Takes a piece; True when this filled a batch, which is then encoded and written."""
        self._batch.append(piece)
        self._batch_bytes += len(piece.text)
        if self._batch_bytes < self._limit and len(self._batch) < _BATCH_TEXTS:
            return False
        self._flush()
        return True

    def close(self, findings: Findings) -> SegmentRecord:
        """Writes what is left, then the record, last and atomically."""
        self._flush()
        for split, lengths in self._lengths.items():
            if lengths:
                with _lengths_file(self._folder, self._number, split).open("wb") as lengths_file:
                    lengths_file.write(np.array(lengths, dtype=_LENGTHS).tobytes())
                    _sync(lengths_file)
        for file in self._files.values():
            _sync(file)
            file.close()
        record = SegmentRecord(
            {split: sum(length[0] for length in lengths) for split, lengths in self._lengths.items()},
            {split: len(lengths) for split, lengths in self._lengths.items()},
            {split: sum(length[1] for length in lengths) for split, lengths in self._lengths.items()},
            findings,
        )
        write_json(_record_file(self._folder, self._number), asdict(record))
        return record

    def _flush(self) -> None:
        ids = self._tokenizer.encode_batch([piece.text for piece in self._batch])
        ready: dict[Split, list[Tokens]] = {split: [] for split in SPLITS}
        for piece, tokens in zip(self._batch, ids, strict=True):
            size = len(piece.text) if piece.text.isascii() else len(piece.text.encode())
            length, total = self._open[piece.split]
            length, total = length + len(tokens), total + size
            ready[piece.split].append(tokens)
            if piece.is_last:
                ready[piece.split].append(self._eos)
                self._lengths[piece.split].append((length + 1, total))
                length = total = 0
            self._open[piece.split] = (length, total)
            self.bytes_done += size
            self.tokens_done += len(tokens) + piece.is_last
        for split, arrays in ready.items():
            if arrays:
                if split not in self._files:
                    self._files[split] = tokens_file(self._folder, self._number, split).open("wb")
                self._files[split].write(np.concatenate(arrays).tobytes())
        self._batch, self._batch_bytes = [], 0


def tokens_file(folder: Path, number: int, split: Split) -> Path:
    """Raw little-endian ids of one unit and split; absent where it has none."""
    return folder / f"{number:08d}-{split}.tokens"


def read_record(folder: Path, number: int, itemsize: int) -> SegmentRecord | None:
    """The record of a finished segment, None where the unit is not done (or a file of it is not whole)."""
    try:
        value = json.loads(_record_file(folder, number).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    record = SegmentRecord(value["tokens"], value["documents"], value["bytes"], Findings(**value["findings"]))
    for split in SPLITS:
        expected = {
            tokens_file(folder, number, split): record.tokens[split] * itemsize,
            _lengths_file(folder, number, split): record.documents[split] * 2 * _LENGTHS.itemsize,
        }
        if any(size and _size(file) != size for file, size in expected.items()):
            return None
    return record


def read_lengths(folder: Path, number: int, split: Split) -> Lengths:
    """Tokens and bytes of each document of the segment, shape [documents, 2]."""
    file = _lengths_file(folder, number, split)
    if not file.exists():
        return np.empty((0, 2), dtype=_LENGTHS)
    return np.fromfile(file, dtype=_LENGTHS).reshape(-1, 2)


def sum_findings(records: Iterable[SegmentRecord]) -> Findings:
    """All findings, in the units' order."""
    total = Findings()
    for record in records:
        total.add(record.findings)
    return total


def _record_file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


def _lengths_file(folder: Path, number: int, split: Split) -> Path:
    return folder / f"{number:08d}-{split}.lengths"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
