"""Runs of tokens by shard and position: read from files by pread, or taken from an array in memory."""

import os
import resource
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.shards import DTYPES, Dataset, Split
from scaletrain.errors import DataError

Ends = npt.NDArray[np.uint64]


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


class ShardReader:
    """A split of a dataset, read by pread: nothing is mapped, so memory stays flat and a bad disk is an error.

    A page of a mapped file counts as this process's memory, and a failed read of one kills the process (SIGBUS).
    """

    def __init__(self, dataset: Dataset, split: Split) -> None:
        self.name = f"{dataset.name}: the {split} split"
        self.dtype = DTYPES[dataset.dtype]
        self._files, self._shards = dataset.files, dataset.shards(split)
        self.lengths = [shard.tokens for shard in self._shards]
        self._open: OrderedDict[int, tuple[int, int]] = OrderedDict()  # shard: descriptor, first byte of the tokens
        self._ends: OrderedDict[int, Ends] = OrderedDict()
        self._most = max(16, min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8))

    def read(self, shard: int, start: int, out: memoryview) -> None:
        descriptor, first = self._opened(shard)
        position, read = first + start * self.dtype.itemsize, 0
        try:
            read = os.preadv(descriptor, (out,), position)
            while 0 < read < len(out):  # a signal may cut a read short
                more = os.preadv(descriptor, (out[read:],), position + read)
                read = read + more if more else -1
        except OSError as error:
            raise DataError(f"{self._where(shard)} cannot be read ({error.strerror}): check the disk") from error
        if read != len(out):
            raise DataError(f"{self._where(shard)} ends too early: it was changed while in use; copy the dataset again")

    def ends(self, shard: int) -> Ends:
        if shard not in self._ends:
            self._ends[shard] = self._files.document_ends(self._shards[shard])
            while len(self._ends) > self._most:
                self._ends.popitem(last=False)
        return self._ends[shard]

    def documents(self) -> int:
        # Files of other tools do not tell how many they hold: 0 there, and every shard has one.
        return sum(shard.documents or len(self.ends(number)) for number, shard in enumerate(self._shards))

    def documents_key(self, shard: int) -> str:
        return self._shards[shard].docs_xxh3 or _hash_ends(self.ends(shard))

    def prefetch(self, shards: list[int]) -> None:
        self._files.prefetch([self._shards[shard] for shard in shards])
        for shard in [s for s, (descriptor, _) in self._open.items() if os.fstat(descriptor).st_nlink == 0]:
            os.close(self._open.pop(shard)[0])  # evicted from the cache: an open file would keep its space

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()

    def _opened(self, shard: int) -> tuple[int, int]:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        path, first = self._files.tokens(self._shards[shard])
        try:
            found = os.open(path, os.O_RDONLY | os.O_CLOEXEC), first
        except OSError as error:
            raise DataError(f"{path} cannot be opened ({error.strerror}): copy the dataset again") from error
        self._open[shard] = found
        while len(self._open) > self._most:
            os.close(self._open.popitem(last=False)[1][0])
        return found

    def _where(self, shard: int) -> str:
        return f"{self.name}: {self._shards[shard].file}"


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


def raise_open_files() -> None:
    """Lifts this process's limit of open files as far as the system lets it: a shard in use is an open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 16) if hard != resource.RLIM_INFINITY else 1 << 16
    if wanted > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hash_ends(ends: Ends) -> str:
    return str(xxhash.xxh3_128_hexdigest(ends.tobytes()))
