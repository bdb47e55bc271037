"""The order of samples: a bijection each epoch, the same global batches however the work is divided."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.order import Order, Share
from scaletrain.data.shuffle import permute


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
    samples=st.integers(1, 300),
    ranks=st.sampled_from([1, 2, 3, 4, 7, 8]),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    start=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_same_global_batch_for_any_rank_count_and_micro_batch(
    samples: int, ranks: int, micro: int, accumulation: int, start: int
) -> None:
    order = Order(samples, seed=3)
    count = ranks * micro * accumulation
    whole = order.ids(start, count)
    parts = [np.concatenate(Share(r, ranks, micro, accumulation).of(whole)) for r in range(ranks)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(whole.tolist())


@given(st.integers(1, 200), st.integers(0, 5), st.booleans())
@settings(max_examples=100, deadline=None)
def test_each_epoch_reads_each_sample_once(samples: int, epoch: int, shuffle: bool) -> None:
    ids = Order(samples, seed=11, shuffle=shuffle).ids(epoch * samples, samples)
    assert sorted(ids.tolist()) == list(range(samples))


@given(st.integers(1, 97), st.integers(0, 400), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_a_restart_anywhere_goes_on_with_the_same_samples(samples: int, start: int, first: int, second: int) -> None:
    order = Order(samples, seed=5)
    joined = np.concatenate([order.ids(start, first), order.ids(start + first, second)])
    assert (order.ids(start, first + second) == joined).all()


def test_without_shuffle_samples_come_as_stored() -> None:
    assert Order(4, seed=1, shuffle=False).ids(2, 6).tolist() == [2, 3, 0, 1, 2, 3]
