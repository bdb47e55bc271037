"""Which samples a run read, computed again: the digest after given numbers of samples, and each row once an epoch."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from scaletrain.data.audit.fault import Fault
from scaletrain.data.mixture import SOURCE_SHIFT
from scaletrain.data.order import SampleOrder, digest
from scaletrain.data.shuffle import Ids

_BLOCK = 1 << 15  # samples at once: the arrays of a block stay in a core's cache, which doubles the speed
_MOST_ROWS = 1_000_000_000  # rows whose bits are held, 125 MB
_BITS = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))


@dataclass(frozen=True)
class SourceUse:
    """How a run used one source. `is_checked`: whether each row was looked for, in each epoch."""

    name: str
    rows: int
    samples: int
    is_checked: bool

    @property
    def epochs(self) -> int:
        """Read to the end."""
        return self.samples // self.rows


class Usage:
    """The rows that a run reads, in its order: in an epoch of a source each row comes once.

    A bit a row, for sources that together have at most `most_rows`; the others are counted only. A source without rows
    keeps its number alone.
    """

    def __init__(self, rows: Mapping[str, int], most_rows: int = _MOST_ROWS) -> None:
        self._sources: list[_SourceRows] = []
        for name, count in rows.items():
            fits = count <= most_rows
            most_rows -= count if fits else 0
            self._sources.append(_SourceRows(name, count, fits))

    def add(self, ids: Ids) -> None:
        """The samples that come next."""
        if len(self._sources) == 1:
            self._sources[0].add(ids)
            return
        numbers, rows = ids >> SOURCE_SHIFT, ids & ((1 << SOURCE_SHIFT) - 1)
        for number, source in enumerate(self._sources):
            source.add(rows[numbers == number])

    def finish(self) -> tuple[list[SourceUse], list[Fault]]:
        """What was used, and each epoch in which a row came twice; the last epoch may be a part of one."""
        for source in self._sources:
            source.check_epoch()
        uses = [SourceUse(s.name, s.count, s.samples, s.bits is not None) for s in self._sources if s.count]
        return uses, [fault for source in self._sources for fault in source.faults]


class _SourceRows:
    """The rows of one source that its present epoch has had."""

    def __init__(self, name: str, count: int, has_bits: bool) -> None:
        self.name, self.count, self.samples, self._inside = name, count, 0, 0
        self.bits = np.zeros(-(-count // 8), np.uint8) if has_bits else None
        self.faults: list[Fault] = []

    def add(self, rows: Ids) -> None:
        assert self.count or not len(rows)
        while len(rows):
            part = rows[: self.count - self._inside]
            if self.bits is not None:
                known = part if int(part.max()) < self.count else part[part < self.count]
                np.bitwise_or.at(self.bits, known >> 3, _BITS[known & 7])
            self.samples += len(part)
            self._inside += len(part)
            rows = rows[len(part) :]
            if self._inside == self.count:
                self.check_epoch()

    def check_epoch(self) -> None:
        """Closes the epoch at hand, whole or not."""
        read, self._inside = self._inside, 0
        if self.bits is None or not read:
            return
        different = sum(
            int.from_bytes(self.bits[at : at + (1 << 20)].tobytes(), "little").bit_count()
            for at in range(0, len(self.bits), 1 << 20)
        )
        self.bits[:] = 0
        if different != read:
            epoch = (self.samples - 1) // self.count + 1
            self.faults.append(Fault(f"source {self.name}", f"rows in epoch {epoch}", f"{read:,} different ones",
                                     f"{different:,}"))  # fmt: skip


def compute_digests(
    order: SampleOrder,
    ends: Sequence[int],
    advance: Callable[[int], None],
    workers: int,
    usage: Usage | None = None,
    used: int = 0,
) -> dict[int, int]:
    """For each of `ends` the digest of that many samples from the start of the run on.

    All in one pass; `usage` hears of the first `used` samples, `advance` of the samples done.
    """
    cuts, total = sorted(set(ends)), 0
    found = {0: 0}
    for start, ids, sums in _blocks(order, cuts, workers):
        for end, part in sums:
            total = (total + part) % 2**64
            found[end] = total
        if usage is not None and start < used:
            usage.add(ids[: used - start])
        advance(len(ids))
    return {end: found[end] for end in cuts}


def _blocks(order: SampleOrder, cuts: Sequence[int], workers: int) -> Iterator[tuple[int, Ids, list[tuple[int, int]]]]:
    """The samples in order, a few blocks ahead of need: start, ids, and the digest up to each cut and to the end."""
    waiting: deque[Future[tuple[int, Ids, list[tuple[int, int]]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, cuts[-1] if cuts else 0, _BLOCK):
            waiting.append(pool.submit(_block, order, start, min(start + _BLOCK, cuts[-1]), cuts))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _block(order: SampleOrder, start: int, end: int, cuts: Sequence[int]) -> tuple[int, Ids, list[tuple[int, int]]]:
    ids = order.ids(start, end - start)
    positions = np.arange(start, end, dtype=np.int64)
    edges = [start, *cuts[bisect_right(cuts, start) : bisect_left(cuts, end)], end]
    return (
        start,
        ids,
        [
            (high, digest(positions[low - start : high - start], ids[low - start : high - start]))
            for low, high in pairwise(edges)
        ],
    )
