"""Megatron-LM's and gpt-neox's pair of files: PREFIX.bin holds the tokens, PREFIX.idx (MMIDIDX) what they are.

The index: magic (9 bytes), version (u64), type (u8), counts of sequences and of document marks (u64), then the length
(i32) and first byte (i64) of each sequence, and the first sequence (i64) of each document with the number of sequences
last. A document may be several sequences, such as its sentences.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scaletrain.data.foreign.token_file import (
    Ends,
    Given,
    TokenFile,
    check_dtype,
    check_size,
    read_array,
    read_bytes,
    size_of,
)
from scaletrain.data.shards import DTYPES
from scaletrain.errors import DataError

_MAGIC, _OLD_MAGIC = b"MMIDIDX\x00\x00", b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
# Codes 6 and 7 are floats (Megatron-LM and gpt-neox disagree about which is which) and never token ids.
_CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "a float", 7: "a float", 8: "uint16"}
_READ = {"uint16": "uint16", "int32": "uint32"}
_BLOCK = 1 << 17  # documents whose ends are read at once


class _Index(NamedTuple):
    path: Path
    dtype: str
    sequences: int
    marks: int  # one more than documents

    def lengths(self, first: int, count: int) -> npt.NDArray[Any]:
        return self._read("<i4", _HEADER.size, first, count)

    def pointers(self, first: int, count: int) -> npt.NDArray[Any]:
        return self._read("<i8", _HEADER.size + 4 * self.sequences, first, count)

    def documents(self, first: int, count: int) -> npt.NDArray[Any]:
        return self._read("<i8", _HEADER.size + 12 * self.sequences, first, count)

    @property
    def bytes(self) -> int:
        return _HEADER.size + 12 * self.sequences + 8 * self.marks

    def _read(self, dtype: str, offset: int, first: int, count: int) -> npt.NDArray[Any]:
        return read_array(self.path, dtype, offset + first * np.dtype(dtype).itemsize, count)


def read_megatron(path: Path, given: Given) -> TokenFile:
    """The pair of which `path` names the .bin file."""
    index = _read_header(path.with_suffix(".idx"))
    if not path.is_file():
        raise DataError(f"{path} is missing, its index {index.path} is there: copy both files")
    if index.dtype not in _READ:
        raise DataError(
            f"{index.path} says that the tokens are of type {index.dtype}: only uint16 and int32 are read; write the "
            "files again with one of them"
        )
    dtype = _READ[index.dtype]
    check_dtype(path, dtype, given)
    itemsize = DTYPES[dtype].itemsize
    tokens = _check_edges(index, itemsize)
    check_size(path, 0, tokens, itemsize)

    def read_ends() -> Iterator[Ends]:
        return _read_ends(index, tokens, itemsize)

    is_signed = index.dtype == "int32"
    return TokenFile(path, dtype, 0, tokens, True, is_signed, index.path, index.marks - 1, read_ends)


def _read_header(path: Path) -> _Index:
    head = read_bytes(path, _HEADER.size)
    if head.startswith(_OLD_MAGIC):
        raise DataError(
            f"{path} is an index of the old form TNTIDX, which is not read: write the files again with "
            "--dataset-impl mmap"
        )
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise DataError(f"{path} is no index of Megatron (it does not begin with MMIDIDX): copy it again")
    _, version, code, sequences, marks = _HEADER.unpack(head)
    if version != 1:
        raise DataError(f"{path} is an index of version {version}, only 1 is read: write the files again")
    index = _Index(path, _CODES.get(code, f"number {code}"), sequences, marks)
    size = size_of(path)
    if size != index.bytes:
        raise DataError(
            f"{path} has {size:,} bytes, by its header it has {index.bytes:,} ({sequences:,} sequences, {marks:,} "
            "document marks): it is damaged or of a multimodal dataset, copy or write it again"
        )
    return index


def _check_edges(index: _Index, itemsize: int) -> int:
    """Number of tokens, by the last sequence; DataError if the ends of the index's lists do not fit to each other."""
    marks = [int(index.documents(at, 1)[0]) for at in (0, index.marks - 1)] if index.marks else []
    if marks != [0, index.sequences]:
        raise DataError(
            f"{index.path} has documents over the sequences {marks}, expected {[0, index.sequences]}: it is damaged, "
            "copy or write it again"
        )
    if not index.sequences:
        return 0
    first, last = (int(index.pointers(at, 1)[0]) for at in (0, index.sequences - 1))
    length = int(index.lengths(index.sequences - 1, 1)[0])
    if first != 0 or last < 0 or last % itemsize or length < 0:
        raise DataError(
            f"{index.path} lays its sequences from byte {first:,} to {last:,} with {length:,} tokens in the last: its "
            ".bin file is not read from its beginning on, write the files again"
        )
    return last // itemsize + length


def _read_ends(index: _Index, tokens: int, itemsize: int) -> Iterator[Ends]:
    """Where the sequence after each document begins."""
    for first in range(1, index.marks, _BLOCK):
        marks = index.documents(first, min(_BLOCK, index.marks - first))
        low, high = int(marks[0]), int(marks[-1])
        if (np.diff(marks) < 0).any() or low < 0 or high > index.sequences:
            raise DataError(f"{index.path} has document marks that go back: it is damaged, copy or write it again")
        pointers = index.pointers(low, min(high + 1, index.sequences) - low)
        if (pointers < 0).any() or (pointers % itemsize).any():
            raise DataError(f"{index.path} has a sequence inside of a token: it is damaged, copy or write it again")
        begins = np.append(pointers // itemsize, tokens)  # the end of the last sequence, if high is that
        yield begins[marks - low].astype(np.uint64)
