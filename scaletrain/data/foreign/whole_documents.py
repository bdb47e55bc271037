"""A foreign file's tokens as whole documents, each closed by one end-of-text id, in pieces that fit in memory.

A dataset wants every document to end with the end-of-text id and to hold no other: one that lacks it gets it, and where
it stands inside of what the index calls a document, a document ends.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scaletrain.data.foreign.samples import check_ids
from scaletrain.data.foreign.token_file import Ends, Given, TokenFile, read_tokens
from scaletrain.data.shards import DTYPES, Tokens

BLOCK = 1 << 22  # tokens in memory at once


class Documents(NamedTuple):
    """Some documents one after the other, and the tokens of each."""

    tokens: Tokens
    lengths: npt.NDArray[np.int64]


class LongDocument(NamedTuple):
    """One document that is not held in memory: its tokens, the first of them, and all in blocks."""

    length: int
    head: Tokens
    blocks: Callable[[], Iterator[Tokens]]


@dataclass
class Changes:
    """Documents that got an end-of-text id, and document ends at such ids that the index does not name."""

    closed: int = 0
    divided: int = 0


def read_documents(
    file: TokenFile, ends: Ends | None, given: Given, changes: Changes, block: int = BLOCK
) -> Iterator[Documents | LongDocument]:
    """All documents in order; `ends` as the index has them, None without one. DataError for an id of no vocabulary."""
    place = 0
    while place < file.tokens:
        tokens = _read(file, place, min(block, file.tokens - place), given)
        found = _ends_in(tokens, place, file, ends, given)
        if not len(found):
            length = _find_end(file, place + len(tokens), ends, given, block) - place
            yield _long_document(file, place, length, tokens, given, changes, block)
        else:
            length = int(found[-1])
            yield _close(tokens[:length], found, given, changes)
        place += length
        if ends is not None:
            changes.divided += max(1, len(found)) - _named(ends, place - length, place)


def _read(file: TokenFile, start: int, count: int, given: Given) -> Tokens:
    tokens = read_tokens(file, start, count)
    check_ids(file, given, tokens, start)
    return tokens


def _ends_in(tokens: Tokens, place: int, file: TokenFile, ends: Ends | None, given: Given) -> npt.NDArray[np.int64]:
    """Where documents end in these tokens, which stand at `place`: at end-of-text ids, by the index, with the file."""
    found = [np.flatnonzero(tokens == given.tokenizer.eos_id).astype(np.int64) + 1]
    stop = place + len(tokens)
    if ends is not None:
        low, high = np.searchsorted(ends, np.array([place, stop], np.uint64), side="right")
        found.append(ends[low:high].astype(np.int64) - place)
    if stop == file.tokens:
        found.append(np.array([len(tokens)], np.int64))
    return np.unique(np.concatenate(found))


def _named(ends: Ends, start: int, stop: int) -> int:
    """How many of the index's ends are in start < end <= stop."""
    low, high = np.searchsorted(ends, np.array([start, stop], np.uint64), side="right")
    return int(high - low)


def _close(tokens: Tokens, ends: npt.NDArray[np.int64], given: Given, changes: Changes) -> Documents:
    eos_id = given.tokenizer.eos_id
    is_open = tokens[ends - 1] != eos_id
    lengths = np.diff(ends, prepend=0)
    if is_open.any():
        closed: npt.NDArray[Any] = np.insert(tokens, ends[is_open], eos_id)  # of the tokens' type
        changes.closed += int(is_open.sum())
        return Documents(closed, lengths + is_open)
    return Documents(tokens, lengths)


def _find_end(file: TokenFile, start: int, ends: Ends | None, given: Given, block: int) -> int:
    """The end of the document that goes on at `start`."""
    for place in range(start, file.tokens, block):
        tokens = read_tokens(file, place, min(block, file.tokens - place))
        found = _ends_in(tokens, place, file, ends, given)
        if len(found):
            return place + int(found[0])
    raise AssertionError("a document ends with its file at the latest")


def _long_document(
    file: TokenFile, place: int, length: int, head: Tokens, given: Given, changes: Changes, block: int
) -> LongDocument:
    eos_id = given.tokenizer.eos_id
    is_open = int(read_tokens(file, place + length - 1, 1)[0]) != eos_id
    changes.closed += is_open

    closing: Tokens = np.array([eos_id], dtype=DTYPES[file.dtype])

    def blocks() -> Iterator[Tokens]:
        for start in range(place, place + length, block):
            yield _read(file, start, min(block, place + length - start), given)
        if is_open:
            yield closing

    return LongDocument(length + is_open, head, blocks)
