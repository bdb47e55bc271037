"""The order of samples: a bijection each epoch, the same global batches however the work is divided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.order import Order, Share, digest
from scaletrain.data.shuffle import permute

shards = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any).map(lambda rows: np.array(rows, np.int64))
windows = st.one_of(st.none(), st.integers(1, 14))


@given(st.integers(1, 5000), st.integers(0, 2**63), st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_permutation_is_a_bijection_for_any_size(n: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(n), n, seed, epoch)
    assert sorted(image.tolist()) == list(range(n))


@given(st.integers(1, 10**12), st.integers(0, 2**32), st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_permutation_of_a_huge_range_stays_inside_it(n: int, seed: int, epoch: int) -> None:
    ids = np.unique(np.linspace(0, n - 1, 64).astype(np.int64))
    image = permute(ids, n, seed, epoch)
    assert image.min() >= 0
    assert image.max() < n
    assert len(set(image.tolist())) == len(ids)


def test_permutation_looks_random() -> None:
    n = 100_000
    image = permute(np.arange(n), n, 7, 0)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.02
    # About 1 of n neighbours stays next to each other; and each tenth of the images is spread over all tenths.
    assert (np.abs(np.diff(image)) == 1).sum() < 20
    counts = np.histogram2d(np.arange(n), image, bins=10)[0]
    assert counts.min() > 850
    assert counts.max() < 1150


def test_epochs_and_seeds_give_different_orders() -> None:
    one, two = permute(np.arange(1000), 1000, 1, 0), permute(np.arange(1000), 1000, 1, 1)
    three = permute(np.arange(1000), 1000, 2, 0)
    assert (one == two).mean() < 0.02
    assert (one == three).mean() < 0.02


@given(
    rows=shards,
    window=windows,
    ranks=st.sampled_from([1, 2, 3, 4, 7, 8]),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    start=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_same_global_batch_for_any_rank_count_and_micro_batch(
    rows: np.ndarray, window: int | None, ranks: int, micro: int, accumulation: int, start: int
) -> None:
    order = Order(rows, seed=3, window=window)
    count = ranks * micro * accumulation
    whole = order.ids(start, count)
    parts = [np.concatenate(Share(r, ranks, micro, accumulation).of(whole)) for r in range(ranks)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())


@given(shards, windows, st.integers(0, 5), st.booleans())
@settings(max_examples=150, deadline=None)
def test_each_epoch_reads_each_sample_once(rows: np.ndarray, window: int | None, epoch: int, shuffle: bool) -> None:
    samples = int(rows.sum())
    ids = Order(rows, seed=11, shuffle=shuffle, window=window).ids(epoch * samples, samples)
    assert sorted(ids.tolist()) == list(range(samples))


@given(shards, windows, st.integers(0, 400), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_a_restart_anywhere_goes_on_with_the_same_samples(
    rows: np.ndarray, window: int | None, start: int, first: int, second: int
) -> None:
    joined = [Order(rows, 5, window=window).ids(start, first), Order(rows, 5, window=window).ids(start + first, second)]
    assert (Order(rows, seed=5, window=window).ids(start, first + second) == np.concatenate(joined)).all()


@given(rows=shards, window=st.integers(1, 14), epoch=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_a_window_holds_the_samples_of_so_many_shards(rows: np.ndarray, window: int, epoch: int) -> None:
    samples = int(rows.sum())
    ids = Order(rows, seed=2, window=window).ids(epoch * samples, samples)
    shard = np.searchsorted(np.cumsum(rows), ids, side="right")
    for s in np.flatnonzero(rows).tolist():
        places = np.flatnonzero(shard == s)
        assert len(set(shard[places[0] : places[-1] + 1].tolist())) <= window


def test_windows_mix_shards_differently_each_epoch() -> None:
    rows = np.full(8, 100)
    order = Order(rows, seed=1, window=2)
    first = [set((order.ids(800 * epoch, 200) // 100).tolist()) for epoch in range(4)]
    assert all(len(pair) == 2 for pair in first)
    assert len({tuple(sorted(pair)) for pair in first}) > 1


def test_without_shuffle_samples_come_as_stored() -> None:
    assert Order(np.array([3, 1]), seed=1, shuffle=False).ids(2, 6).tolist() == [2, 3, 0, 1, 2, 3]


@given(st.integers(0, 10**12), st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=40), st.data())
@settings(max_examples=100, deadline=None)
def test_digest_adds_up_over_parts_and_tells_any_change(start: int, samples: list[int], data: st.DataObject) -> None:
    ids = np.array(samples)
    positions = start + np.arange(len(ids))
    whole = digest(positions, ids)
    mine = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    assert (digest(positions[mine], ids[mine]) + digest(positions[~mine], ids[~mine])) % 2**64 == whole
    at = data.draw(st.integers(0, len(ids) - 1))
    without = np.arange(len(ids)) != at
    assert digest(positions[without], ids[without]) != whole  # left out
    other = data.draw(st.integers(0, len(ids) - 1).filter(lambda i: ids[i] != ids[at] or i == at))
    if other != at:
        swapped = ids.copy()
        swapped[[at, other]] = ids[[other, at]]
        assert digest(positions, swapped) != whole
        repeated = ids.copy()
        repeated[at] = ids[other]
        assert digest(positions, repeated) != whole


@pytest.mark.parametrize("window", [None, 3])
def test_the_order_of_a_thousand_million_samples_starts_anywhere_at_once(window: int | None) -> None:
    order = Order(np.full(8_000, 131_072), seed=1, window=window)
    ids = order.ids(order.samples - 8, 16)  # over the end of the first epoch
    assert len(set(ids.tolist())) == 16
    assert ids.max() < order.samples
