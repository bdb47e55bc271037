"""The shards of one split, written as whole documents come, and hashed."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from scaletrain.data.foreign.whole_documents import Documents, LongDocument
from scaletrain.data.shards import DOCS_DTYPE, HEADER_BYTES, Shard, Split, Tokens, npy_header, shard_files
from scaletrain.runtime.files import hash_file, write_whole


class ShardWriter:
    """The shards of a split, each filled with whole documents; only a longer document makes a longer shard."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._folder, self._split, self._dtype, self._most = folder, split, dtype, shard_tokens
        self._shards: list[Shard] = []
        self._file: BinaryIO | None = None
        self._ends: list[npt.NDArray[np.int64]] = []
        self._tokens = 0

    def add(self, documents: Documents) -> None:
        ends, first, used = np.cumsum(documents.lengths), 0, 0
        while first < len(ends):
            fitting = int(np.searchsorted(ends, used + self._most - self._tokens, side="right"))
            if fitting <= first and self._tokens:
                self._finish()
                continue
            fitting = max(fitting, first + 1)  # alone longer than a shard
            stop = int(ends[fitting - 1])
            self._write([documents.tokens[used:stop]], ends[first:fitting] - used)
            first, used = fitting, stop

    def add_long(self, document: LongDocument) -> None:
        if self._tokens + document.length > self._most:
            self._finish()
        self._write(document.blocks(), np.array([document.length]))

    def close(self) -> tuple[Shard, ...]:
        self._finish()
        return tuple(self._shards)

    def _write(self, blocks: Iterable[Tokens], ends: npt.NDArray[np.int64]) -> None:
        if self._file is None:
            path = self._folder / shard_files(self._split, len(self._shards))[0]
            path.parent.mkdir(exist_ok=True)
            self._file = path.open("wb")
            self._file.seek(HEADER_BYTES)
        for block in blocks:
            self._file.write(block.astype(self._dtype).data)
        self._ends.append(ends + self._tokens)
        self._tokens += int(ends[-1])

    def _finish(self) -> None:
        if self._file is None:
            return
        file, docs_file = shard_files(self._split, len(self._shards))
        self._file.seek(0)
        self._file.write(npy_header(self._dtype, self._tokens))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        ends = np.concatenate(self._ends).astype(DOCS_DTYPE)
        write_whole(self._folder / docs_file, npy_header(DOCS_DTYPE, len(ends)) + ends.tobytes())
        hashes = (hash_file(self._folder / name) for name in (file, docs_file))  # both are still in the page cache
        self._shards.append(Shard(file, docs_file, self._tokens, len(ends), 0, *hashes))
        self._file, self._ends, self._tokens = None, [], 0
