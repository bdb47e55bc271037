"""Which sample a run reads when: a pure function of (seed, position), the same for any number of ranks."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from scaletrain.data.rows import WHOLE, RowPart
from scaletrain.data.shuffle import Ids, mix, permute


class SampleOrder(Protocol):
    """The endless sequence of sample ids of a run."""

    def ids(self, start: int, count: int) -> Ids:
        """Sample ids at positions start..start+count-1; O(count) wherever it starts."""
        ...


class Order:
    """Epoch after epoch over the rows of one source: each sample once an epoch, in an order that the epoch names.

    `shard_rows` are the rows of each shard, numbered one shard after the other. Without `window` the samples of an
    epoch are permuted as a whole. With it the shards are permuted, and the samples within each run of `window` shards:
    only so many shards are in use at a time.
    """

    def __init__(self, shard_rows: Ids, seed: int, *, shuffle: bool = True, window: int | None = None) -> None:
        self.shard_rows, self.seed, self.shuffle, self.window = shard_rows, seed, shuffle, window
        self.samples = int(shard_rows.sum())
        self._plan = lru_cache(maxsize=4)(self._make_plan)

    def ids(self, start: int, count: int) -> Ids:
        """As SampleOrder."""
        epochs, offsets = np.divmod(np.arange(start, start + count, dtype=np.int64), self.samples)
        if not self.shuffle:
            return offsets
        ids = np.empty_like(offsets)
        first, last = int(epochs[0]), int(epochs[-1])
        for epoch in range(first, last + 1):
            mine = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
            ids[mine] = self._within(offsets[mine], epoch)
        return ids

    def _within(self, offsets: Ids, epoch: int) -> Ids:
        """Ids at consecutive offsets of an epoch."""
        if self.window is None:
            return permute(offsets, self.samples, self.seed, epoch)
        plan = self._plan(epoch)
        ids = np.empty_like(offsets)
        first, last = np.searchsorted(plan.ends, offsets[[0, -1]], side="right")
        for window in range(int(first), int(last) + 1):
            begin, end = plan.bounds(window)
            mine = slice(*np.searchsorted(offsets, [begin, end]))
            ids[mine] = plan.stored(begin + self._permuted(offsets[mine] - begin, end - begin, epoch, window))
        return ids

    def _permuted(self, offsets: Ids, size: int, epoch: int, window: int) -> Ids:
        return permute(offsets, size, self.seed, (epoch << 32) + window + 1)

    def _make_plan(self, epoch: int) -> "_WindowPlan":
        assert self.window is not None
        shards = len(self.shard_rows)
        order = permute(np.arange(shards, dtype=np.int64), shards, self.seed, epoch)
        return _WindowPlan(order, self.shard_rows, self.window)


class _WindowPlan:
    """The shards of one epoch in their permuted order, and the windows that they make."""

    def __init__(self, order: Ids, shard_rows: Ids, window: int) -> None:
        self._stored = (np.cumsum(shard_rows) - shard_rows)[order]  # first row of each shard, as stored
        self._placed = np.cumsum(shard_rows[order]) - shard_rows[order]  # and as this epoch reads them
        self.ends = np.cumsum(shard_rows[order])[[*range(window - 1, len(order) - 1, window), len(order) - 1]]

    def bounds(self, window: int) -> tuple[int, int]:
        return int(self.ends[window - 1]) if window else 0, int(self.ends[window])

    def stored(self, places: Ids) -> Ids:
        """The row at each place of this epoch's shard order."""
        shard = np.searchsorted(self._placed, places, side="right") - 1
        return self._stored[shard] + places - self._placed[shard]


@dataclass(frozen=True)
class Share:
    """This rank's part of each global batch: `accumulation` micro-batches of `micro_batch` samples, and of each sample
    the tokens of `part`. Ranks that share samples are one among the `ranks` here."""

    rank: int
    ranks: int
    micro_batch: int
    accumulation: int
    part: RowPart = WHOLE

    @property
    def global_batch(self) -> int:
        return self.ranks * self.micro_batch * self.accumulation

    @cached_property
    def _places(self) -> Ids:
        grid = np.arange(self.global_batch, dtype=np.int64).reshape(self.accumulation, self.ranks, self.micro_batch)
        return grid[:, self.rank]

    def of(self, batch_ids: Ids) -> list[Ids]:
        """Splits a global batch's ids into this rank's micro-batches. Over all ranks each id is used once."""
        return list(batch_ids[self._places])

    def sum(self, values: npt.NDArray[np.uint64]) -> int:
        """Sum modulo 2**64 of this rank's values of a global batch; the first of those that share samples tells it."""
        return int(values[self._places].sum(dtype=np.uint64)) if self.part.place == 0 else 0


def fingerprints(positions: Ids, ids: Ids) -> npt.NDArray[np.uint64]:
    """A 64-bit number for each sample read at its position of the run."""
    with np.errstate(over="ignore"):
        keys = mix(positions.astype(np.uint64), np.uint64(0x9E3779B97F4A7C15))
        return mix(ids.astype(np.uint64) ^ keys, np.uint64(0xD1B54A32D192ED03))


def digest(positions: Ids, ids: Ids) -> int:
    """Tells which sample was read at which position: the sum of their fingerprints modulo 2**64.

    Those of ranks and steps add up in any order, and a sample that is left out, repeated or moved changes the sum.
    """
    return int(fingerprints(positions, ids).sum(dtype=np.uint64))
