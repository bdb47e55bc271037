"""The ends of a foreign file's documents: by its index, else by a search for the end-of-text id; kept in the cache."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from scaletrain.data.cache_folder import making, writing_cache
from scaletrain.data.foreign.token_file import Ends, TokenFile, read_tokens, reading
from scaletrain.data.shards import DOCS_DTYPE, HEADER_BYTES, map_array, npy_header
from scaletrain.errors import DataError
from scaletrain.runtime.files import TEMPORARY, sync_folder

_BLOCK = 1 << 22  # tokens searched at once: what bounds the memory


def document_ends(file: TokenFile, eos_id: int, cache: Path) -> Ends:
    """The exclusive end of each document, increasing, the last one the number of tokens; mapped from the cache.

    Made once for a machine: another process that needs them meanwhile waits. Documents without a token are left out.
    """
    path = cache / "documents" / f"{_key(file, eos_id)}.npy"
    with writing_cache(cache):
        found = _map(path)
        if found is None:
            with making(path):
                found = _map(path)
                if found is None:
                    _write(path, _checked(file, eos_id))
                    found = _map(path)
    assert found is not None, "just written"
    return found


def _key(file: TokenFile, eos_id: int) -> str:
    """The same as long as neither file is changed."""
    parts: list[object] = [file.offset, file.dtype, eos_id if file.index is None else None]
    for path in (file.path, file.index):
        if path is not None:
            with reading(path):
                status = path.stat()
            parts.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return xxhash.xxh3_128_hexdigest(json.dumps(parts).encode())


def _checked(file: TokenFile, eos_id: int) -> Iterator[Ends]:
    """The ends in blocks, those of empty documents left out; DataError if they go back or do not fit to the tokens."""
    last = 0
    for ends in _search(file, eos_id) if file.read_ends is None else file.read_ends():
        steps = np.diff(ends.astype(np.int64), prepend=last)
        if (steps < 0).any():
            at = int(ends[np.flatnonzero(steps < 0)[0]])
            raise DataError(f"{file.index} has a document that ends at token {at:,}, before it begins: copy it again")
        yield ends[steps > 0]
        last = int(ends[-1]) if len(ends) else last
    if last != file.tokens:
        raise DataError(
            f"{file.index} has the end of its last document at token {last:,}, {file.path} has {file.tokens:,} tokens: "
            "copy both files again"
        )


def _search(file: TokenFile, eos_id: int) -> Iterator[Ends]:
    """After each end-of-text id a document ends, and at the end of the file, which may lack one."""
    last = 0
    for start in range(0, file.tokens, _BLOCK):
        tokens = read_tokens(file, start, min(_BLOCK, file.tokens - start))
        ends = (np.flatnonzero(tokens == eos_id) + (start + 1)).astype(np.uint64)
        if len(ends):
            yield ends
            last = int(ends[-1])
    if last != file.tokens:
        yield np.array([file.tokens], dtype=np.uint64)


def _map(path: Path) -> Ends | None:
    """The stored ends; None where there are none, or what a crash left of them."""
    try:
        count = (path.stat().st_size - HEADER_BYTES) // DOCS_DTYPE.itemsize
        with path.open("rb") as file:
            if count < 0 or file.read(HEADER_BYTES) != npy_header(DOCS_DTYPE, count):
                return None
    except FileNotFoundError:
        return None
    return map_array(path, DOCS_DTYPE, count)


def _write(path: Path, blocks: Iterator[Ends]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.seek(HEADER_BYTES)
            count = 0
            for ends in blocks:
                file.write(ends.astype(DOCS_DTYPE).tobytes())
                count += len(ends)
            file.seek(0)
            file.write(npy_header(DOCS_DTYPE, count))
            file.truncate(HEADER_BYTES + count * DOCS_DTYPE.itemsize)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
