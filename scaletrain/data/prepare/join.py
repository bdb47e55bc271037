"""Joining segments, in the units' order, into shards that are cut at document ends and hashed while written."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from scaletrain.data.prepare.segments import Lengths, read_lengths, tokens_file
from scaletrain.data.shards import DOCS_DTYPE, Shard, Split, npy_header, shard_files

_BLOCK = 1 << 22  # bytes copied at once


@dataclass
class ShardPlan:
    """What goes into one shard: a run of documents of each of some segments."""

    lengths: list[Lengths] = field(default_factory=list)
    ranges: list[tuple[int, int, int]] = field(default_factory=list)  # segment, first token, number of tokens

    @property
    def tokens(self) -> int:
        return sum(count for _, _, count in self.ranges)

    def add(self, segment: int, first_token: int, lengths: Lengths) -> None:
        self.lengths.append(lengths)
        self.ranges.append((segment, first_token, int(lengths[:, 0].sum())))


def plan_shards(segments: Iterator[tuple[int, Lengths]], shard_tokens: int) -> Iterator[ShardPlan]:
    """Fills each shard with whole documents up to `shard_tokens`; only a longer document makes a longer shard."""
    shard, room = ShardPlan(), shard_tokens
    for segment, lengths in segments:
        ends = np.cumsum(lengths[:, 0], dtype=np.int64)
        document, first = 0, 0
        while document < len(lengths):
            fitting = int(np.searchsorted(ends, first + room, side="right"))
            if fitting == document and room == shard_tokens:
                fitting += 1  # alone longer than a shard
            if fitting > document:
                shard.add(segment, first, lengths[document:fitting])
                room -= int(ends[fitting - 1]) - first
                document, first = fitting, int(ends[fitting - 1])
            if document < len(lengths):
                yield shard
                shard, room = ShardPlan(), shard_tokens
    if shard.ranges:
        yield shard


def join_segments(
    folder: Path, segments: Path, count: int, split: Split, dtype: np.dtype[Any], shard_tokens: int,
    advance: Callable[[int], None],
) -> tuple[Shard, ...]:  # fmt: skip
    """Writes the split's shards into `folder`; returns their index entries, tells `advance` the tokens of each."""
    lengths = ((number, read_lengths(segments, number, split)) for number in range(count))
    shards = []
    for number, plan in enumerate(plan_shards(lengths, shard_tokens)):
        shards.append(_write_shard(folder, segments, split, number, plan, dtype))
        advance(plan.tokens)
    return tuple(shards)


def _write_shard(
    folder: Path, segments: Path, split: Split, number: int, plan: ShardPlan, dtype: np.dtype[Any]
) -> Shard:
    file, docs_file = shard_files(split, number)
    (folder / file).parent.mkdir(exist_ok=True)
    lengths = np.concatenate(plan.lengths)
    ends = np.cumsum(lengths[:, 0], dtype=DOCS_DTYPE)

    def copy(out: BinaryIO, digest: Any) -> None:
        for segment, first, count in plan.ranges:
            with tokens_file(segments, segment, split).open("rb") as source:
                source.seek(first * dtype.itemsize)
                left = count * dtype.itemsize
                while left:
                    block = source.read(min(left, _BLOCK))
                    assert block, f"{source.name} is shorter than its record says"
                    _put(out, digest, block)
                    left -= len(block)

    xxh3 = _write_npy(folder / file, npy_header(dtype, plan.tokens), copy)
    docs_xxh3 = _write_npy(
        folder / docs_file, npy_header(DOCS_DTYPE, len(ends)), lambda out, digest: _put(out, digest, ends.tobytes())
    )
    return Shard(file, docs_file, plan.tokens, len(ends), int(lengths[:, 1].sum()), xxh3, docs_xxh3)


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
