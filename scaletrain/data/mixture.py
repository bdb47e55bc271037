"""Several sources in given proportions: which source each position of a run reads, and how far that source is.

Weights are kept in millionths. In each block of 1,000 samples a source has its weight's share to the sample, in each
1,000 blocks exactly: nothing is drawn. A source's own samples come in its own order, one after the other, so that a
change of weights leaves each source where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from scaletrain.data.order import SampleOrder
from scaletrain.data.shuffle import Ids, permute
from scaletrain.errors import ConfigError

MILLION = 1_000_000
BLOCK = 1_000  # samples in a block
_CYCLE = 1_000  # blocks until the shares are exact
_STRIDE = 297  # of the numbers coprime to 1,000 the one that spreads best: no source is ever 5 samples off its share
SOURCE_SHIFT = 40  # sample id = source << 40 | row: 2^40 rows a source

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """From sample `start` of the run on, these weights (millionths, summing to a million), by source name."""

    start: int
    weights: Mapping[str, int]

    def to_dict(self) -> dict[str, object]:
        return {"start": self.start, "weights": dict(self.weights)}


def to_millionths(weights: Mapping[str, float], where: str) -> dict[str, int]:
    """Weights scaled to a sum of a million, rounded by largest remainder; ConfigError names one that vanishes."""
    total = sum(weights.values())
    if total <= 0:
        raise ConfigError(f"{where}: the weights sum to {total:g}: give at least one source a weight above 0")
    exact = {name: weight / total * MILLION for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: parts[name] - exact[name])
    for name in by_remainder[: MILLION - sum(parts.values())]:
        parts[name] += 1
    if lost := [name for name, weight in weights.items() if weight > 0 and parts[name] == 0]:
        raise ConfigError(
            f"{where}: the weight of {lost[0]} is below a millionth of the whole: raise it or set it to 0"
        )
    return parts


class Quotas:
    """How many samples of each source a block of a segment has, and all blocks before it."""

    def __init__(self, weights: Sequence[int]) -> None:
        assert sum(weights) == MILLION
        whole, parts = np.divmod(np.array(weights, dtype=np.int64), _CYCLE)
        # Systematic sampling: the fractions stand end to end, and a comb of teeth 1 apart, moved a little from block to
        # block, hits each fraction in its share of the blocks. The number of teeth is the same wherever the comb is.
        edges = np.concatenate([[0], np.cumsum(parts)])
        comb = np.arange(_CYCLE, dtype=np.int64) * _STRIDE % _CYCLE
        extra = np.diff((edges[None, :] + comb[:, None]) // _CYCLE, axis=1)
        self._of_block = whole + extra  # (blocks of a cycle, sources)
        self._before = np.concatenate([np.zeros((1, len(weights)), np.int64), np.cumsum(self._of_block, axis=0)])

    def block(self, number: int) -> Counts:
        counts: Counts = self._of_block[number % _CYCLE]
        return counts

    def before(self, block: int) -> Counts:
        """Samples of each source in all blocks before this one."""
        cycles, rest = divmod(block, _CYCLE)
        counts: Counts = cycles * self._before[-1] + self._before[rest]
        return counts


class MixtureOrder:
    """The samples of a run over several sources; ids name the source in their upper bits.

    `orders` are the sources' own, None of one that keeps its number and is not read any more; `segments` begin at
    sample 0 and come in order of their start.
    """

    def __init__(self, orders: Mapping[str, SampleOrder | None], segments: Sequence[Segment], seed: int) -> None:
        assert segments[0].start == 0
        self._orders, self._names, self._seed = list(orders.values()), list(orders), seed
        self.present = frozenset(name for name, order in orders.items() if order is not None)
        self.segments = tuple(segments)
        self._quotas = [Quotas([segment.weights.get(name, 0) for name in self._names]) for segment in segments]
        self._slots = lru_cache(maxsize=64)(self._make_slots)
        self._cursors = [np.zeros(len(self._names), np.int64)]  # of each source where a segment begins
        for number, following in enumerate(self.segments[1:]):
            self._cursors.append(self._cursors[-1] + self._used(number, following.start - segments[number].start))

    def ids(self, start: int, count: int) -> Ids:
        """As SampleOrder."""
        sources, cursors = self.places(start, count)
        ids = np.empty(count, dtype=np.int64)
        for source in np.unique(sources).tolist():
            mine = np.flatnonzero(sources == source)
            first, order = int(cursors[mine[0]]), self._orders[source]  # a source's cursors follow each other
            assert order is not None, f"{self._names[source]} has left the mixture"
            ids[mine] = order.ids(first, len(mine)) | (source << SOURCE_SHIFT)
        return ids

    def places(self, start: int, count: int) -> tuple[Ids, Ids]:
        """Source of each position, and how many samples of that source the run has read before it."""
        sources, cursors = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            number = self._segment_at(start + done)
            begin = self.segments[number].start
            block, inside = divmod(start + done - begin, BLOCK)
            of_source, rank = self._slots(number, block)
            take = min(count - done, BLOCK - inside, self._end(number) - start - done)
            part = slice(inside, inside + take)
            sources[done : done + take] = of_source[part]
            before = self._cursors[number] + self._quotas[number].before(block)
            cursors[done : done + take] = before[of_source[part]] + rank[part]
            done += take
        return sources, cursors

    def used(self, samples: int) -> dict[str, int]:
        """Samples of each source among the first `samples` of the run."""
        number = self._segment_at(samples)
        counts = self._cursors[number] + self._used(number, samples - self.segments[number].start)
        return dict(zip(self._names, counts.tolist(), strict=True))

    def first_beyond(self, source: str, limit: int, samples: int) -> int | None:
        """The first position below `samples` whose sample would be the source's number `limit` (from 0); else None."""
        if self.used(samples)[source] <= limit:
            return None
        low, high = 0, samples  # used(low) <= limit < used(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.used(middle)[source] <= limit else (low, middle)
        return low

    def _segment_at(self, position: int) -> int:
        return int(np.searchsorted([segment.start for segment in self.segments], position, side="right")) - 1

    def _end(self, number: int) -> int:
        return self.segments[number + 1].start if number + 1 < len(self.segments) else np.iinfo(np.int64).max

    def _used(self, number: int, samples: int) -> Counts:
        """Samples of each source among the first `samples` of a segment."""
        block, inside = divmod(samples, BLOCK)
        counts = self._quotas[number].before(block)
        if inside:
            counts = counts + np.bincount(self._slots(number, block)[0][:inside], minlength=len(self._names))
        return counts

    def _make_slots(self, number: int, block: int) -> tuple[Ids, Ids]:
        """Source of each sample of a block, and how many of that source come before it in the block."""
        counts = self._quotas[number].block(block)
        stacked = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(BLOCK, dtype=np.int64)
        of_source = stacked[permute(places, BLOCK, self._seed ^ self.segments[number].start, block)]
        by_source = np.argsort(of_source, kind="stable")
        rank = np.empty(BLOCK, np.int64)
        rank[by_source] = places - np.repeat(np.cumsum(counts) - counts, counts)
        return of_source, rank


def plan_segments(
    stages: Sequence[Segment], recorded: Sequence[Segment], samples_seen: int
) -> tuple[tuple[Segment, ...], bool]:
    """The segments of a run that has read `samples_seen` samples under `recorded`, and goes on under `stages`.

    What was read keeps the weights that it was read with. Where the stages say the same as the record from here on,
    the record stays; else a new segment begins here. Returns the segments, and whether they changed.
    """
    if not recorded:
        return tuple(stages), False
    if _from(stages, samples_seen) == _from(recorded, samples_seen):
        return tuple(recorded), False
    past = [segment for segment in recorded if segment.start < samples_seen]
    now = [Segment(max(segment.start, samples_seen), segment.weights) for segment in _current(stages, samples_seen)]
    return (*past, *now), True


def _current(segments: Sequence[Segment], position: int) -> list[Segment]:
    """The segment at a position and those after it."""
    at = max(i for i, segment in enumerate(segments) if segment.start <= position)
    return list(segments[at:])


def _from(segments: Sequence[Segment], position: int) -> list[tuple[int, dict[str, int]]]:
    """What a plan says from a position on: where weights change, and to what (zero weights left out)."""
    found: list[tuple[int, dict[str, int]]] = []
    for segment in _current(segments, position):
        weights = {name: weight for name, weight in segment.weights.items() if weight}
        if not found or found[-1][1] != weights:
            found.append((max(segment.start, position), weights))
    return found
