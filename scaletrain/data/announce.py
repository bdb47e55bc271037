"""Remote sources are told ahead of need which of their samples come next, so that they can bring the shards."""

from collections.abc import Iterator, Mapping
from itertools import count

from scaletrain.data.loader import Step
from scaletrain.data.mixture import MixtureOrder
from scaletrain.data.order import Order, SampleOrder
from scaletrain.data.packed_rows import PackedRows
from scaletrain.data.rows import CutRows

_AT_ONCE = 4096  # samples after which they are told again
_MOST = 1 << 18  # samples ahead of need, at most

Remote = Mapping[str, tuple[CutRows | PackedRows, Order]]


def announced(
    steps: Iterator[Step], order: SampleOrder, remote: Remote, window: int, batch: int, start: int
) -> Iterator[Step]:
    """`steps` of `batch` samples each, from sample `start` on; `window`: shards of a source that are told of, about."""
    horizon = min(_MOST, window * max(int(rows.shard_rows.max()) for rows, _ in remote.values()))
    every = max(1, _AT_ONCE // batch)
    for number in count():
        if number % every == 0:
            announce(order, remote, start + number * batch, horizon)
        yield next(steps)


def announce(order: SampleOrder, remote: Remote, start: int, horizon: int) -> None:
    """Tells each source of its samples among the `horizon` from `start` on: two epochs of them name every shard."""
    for name, (rows, own) in remote.items():
        first, last = start, start + horizon
        if isinstance(order, MixtureOrder):
            first, last = order.used(first)[name], order.used(last)[name]
        if ahead := min(last - first, 2 * own.samples):
            rows.prefetch(own.ids(first, ahead))
