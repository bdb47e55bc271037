"""The dataset folder: an index and flat .npy shards of tokens and document ends, opened, checked and hashed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.errors import DataError

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
INDEX = "index.json"
FORMAT = "scaletrain-dataset"
VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
DOCS_DTYPE = np.dtype("<u8")
HEADER_BYTES = 128

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Shard:
    """One pair of files, named relative to the dataset folder; `bytes` counts the UTF-8 bytes of the text."""

    file: str
    docs_file: str
    tokens: int
    documents: int
    bytes: int
    xxh3: str
    docs_xxh3: str


@dataclass(frozen=True)
class TokenizerInfo:
    """What identifies the tokenizer that made the tokens; the end-of-text id closes every document."""

    name: str
    fingerprint: str
    vocab_size: int
    eos_id: int


class Files(Protocol):
    """Where the bytes of a dataset are: on this disk, or (`is_remote`) brought to it when they are needed."""

    is_remote: ClassVar[bool]

    def tokens(self, shard: Shard) -> tuple[Path, int]:
        """The local file of a shard's tokens, whole, and the byte at which they begin."""
        ...

    def document_ends(self, shard: Shard) -> npt.NDArray[np.uint64]:
        """The end of each document inside the shard (exclusive, the end-of-text token included)."""
        ...

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Begins to bring these shards here, in this order; returns at once."""
        ...

    def prefetch_documents(self, shards: Sequence[Shard]) -> None:
        """The same for their document ends alone."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """The files of a dataset folder on this machine."""

    folder: Path
    dtype: np.dtype[Any]
    is_remote: ClassVar[bool] = False

    def tokens(self, shard: Shard) -> tuple[Path, int]:
        return self.folder / shard.file, HEADER_BYTES

    def document_ends(self, shard: Shard) -> npt.NDArray[np.uint64]:
        return read_ends(self.folder / shard.docs_file, shard.documents)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        pass

    def prefetch_documents(self, shards: Sequence[Shard]) -> None:
        pass


@dataclass(frozen=True)
class Dataset:
    """An opened dataset; `name` is where the user said it is (a folder, a file, a URL).

    The fingerprint covers every shard's hash, the tokenizer and the format.
    """

    name: str
    files: Files
    dtype: str
    tokenizer: TokenizerInfo
    tokenizer_folder: Path
    train: tuple[Shard, ...]
    validation: tuple[Shard, ...]
    fingerprint: str

    @property
    def path(self) -> Path:
        """The folder of a dataset on this machine."""
        return Path(self.name)

    def shards(self, split: Split) -> tuple[Shard, ...]:
        return self.train if split == "train" else self.validation

    def tokens(self, split: Split) -> int:
        return sum(shard.tokens for shard in self.shards(split))

    def documents(self, split: Split) -> int:
        return sum(shard.documents for shard in self.shards(split))

    def bytes(self, split: Split) -> int:
        return sum(shard.bytes for shard in self.shards(split))


def shard_files(split: Split, number: int) -> tuple[str, str]:
    """The names of a shard's token and document files, relative to the dataset folder."""
    folder = "" if split == "train" else "validation/"
    return f"{folder}tokens-{number:05d}.npy", f"{folder}docs-{number:05d}.npy"


def npy_header(dtype: np.dtype[Any], length: int) -> bytes:
    """The bytes that np.save would write before a one-dimensional array, so that a shard can be streamed after it."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({length},), }}"
    # Magic (6), version (2), length (2) and the text are padded to 128 with a newline last; 2**64 items still fit.
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode("ascii") + b"\n"


def npy_bytes(dtype: np.dtype[Any], length: int) -> int:
    """The size of such a file."""
    return HEADER_BYTES + length * dtype.itemsize


def dataset_fingerprint(
    dtype: str, tokenizer: TokenizerInfo, train: tuple[Shard, ...], validation: tuple[Shard, ...]
) -> str:
    """Hash of the content alone: no path, no time, no source name."""
    parts = [FORMAT, VERSION, dtype, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id]
    hashes = [[[shard.xxh3, shard.docs_xxh3] for shard in shards] for shards in (train, validation)]
    return xxhash.xxh3_128_hexdigest(json.dumps([parts, hashes]).encode())


def index_text(dataset: Dataset, sources: list[tuple[str, int]], options: dict[str, Any]) -> str:
    """The content of index.json: the same text for the same dataset, sources and options."""
    totals: dict[str, Any] = {
        split: {"tokens": dataset.tokens(split), "documents": dataset.documents(split), "bytes": dataset.bytes(split)}
        for split in SPLITS
    }
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "dtype": dataset.dtype,
        "tokenizer": asdict(dataset.tokenizer),
        "totals": totals,
        **{split: [asdict(shard) for shard in dataset.shards(split)] for split in SPLITS},
        "options": options,
        "sources": [{"name": name, "bytes": size} for name, size in sources],
    }
    return json.dumps(index, indent=1, ensure_ascii=False) + "\n"


def local_dataset(
    path: Path, dtype: str, tokenizer: TokenizerInfo, train: tuple[Shard, ...], validation: tuple[Shard, ...]
) -> Dataset:
    """A dataset whose files stand, or will stand, in the folder `path`."""
    fingerprint = dataset_fingerprint(dtype, tokenizer, train, validation)
    files = LocalFiles(path, DTYPES[dtype])
    return Dataset(str(path), files, dtype, tokenizer, path / "tokenizer", train, validation, fingerprint)


def open_dataset(path: Path | str) -> Dataset:
    """Reads the index and checks each file's presence, header and size (no hashing); DataError says what is wrong."""
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            raise DataError(
                f"dataset {path} is a file: prepare it (scaletrain prepare --input {path} --output FOLDER "
                "--train-tokenizer 8192) and give that folder"
            )
        raise DataError(f"dataset {path} is not a folder: make it with scaletrain prepare --output {path}")
    file = path / INDEX
    if not file.is_file():
        raise DataError(
            f"dataset {path} has no {INDEX}: it is incomplete (a prepare that was stopped) or no dataset; "
            "run the same scaletrain prepare command again"
        )
    try:
        text = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): copy or prepare the dataset again") from error
    dataset = local_dataset(path, *read_index(text, str(file)))
    if not (path / "tokenizer").is_dir():
        raise DataError(f"dataset {path} has no folder tokenizer: copy or prepare the dataset again")
    for split in SPLITS:
        for shard in dataset.shards(split):
            _check_file(path / shard.file, DTYPES[dataset.dtype], shard.tokens)
            _check_file(path / shard.docs_file, DOCS_DTYPE, shard.documents)
    return dataset


def open_tokens(dataset: Dataset, shard: Shard) -> Tokens:
    """For tools and notebooks: the shard's tokens, memory-mapped and read-only, one dimension."""
    path, offset = dataset.files.tokens(shard)
    tokens: Tokens = map_array(path, DTYPES[dataset.dtype], shard.tokens, offset)
    return tokens


def open_docs(dataset: Dataset, shard: Shard) -> npt.NDArray[np.uint64]:
    """For tools and notebooks: the exclusive end of each document of the shard, the end-of-text token included."""
    return dataset.files.document_ends(shard)


def read_index(text: bytes, name: str) -> tuple[str, TokenizerInfo, tuple[Shard, ...], tuple[Shard, ...]]:
    """Token type, tokenizer and the shards of both splits from the content of index.json, checked; DataError if not."""
    try:
        index = json.loads(text)
        found = (index["format"], index["version"])
        if found != (FORMAT, VERSION):
            raise DataError(
                f"{name} is {found[0]} version {found[1]}, this program reads {FORMAT} version {VERSION}: "
                "prepare the dataset again"
            )
        train, validation = (tuple(Shard(**shard) for shard in index[split]) for split in SPLITS)
        dtype = index["dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype}")
        tokenizer = TokenizerInfo(**index["tokenizer"])
        fingerprint = dataset_fingerprint(dtype, tokenizer, train, validation)
        if fingerprint != index["fingerprint"]:
            raise DataError(
                f"{name} was changed: its content has the fingerprint {fingerprint}, it says {index['fingerprint']}: "
                "copy or prepare the dataset again"
            )
        return dtype, tokenizer, train, validation
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{name} cannot be read ({type(error).__name__}: {error}): copy or prepare the dataset again"
        ) from error


def _check_file(path: Path, dtype: np.dtype[Any], length: int) -> None:
    header = npy_header(dtype, length)
    expected = npy_bytes(dtype, length)
    try:
        found = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(header))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: the index lists it with {expected} bytes; copy the dataset again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected:
        state = "truncated" if found < expected else "too long"
        raise DataError(f"{path} is {state}: {found} bytes, the index says {expected}; copy the dataset again")
    if start != header:
        raise DataError(f"{path} is no array of {length} {dtype.name}, as the index says: copy the dataset again")


def read_ends(path: Path, count: int) -> npt.NDArray[np.uint64]:
    """The document ends of a shard, in memory; an OSError where there is no file, DataError where it is too short."""
    found: npt.NDArray[np.uint64] = np.fromfile(path, DOCS_DTYPE, count, offset=HEADER_BYTES)
    if len(found) != count:
        raise DataError(f"{path} ends too early: it was changed while in use; copy the dataset again")
    return found


def map_array(path: Path, dtype: np.dtype[Any], length: int, offset: int = HEADER_BYTES) -> npt.NDArray[Any]:
    """`length` items of a file from byte `offset` on, memory-mapped and read-only."""
    if length == 0:  # an empty file region cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(length,))
