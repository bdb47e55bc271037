"""Sixteen blocks of a file, spread over it: enough to see a wrong type or tokenizer, and to know the file again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.foreign.token_file import Given, TokenFile, read_array, read_tokens, size_of
from scaletrain.errors import DataError

_BLOCKS = 16
_BLOCK_BYTES = 1 << 16
_FEWEST = 64  # tokens from which on a pattern is no chance


def sample_tokens(file: TokenFile, given: Given) -> str:
    """A hash of the sampled blocks of tokens; DataError if they do not look like the tokenizer's ids."""
    digest, greatest = xxhash.xxh3_128(), np.zeros(2, dtype=np.int64)
    for start, count in _spread(file.tokens, _BLOCK_BYTES // file.itemsize):
        tokens = read_tokens(file, start, count)
        check_ids(file, given, tokens, start)
        digest.update(tokens.tobytes())
        greatest = np.maximum(greatest, [tokens[::2].max(initial=0), tokens[1::2].max(initial=0)])
    _check_halves(file, given, int(greatest[0]), int(greatest[1]))
    return str(digest.hexdigest())


def sample_bytes(path: Path) -> str:
    """A hash of the sampled blocks of any file."""
    digest = xxhash.xxh3_128()
    for start, count in _spread(size_of(path), _BLOCK_BYTES):
        digest.update(read_array(path, np.uint8, start, count).tobytes())
    return str(digest.hexdigest())


def _spread(length: int, block: int) -> Iterator[tuple[int, int]]:
    """Start (even) and length of the first, the last and the blocks evenly between; all of what is not longer."""
    if length <= _BLOCKS * block:
        yield 0, length
        return
    for number in range(_BLOCKS):
        start = -(-(number * (length - block) // (_BLOCKS - 1)) // 2) * 2
        yield start, min(block, length - start)


def check_ids(file: TokenFile, given: Given, tokens: npt.NDArray[Any], start: int) -> None:
    """DataError for the first of these tokens, which stand at `start` of the file, that the tokenizer does not have."""
    tokenizer = given.tokenizer
    if int(tokens.max(initial=0)) < tokenizer.vocab_size:
        return
    at = int(np.flatnonzero(tokens >= tokenizer.vocab_size)[0])
    found = int(tokens[at : at + 1].view(np.int32)[0]) if file.is_signed else int(tokens[at])
    remedy = "set data.tokenizer to the one that made the file"
    if not file.has_type:
        remedy += f", or data.dtype, if its tokens are not {file.dtype}"
    raise DataError(
        f"{file.path} has the id {found} at token {start + at:,}, tokenizer {tokenizer.name} has the ids 0 to "
        f"{tokenizer.vocab_size - 1}: {remedy}"
    )


def _check_halves(file: TokenFile, given: Given, even: int, odd: int) -> None:
    """uint32 read as uint16 gives ids of the vocabulary too: every second one is an upper half, 0 or little more."""
    highest = (given.tokenizer.vocab_size - 1) >> 16
    if file.dtype == "uint16" and not file.has_type and file.tokens >= _FEWEST and odd <= highest < even:
        raise DataError(
            f"{file.path} has no id above {odd} at any second token: its tokens are of 4 bytes, not 2; set "
            "data.dtype=uint32"
        )
