"""datatrove's .ds files: plain tokens, with the ends of the documents (u64) in .ds.index, both counted in .ds.metadata.

The metadata are lines of text: the tokenizer (newer versions: NAME|BYTES OF A TOKEN), the number of tokens, and that
number for the eye.
"""

from collections.abc import Iterator
from pathlib import Path

from scaletrain.data.foreign.token_file import (
    Ends,
    Given,
    TokenFile,
    check_dtype,
    headerless,
    read_array,
    read_bytes,
    size_of,
)
from scaletrain.data.shards import DOCS_DTYPE, DTYPES
from scaletrain.errors import DataError

_BLOCK = 1 << 20  # document ends read at once
_METADATA_BYTES = 1 << 16


def read_datatrove(path: Path, given: Given) -> TokenFile:
    """A .ds file; what index and metadata say must fit to its size, of which they also give the type."""
    masks = path.with_name(path.name + ".loss")
    if masks.exists():
        raise DataError(
            f"{masks} takes the loss from some tokens, which is not read: move it away to train on all tokens of "
            f"{path.name}, or write them without loss masks"
        )
    counts = _counts(path)
    if not counts:
        return headerless(path, given)
    size, (source, tokens) = size_of(path), next(iter(counts.items()))
    dtype = next((name for name, dtype in DTYPES.items() if tokens * dtype.itemsize == size), None)
    if dtype is None or len(set(counts.values())) > 1:
        said = " and ".join(f"{count:,} tokens in {name}" for name, count in counts.items())
        raise DataError(
            f"{path} has {size:,} bytes, and by its files {said}, of 2 or 4 bytes each: one of them is damaged or of "
            "another file, copy them again"
        )
    is_told = tokens > 0  # an empty file fits to each type
    if is_told:
        check_dtype(source, dtype, given)
    index = _index_of(path)
    if not index.exists():
        return TokenFile(path, dtype, 0, tokens, has_type=is_told)
    documents = size_of(index) // DOCS_DTYPE.itemsize
    return TokenFile(path, dtype, 0, tokens, is_told, False, index, documents, lambda: _read_ends(index))


def named_tokenizer(path: Path) -> str | None:
    """The tokenizer that the file's metadata names."""
    lines = _metadata(path)
    return lines[0].split("|")[0].strip() or None if lines else None


def _counts(path: Path) -> dict[Path, int]:
    """The number of tokens by index and metadata, as far as they are there."""
    counts, index = {}, _index_of(path)
    if index.exists():
        size = size_of(index)
        if size % DOCS_DTYPE.itemsize:
            raise DataError(
                f"{index} has {size:,} bytes, no multiple of the {DOCS_DTYPE.itemsize} of a document end: it is "
                "damaged, copy it again"
            )
        last = read_array(index, DOCS_DTYPE, size - DOCS_DTYPE.itemsize, 1) if size else [0]
        counts[index] = int(last[0])
    lines = _metadata(path)
    if len(lines) > 1 and lines[1].strip().isdecimal():
        counts[_metadata_of(path)] = int(lines[1])
    return counts


def _metadata(path: Path) -> list[str]:
    metadata = _metadata_of(path)
    return read_bytes(metadata, _METADATA_BYTES).decode(errors="replace").splitlines() if metadata.is_file() else []


def _read_ends(index: Path) -> Iterator[Ends]:
    count = size_of(index) // DOCS_DTYPE.itemsize
    for first in range(0, count, _BLOCK):
        yield read_array(index, DOCS_DTYPE, first * DOCS_DTYPE.itemsize, min(_BLOCK, count - first))


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def _metadata_of(path: Path) -> Path:
    return path.with_name(path.name + ".metadata")
