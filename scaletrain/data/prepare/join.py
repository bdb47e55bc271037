"""Joining segments, in the units' order, into shards that are cut at document ends and hashed while written."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from scaletrain.data.prepare.duplicates import Duplicates
from scaletrain.data.prepare.segments import Lengths, read_lengths, tokens_file
from scaletrain.data.shards import DOCS_DTYPE, Shard, Split, npy_header, shard_files

_BLOCK = 1 << 22  # bytes copied at once


class Stretch(NamedTuple):
    """Documents of one segment: where the tokens of each start in it, and the tokens and bytes of each."""

    segment: int
    starts: npt.NDArray[np.int64]
    lengths: Lengths

    def runs(self) -> Iterator[tuple[int, int]]:
        """First token and number of tokens of each run of documents with nothing between them."""
        ends = self.starts + self.lengths[:, 0].astype(np.int64)
        breaks = np.flatnonzero(self.starts[1:] != ends[:-1]) + 1
        firsts, lasts = self.starts[[0, *breaks]], ends[[*(breaks - 1), -1]]
        yield from zip(firsts.tolist(), (lasts - firsts).tolist(), strict=True)


@dataclass
class ShardPlan:
    """What goes into one shard: stretches of some segments, in order."""

    stretches: list[Stretch] = field(default_factory=list)
    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    def add(self, stretch: Stretch) -> None:
        self.stretches.append(stretch)
        self.tokens += int(stretch.lengths[:, 0].sum())
        self.documents += len(stretch.lengths)
        self.bytes += int(stretch.lengths[:, 1].sum())


def plan_shards(stretches: Iterable[Stretch], shard_tokens: int) -> Iterator[ShardPlan]:
    """Fills each shard with whole documents up to `shard_tokens`; only a longer document makes a longer shard."""
    shard, room = ShardPlan(), shard_tokens
    for segment, starts, lengths in stretches:
        ends = np.cumsum(lengths[:, 0], dtype=np.int64)
        document = used = 0
        while document < len(lengths):
            fitting = int(np.searchsorted(ends, used + room, side="right"))
            if fitting == document and room == shard_tokens:
                fitting += 1  # alone longer than a shard
            if fitting > document:
                shard.add(Stretch(segment, starts[document:fitting], lengths[document:fitting]))
                room -= int(ends[fitting - 1]) - used
                document, used = fitting, int(ends[fitting - 1])
            if document < len(lengths):
                yield shard
                shard, room = ShardPlan(), shard_tokens
    if shard.stretches:
        yield shard


def join_segments(
    folder: Path, segments: Path, count: int, split: Split, dtype: np.dtype[Any], shard_tokens: int,
    duplicates: Duplicates | None, advance: Callable[[int], None],
) -> tuple[Shard, ...]:  # fmt: skip
    """Writes the split's shards into `folder`; returns their index entries, tells `advance` the tokens of each."""
    stretches = (
        stretch for number in range(count) for stretch in read_stretches(segments, number, split, duplicates, advance)
    )
    shards = []
    for number, plan in enumerate(plan_shards(stretches, shard_tokens)):
        shards.append(_write_shard(folder, segments, split, number, plan, dtype))
        advance(plan.tokens)
    return tuple(shards)


def read_stretches(
    segments: Path, number: int, split: Split, duplicates: Duplicates | None, advance: Callable[[int], None]
) -> Iterator[Stretch]:
    """A segment's documents in blocks, without the duplicates, of whose tokens `advance` is told."""
    if duplicates is None:
        yield from _stretches(number, read_lengths(segments, number, split))
        return
    masks, sizes = tee(duplicates.kept(number, split))
    blocks = _stretches(number, read_lengths(segments, number, split, map(len, sizes)))
    for (_, starts, lengths), mask in zip(blocks, masks, strict=False):  # without documents the split has no file
        advance(int(lengths[~mask, 0].sum()))
        if mask.any():
            yield Stretch(number, starts[mask], lengths[mask])


def _stretches(number: int, blocks: Iterable[Lengths]) -> Iterator[Stretch]:
    first = 0
    for lengths in blocks:
        tokens = lengths[:, 0].astype(np.int64)
        yield Stretch(number, first + np.cumsum(tokens) - tokens, lengths)
        first += int(tokens.sum())


def _write_shard(
    folder: Path, segments: Path, split: Split, number: int, plan: ShardPlan, dtype: np.dtype[Any]
) -> Shard:
    file, docs_file = shard_files(split, number)
    (folder / file).parent.mkdir(exist_ok=True)

    def copy(out: BinaryIO, digest: Any) -> None:
        for stretch in plan.stretches:
            with tokens_file(segments, stretch.segment, split).open("rb") as source:
                for first, count in stretch.runs():
                    source.seek(first * dtype.itemsize)
                    left = count * dtype.itemsize
                    while left:
                        block = source.read(min(left, _BLOCK))
                        assert block, f"{source.name} is shorter than its record says"
                        _put(out, digest, block)
                        left -= len(block)

    def write_ends(out: BinaryIO, digest: Any) -> None:
        first = 0
        for stretch in plan.stretches:
            ends = first + np.cumsum(stretch.lengths[:, 0], dtype=DOCS_DTYPE)
            _put(out, digest, ends.tobytes())
            first = ends[-1]

    xxh3 = _write_npy(folder / file, npy_header(dtype, plan.tokens), copy)
    docs_xxh3 = _write_npy(folder / docs_file, npy_header(DOCS_DTYPE, plan.documents), write_ends)
    return Shard(file, docs_file, plan.tokens, plan.documents, plan.bytes, xxh3, docs_xxh3)


def _write_npy(path: Path, header: bytes, fill: Callable[[BinaryIO, Any], None]) -> str:
    digest = xxhash.xxh3_128()
    with path.open("wb") as out:
        _put(out, digest, header)
        fill(out, digest)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _put(out: BinaryIO, digest: Any, block: bytes) -> None:
    out.write(block)
    digest.update(block)
