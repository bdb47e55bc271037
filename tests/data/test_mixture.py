"""Mixtures: exact shares in every block, each source in its own order, changes of weights that lose nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaletrain.data.mixture import (
    BLOCK,
    MILLION,
    SOURCE_SHIFT,
    MixtureOrder,
    Quotas,
    Segment,
    plan_segments,
    to_millionths,
)
from scaletrain.data.order import Order, Share
from scaletrain.errors import ConfigError

weights = st.lists(st.integers(0, 1000), min_size=1, max_size=6).filter(any)


def parts(values: list[int]) -> dict[str, int]:
    return to_millionths({f"s{i}": float(v) for i, v in enumerate(values)}, "here")


def mixture(segments: list[tuple[int, list[int]]], seed: int = 7) -> MixtureOrder:
    count = max(len(values) for _, values in segments)
    orders = {f"s{i}": Order(np.array([17 + 5 * i, 30]), seed=i) for i in range(count)}
    return MixtureOrder(orders, [Segment(start, parts(values)) for start, values in segments], seed)


@given(weights)
@settings(max_examples=200, deadline=None)
def test_millionths_sum_to_a_million_and_are_within_one_of_the_weight(values: list[int]) -> None:
    found = parts(values)
    assert sum(found.values()) == MILLION
    assert all(abs(found[f"s{i}"] - value / sum(values) * MILLION) < 1 for i, value in enumerate(values))


def test_a_weight_that_would_vanish_is_refused() -> None:
    with pytest.raises(ConfigError, match="data: the weight of b is below a millionth of the whole: raise it or set"):
        to_millionths({"a": 1.0, "b": 1e-7}, "data")
    with pytest.raises(ConfigError, match="data: the weights sum to 0: give at least one source a weight above 0"):
        to_millionths({"a": 0.0}, "data")


@given(weights, st.integers(0, 5000))
@settings(max_examples=200, deadline=None)
def test_each_block_has_each_weights_share_to_the_sample(values: list[int], block: int) -> None:
    shares = np.array(list(parts(values).values()))
    quotas = Quotas(shares.tolist())
    counts = quotas.block(block)
    assert counts.sum() == BLOCK
    assert (np.abs(counts - shares * BLOCK / MILLION) < 1).all()
    assert (quotas.before(block + 1) - quotas.before(block) == counts).all()
    assert (quotas.before(1000) == shares).all()  # exact after a million samples
    assert (np.abs(quotas.before(block) - block * shares * BLOCK / MILLION) < 5).all()  # and never far off


@given(weights, st.integers(0, 4000), st.integers(1, 2500))
@settings(max_examples=60, deadline=None)
def test_sources_come_in_their_share_and_each_in_its_own_order(values: list[int], start: int, count: int) -> None:
    order = mixture([(0, values)])
    sources, cursors = order.places(start, count)
    ids = order.ids(start, count)
    assert (ids >> SOURCE_SHIFT == sources).all()
    before, after = order.used(start), order.used(start + count)
    for i in range(len(values)):
        mine = sources == i
        assert cursors[mine].tolist() == list(range(before[f"s{i}"], after[f"s{i}"]))
        own = Order(np.array([17 + 5 * i, 30]), seed=i).ids(before[f"s{i}"], int(mine.sum())) if mine.any() else []
        assert (ids[mine] & ((1 << SOURCE_SHIFT) - 1)).tolist() == list(own)


@given(weights, st.integers(0, 3000), st.integers(1, 2000), st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_a_restart_anywhere_goes_on_with_the_same_samples(values: list[int], start: int, one: int, two: int) -> None:
    segments = [(0, values), (1234, values[::-1])]
    joined = [mixture(segments).ids(start, one), mixture(segments).ids(start + one, two)]
    assert (mixture(segments).ids(start, one + two) == np.concatenate(joined)).all()


@given(weights, st.sampled_from([1, 2, 3, 4, 7, 8]), st.integers(1, 3), st.integers(0, 5000))
@settings(max_examples=40, deadline=None)
def test_same_global_batch_for_any_rank_count(values: list[int], ranks: int, micro: int, start: int) -> None:
    whole = mixture([(0, values)]).ids(start, ranks * micro)
    mine = [np.concatenate(Share(rank, ranks, micro, 1).of(whole)) for rank in range(ranks)]
    assert sorted(np.concatenate(mine).tolist()) == sorted(whole.tolist())


@given(st.lists(st.tuples(st.integers(1, 2000), weights), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_change_of_weights_anywhere_moves_no_cursor_back_and_skips_nothing(
    changes: list[tuple[int, list[int]]],
) -> None:
    starts = np.cumsum([length for length, _ in changes]).tolist()
    order = mixture([(0, [1, 1]), *((start, values) for start, (_, values) in zip(starts, changes, strict=True))])
    sources, cursors = order.places(0, starts[-1] + 1500)
    for source in np.unique(sources):
        assert cursors[sources == source].tolist() == list(range(int((sources == source).sum())))


def test_the_first_sample_beyond_a_limit_is_found() -> None:
    order = mixture([(0, [3, 1]), (2500, [1, 0])])
    sources, cursors = order.places(0, 5000)
    wanted = int(np.flatnonzero((sources == 1) & (cursors == 100))[0])
    assert order.first_beyond("s1", 100, 5000) == wanted
    assert order.first_beyond("s1", 700, 5000) is None


A, B = {"a": MILLION}, {"a": MILLION // 2, "b": MILLION // 2}


def test_a_resume_with_the_same_stages_keeps_the_record() -> None:
    recorded = [Segment(0, A), Segment(100, B)]
    assert plan_segments([Segment(0, A), Segment(100, B)], recorded, 50) == (tuple(recorded), False)
    assert plan_segments([Segment(0, {**A, "b": 0}), Segment(100, B)], recorded, 50) == (tuple(recorded), False)
    assert plan_segments([Segment(0, B)], recorded, 100) == (
        tuple(recorded),
        False,
    )  # the past may be written otherwise
    assert plan_segments([Segment(0, A)], [], 0) == ((Segment(0, A),), False)


def test_a_resume_with_other_weights_changes_them_from_here_on_only() -> None:
    recorded = [Segment(0, A), Segment(100, B)]
    assert plan_segments([Segment(0, B)], recorded, 50) == ((Segment(0, A), Segment(50, B)), True)
    assert plan_segments([Segment(0, A), Segment(300, B)], recorded, 150) == (
        (Segment(0, A), Segment(100, B), Segment(150, A), Segment(300, B)),
        True,
    )
    assert plan_segments([Segment(0, A)], [Segment(0, B)], 0) == ((Segment(0, A),), True)
