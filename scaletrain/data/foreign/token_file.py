"""One file of tokens as another tool wrote it: where its tokens stand, of which type, and what its documents are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaletrain.data.shards import DTYPES, Tokens
from scaletrain.data.tokenizer import Tokenizer
from scaletrain.errors import DataError

Ends = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Given:
    """What the user says and a file may not: its tokenizer, and the type of its tokens (None: by the tokenizer)."""

    tokenizer: Tokenizer
    dtype: str | None


@dataclass(frozen=True)
class TokenFile:
    """`tokens` ids of type `dtype` from byte `offset` on.

    `has_type`: the file itself tells the type. `is_signed`: its ids are int32, which are read as uint32. `index`: the
    file that tells the documents, `documents` of them, whose ends (exclusive, increasing, in blocks) `read_ends` gives;
    without one they are found by the end-of-text id.
    """

    path: Path
    dtype: str
    offset: int
    tokens: int
    has_type: bool
    is_signed: bool = False
    index: Path | None = None
    documents: int = 0
    read_ends: Callable[[], Iterator[Ends]] | None = None

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize


def read_tokens(file: TokenFile, start: int, count: int) -> Tokens:
    """`count` tokens from position `start` on, in memory; DataError where they cannot be read."""
    tokens: Tokens = read_array(file.path, DTYPES[file.dtype], file.offset + start * file.itemsize, count)
    return tokens


def read_array(path: Path, dtype: npt.DTypeLike, offset: int, count: int) -> npt.NDArray[Any]:
    """`count` items from byte `offset` of a file on, in memory; DataError where they cannot be read."""
    found = np.empty(count, dtype=dtype)
    with open_bytes(path) as file, reading(path):
        file.seek(offset)
        read = file.readinto(found.data.cast("B")) if count else 0
    if read != found.nbytes:
        raise DataError(f"{path} became shorter while it was read: copy it again")
    return found


def read_bytes(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, fewer where it is shorter."""
    with open_bytes(path) as file, reading(path):
        return file.read(count)


def open_bytes(path: Path) -> BufferedReader:
    """The file opened for reading; DataError where it is not there or not for us."""
    with reading(path):
        return path.open("rb")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a file that is missing, not for us or on a bad disk into one DataError line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}): copy it again, or make it readable"
        ) from error


def size_of(path: Path) -> int:
    """Bytes of a file; DataError where it is not there."""
    with reading(path):
        return path.stat().st_size


def check_size(path: Path, offset: int, tokens: int, itemsize: int) -> None:
    """DataError unless the file is as long as its header says."""
    size, expected = size_of(path), offset + tokens * itemsize
    if size != expected:
        raise DataError(
            f"{path} has {size:,} bytes, by its header it has {expected:,} ({offset:,} + {tokens:,} tokens x "
            f"{itemsize}): it is damaged, copy it again"
        )


def check_dtype(path: Path, found: str, given: Given) -> None:
    """DataError if the recipe contradicts the type that the file tells."""
    if given.dtype not in (None, found):
        raise DataError(f"data.dtype={given.dtype}, and {path} itself says {found}: leave data.dtype out")


def headerless(path: Path, given: Given) -> TokenFile:
    """A file of nothing but tokens, of the type that the recipe says or, without, the tokenizer needs."""
    dtype = given.dtype or given.tokenizer.dtype
    size, itemsize = size_of(path), DTYPES[dtype].itemsize
    if size % itemsize:
        raise DataError(
            f"{path} has {size:,} bytes, no multiple of the {itemsize} of a {dtype}: it is cut short, no "
            "file of tokens, or of another data.dtype"
        )
    return TokenFile(path, dtype, 0, size // itemsize, has_type=False)
