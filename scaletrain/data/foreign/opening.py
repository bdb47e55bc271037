"""Another tool's token files as a dataset: opened where they are, without copying a token."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import xxhash

from scaletrain.data.cache_folder import keep_tokenizer, writing_cache
from scaletrain.data.foreign.datatrove import named_tokenizer, read_datatrove
from scaletrain.data.foreign.documents import document_ends
from scaletrain.data.foreign.folder import Found, find_files, is_foreign
from scaletrain.data.foreign.llmc import read_llmc
from scaletrain.data.foreign.megatron import read_megatron
from scaletrain.data.foreign.npy import read_npy
from scaletrain.data.foreign.samples import sample_bytes, sample_tokens
from scaletrain.data.foreign.token_file import Ends, Given, TokenFile, headerless, size_of
from scaletrain.data.shards import SPLITS, Dataset, Shard, Split
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.errors import DataError

__all__ = ["ForeignFiles", "is_foreign", "open_foreign"]

_READERS: dict[str, Callable[[Path, Given], TokenFile]] = {
    "Megatron": read_megatron,
    "numpy": read_npy,
    "headerless .npy": headerless,  # OLMo's
    "headerless .bin": headerless,  # nanoGPT's
    "llm.c": read_llmc,
    "datatrove": read_datatrove,
}
_THREADS = 8  # files looked at at once: on a network disk each of the reads takes milliseconds


@dataclass(frozen=True)
class ForeignFiles:
    """The files of a foreign dataset, by the names that its shards have."""

    format: str
    files: Mapping[str, TokenFile]
    eos_id: int
    cache: Path
    is_remote: ClassVar[bool] = False

    def tokens(self, shard: Shard) -> tuple[Path, int]:
        file = self.files[shard.file]
        return file.path, file.offset

    def document_ends(self, shard: Shard) -> Ends:
        return document_ends(self.files[shard.file], self.eos_id, self.cache)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        pass

    def prefetch_documents(self, shards: Sequence[Shard]) -> None:
        pass


def open_foreign(
    path: Path, *, tokenizer: str | None, dtype: str | None, cache: Path, eos_token: str | None = None
) -> Dataset:
    """The dataset of a path for which `is_foreign` holds, each file a shard; DataError says what does not fit.

    Sizes are checked against headers, and the ids in 16 blocks of 64 KiB of each file (the first, the last, 14 between)
    against the tokenizer. The fingerprint covers names, sizes, types, the tokenizer and these blocks, of an index too,
    and not the whole content, which may be terabytes. Documents are 0 where only a search would count them, bytes of
    text always.
    """
    found = find_files(path)
    given = Given(_load(tokenizer, eos_token, path, found), dtype)
    names = {file: file.relative_to(found.root).as_posix() for files in found.splits.values() for file in files}
    files = {names[file]: _READERS[found.format](file, given) for file in names}
    types = {file.dtype: name for name, file in files.items()}
    if len(types) > 1:
        listed = ", ".join(f"{name} ({kind})" for kind, name in types.items())
        raise DataError(f"{path} holds tokens of two types: {listed}; keep one in a folder")
    with ThreadPoolExecutor(_THREADS) as pool:
        samples = list(pool.map(lambda file: _sample(file, given), files.values()))
    info = given.tokenizer.info
    shards = {
        split: tuple(_shard(names[file], files[names[file]], found.root) for file in found.splits[split])
        for split in SPLITS
    }
    kind = next(iter(types))
    with writing_cache(cache):
        tokenizer_folder = keep_tokenizer(given.tokenizer, cache)
    return Dataset(
        name=str(path),
        files=ForeignFiles(found.format, files, info.eos_id, cache),
        dtype=kind,
        tokenizer=info,
        tokenizer_folder=tokenizer_folder,
        train=shards["train"],
        validation=shards["validation"],
        fingerprint=_fingerprint([kind, info.fingerprint, info.vocab_size, info.eos_id], shards, samples),
    )


def _load(tokenizer: str | None, eos_token: str | None, path: Path, found: Found) -> Tokenizer:
    if tokenizer is None:
        named = named_tokenizer(found.splits["train"][0])
        hint = f" (its metadata say {named})" if named else ""
        raise DataError(
            f"data.tokenizer is not set: {path} ({found.format}) does not carry its tokenizer{hint}; set it to a "
            "folder, a file or a hub name"
        )
    return load_tokenizer(tokenizer, eos_token)


def _sample(file: TokenFile, given: Given) -> list[object]:
    own = [file.offset, file.tokens, sample_tokens(file, given)]
    return own if file.index is None else [*own, size_of(file.index), sample_bytes(file.index)]


def _shard(name: str, file: TokenFile, root: Path) -> Shard:
    index = "" if file.index is None else file.index.relative_to(root).as_posix()
    return Shard(name, index, file.tokens, file.documents, bytes=0, xxh3="", docs_xxh3="")


def _fingerprint(parts: list[object], shards: dict[Split, tuple[Shard, ...]], samples: list[list[object]]) -> str:
    names = [[shard.file for shard in shards[split]] for split in SPLITS]
    return xxhash.xxh3_128_hexdigest(json.dumps(["foreign", 1, *parts, names, samples]).encode())
