"""Runs of tokens by shard and position: read from files by pread, or taken from an array in memory."""

import errno
import os
import resource
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.budget import Budget
from scaletrain.data.shards import DTYPES, Dataset, Split
from scaletrain.errors import DataError

Ends = npt.NDArray[np.uint64]
Opened = TypeVar("Opened")
_TRIES = 5  # to open a file that others drop from the cache as soon as it is there
_MAPPED_BYTES = 64 << 20  # document ends from which on a map is left one: it holds a descriptor, a copy the memory


def _open_files() -> int:
    """How many shard files this process keeps open: half of what it may open."""
    return max(16, min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


OPEN_FILES = Budget(_open_files)
ARRAYS = Budget(lambda: 256 << 20)  # bytes of document ends and packings


class TokenSource(Protocol):
    """Shards of tokens, seen by the rows. One thread at a time."""

    name: str
    dtype: np.dtype[Any]
    lengths: list[int]  # tokens of each shard

    def read(self, shard: int, start: int, out: memoryview) -> None:
        """Fills `out` (bytes) with the tokens from position `start` of the shard on."""
        ...

    def ends(self, shard: int) -> Ends:
        """The exclusive end of each document of the shard."""
        ...

    def documents(self) -> int:
        """Of all shards."""
        ...

    def documents_key(self, shard: int) -> str:
        """The same for the same document ends, here and elsewhere."""
        ...

    def prefetch(self, shards: list[int]) -> None:
        """These shards are needed soon, in this order: a remote source begins to fetch them."""
        ...

    def prefetch_documents(self, shards: list[int]) -> None:
        """The same for the document ends alone."""
        ...


class ShardReader:
    """A split of a dataset, read by pread: no token is mapped, so memory stays flat and a bad disk is an error.

    A page of a mapped file counts as this process's memory, and a failed read of one kills the process (SIGBUS).
    """

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self.name = f"{dataset.name}: the {split} split"
        self.dtype = DTYPES[dataset.dtype]
        self._files, self._shards = dataset.files, dataset.shards(split)
        self.lengths = [shard.tokens for shard in self._shards]
        self._is_remote = self._files.is_remote
        self._open: dict[int, _File] = {}
        self._ends: dict[int, Ends] = {}

    def read(self, shard: int, start: int, out: memoryview) -> None:
        file = self._open.get(shard)
        if file is None:
            file = self._opened(shard)
        elif OPEN_FILES.is_tight:
            OPEN_FILES.mark(self._open, shard)
        position, read = file.first + start * self.dtype.itemsize, 0
        try:
            read = os.preadv(file.descriptor, (out,), position)
            while 0 < read < len(out):  # a signal may cut a read short
                more = os.preadv(file.descriptor, (out[read:],), position + read)
                read = read + more if more else -1
        except OSError as error:
            raise DataError(f"{self._where(shard)} cannot be read ({error.strerror}): check the disk") from error
        if read != len(out):
            raise DataError(f"{self._where(shard)} ends too early: it was changed while in use; copy the dataset again")

    def ends(self, shard: int) -> Ends:
        found = self._ends.get(shard)
        if found is not None:
            ARRAYS.mark(self._ends, shard)
            return found
        found = self._opening(lambda: self._files.document_ends(self._shards[shard]), self._shards[shard].docs_file)
        if found.nbytes < _MAPPED_BYTES and not found.flags.owndata:
            found = np.array(found)
        ARRAYS.add(self._ends, shard, found, found.nbytes)
        return found

    def documents(self) -> int:
        # Files of other tools do not tell how many they hold: 0 there, and every shard has one.
        return sum(shard.documents or len(self.ends(number)) for number, shard in enumerate(self._shards))

    def documents_key(self, shard: int) -> str:
        return self._shards[shard].docs_xxh3 or _hash_ends(self.ends(shard))

    def prefetch(self, shards: list[int]) -> None:
        self._files.prefetch([self._shards[shard] for shard in shards])
        self._let_go()

    def prefetch_documents(self, shards: list[int]) -> None:
        self._files.prefetch_documents([self._shards[shard] for shard in shards])

    def close(self) -> None:
        self._open.clear()

    def __del__(self) -> None:
        self.close()

    def _opened(self, shard: int) -> "_File":
        def open_file() -> _File:
            path, first = self._files.tokens(self._shards[shard])
            return _File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), first, self._is_remote)

        self._let_go()
        file = self._opening(open_file, self._shards[shard].file)
        OPEN_FILES.add(self._open, shard, file, 1)
        return file

    def _opening(self, open_one: Callable[[], Opened], name: str) -> Opened:
        """`open_one()`, again where the cache has dropped the file before it was open; DataError says what is wrong."""
        for _ in range(_TRIES if self._is_remote else 1):
            try:
                return open_one()
            except FileNotFoundError as error:
                fault = error
            except OSError as error:
                raise _fault(error, f"{self.name}: {name}") from error
        if self._is_remote:
            raise DataError(
                f"{self.name}: {name} was dropped from the cache {_TRIES} times before it could be opened: raise "
                "data.cache.max_gb, and let nothing else remove files of the cache"
            )
        raise _fault(fault, f"{self.name}: {name}") from fault

    def _let_go(self) -> None:
        """Closes files, of any reader, that were dropped from the cache: an open one keeps its place on the disk."""
        if self._is_remote:
            OPEN_FILES.drop(_is_dropped)

    def _where(self, shard: int) -> str:
        return f"{self.name}: {self._shards[shard].file}"


class _File:
    """An open shard file and the first byte of its tokens; closed when nobody uses it any more."""

    __slots__ = ("descriptor", "first", "is_cached")

    def __init__(self, descriptor: int, first: int, is_cached: bool) -> None:
        self.descriptor, self.first, self.is_cached = descriptor, first, is_cached

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at its end the interpreter takes `os` away
        close(self.descriptor)


def _is_dropped(file: _File) -> bool:
    return file.is_cached and os.fstat(file.descriptor).st_nlink == 0


class ArrayTokens:
    """Tokens in memory, one shard; `ends` are those of its documents."""

    def __init__(self, tokens: npt.NDArray[Any], name: str, ends: Ends | None = None) -> None:
        self._tokens, self.name, self.dtype, self.lengths = tokens, name, tokens.dtype, [len(tokens)]
        self._all_ends = np.array([len(tokens)], np.uint64) if ends is None else ends

    def read(self, shard: int, start: int, out: memoryview) -> None:
        assert shard == 0
        part = self._tokens[start : start + len(out) // self.dtype.itemsize]
        out[:] = part.tobytes()

    def ends(self, shard: int) -> Ends:
        assert shard == 0
        return self._all_ends

    def documents(self) -> int:
        return len(self._all_ends)

    def documents_key(self, shard: int) -> str:
        return _hash_ends(self.ends(shard))

    def prefetch(self, shards: list[int]) -> None:
        pass

    def prefetch_documents(self, shards: list[int]) -> None:
        pass


def raise_open_files() -> None:
    """Lifts this process's limit of open files as far as the system lets it: a shard in use is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    if wanted > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fault(error: OSError, name: str) -> DataError:
    name = error.filename or name
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return DataError(
            f"{name} cannot be opened ({error.strerror}): this process may have {limit:,} files open; raise the limit "
            "(ulimit -n)"
        )
    return DataError(f"{name} cannot be opened ({error.strerror}): copy the dataset again")


def _hash_ends(ends: Ends) -> str:
    return str(xxhash.xxh3_128_hexdigest(ends.tobytes()))
