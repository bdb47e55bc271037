"""A prepared dataset at a URL: its index and tokenizer are read at once, its shards when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.cache import Wanted
from scaletrain.data.remote import RemoteFolder
from scaletrain.data.shards import (
    DOCS_DTYPE,
    DTYPES,
    HEADER_BYTES,
    INDEX,
    Dataset,
    Shard,
    dataset_fingerprint,
    npy_bytes,
    read_ends,
    read_index,
)


@dataclass(frozen=True)
class RemoteFiles:
    """The shards of a dataset at a URL, through the cache of this machine; `documents`: their ends are read too."""

    folder: RemoteFolder
    dtype: np.dtype[Any]
    documents: bool
    is_remote: ClassVar[bool] = True

    def tokens(self, shard: Shard) -> tuple[Path, int]:
        return self.folder.path(self._tokens(shard)), HEADER_BYTES

    def document_ends(self, shard: Shard) -> npt.NDArray[np.uint64]:
        return read_ends(self.folder.path(self._docs(shard)), shard.documents)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        parts = (self._tokens, self._docs) if self.documents else (self._tokens,)
        self.folder.prefetch([wanted(shard) for shard in shards for wanted in parts])

    def prefetch_documents(self, shards: Sequence[Shard]) -> None:
        """Begins to bring the document ends alone."""
        self.folder.prefetch([self._docs(shard) for shard in shards])

    def _tokens(self, shard: Shard) -> Wanted:
        return Wanted(shard.file, npy_bytes(self.dtype, shard.tokens), shard.xxh3)

    def _docs(self, shard: Shard) -> Wanted:
        return Wanted(shard.docs_file, npy_bytes(DOCS_DTYPE, shard.documents), shard.docs_xxh3)


def open_remote_dataset(folder: RemoteFolder, *, documents: bool = False) -> Dataset:
    """Reads the index; the fingerprint in it covers the hash of every shard, each is checked when it arrives."""
    index = folder.read(INDEX)
    dtype, tokenizer, train, validation = read_index(index, f"{folder.url}/{INDEX}")
    return Dataset(
        name=folder.url,
        files=RemoteFiles(folder, DTYPES[dtype], documents),
        dtype=dtype,
        tokenizer=tokenizer,
        tokenizer_folder=folder.folder("tokenizer", key=xxhash.xxh3_128_hexdigest(index)),
        train=train,
        validation=validation,
        fingerprint=dataset_fingerprint(dtype, tokenizer, train, validation),
    )
