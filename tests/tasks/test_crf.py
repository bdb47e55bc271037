"""The CRF against the sum over all paths and against pytorch-crf; masks, precisions, forbidden steps."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaletrain.data.rows import IGNORED
from scaletrain.tasks.crf import CRF, Forbidden, forbidden_in_bio


def _case(seed: int, lengths: list[int], tags: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    crf = CRF(tags).to(dtype)
    crf.reset(generator)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.mul_(20)  # weights that matter beside the emissions
    width = max(lengths)
    emissions = torch.randn(len(lengths), width, tags, generator=generator, dtype=dtype)
    wanted = torch.randint(0, tags, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return crf, emissions, wanted, mask


def _path_scores(crf: CRF, emissions_TC: Tensor) -> dict[tuple[int, ...], float]:
    """The score of every path, in Python's floats."""
    start, end, steps = (p.tolist() for p in (crf.start_C, crf.end_C, crf.transitions_CC))
    rows = emissions_TC.tolist()
    return {
        path: start[path[0]]
        + end[path[-1]]
        + sum(row[tag] for row, tag in zip(rows, path, strict=True))
        + sum(steps[a][b] for a, b in itertools.pairwise(path))
        for path in itertools.product(range(len(start)), repeat=len(rows))
    }


def _log_sum(scores: dict[tuple[int, ...], float]) -> float:
    return math.log(math.fsum(math.exp(score) for score in scores.values()))


SHAPES = {
    "seed": st.integers(0, 10**6),
    "lengths": st.lists(st.integers(1, 5), min_size=1, max_size=4),
    "tags": st.integers(1, 4),
}


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_loss_and_probability_are_those_over_all_paths(seed: int, lengths: list[int], tags: int) -> None:
    crf, emissions, wanted, mask = _case(seed, lengths, tags)
    losses = crf.negative_log_likelihood(emissions, wanted, mask)
    probabilities = crf.probability(emissions, wanted, mask)
    for b, length in enumerate(lengths):
        scores = _path_scores(crf, emissions[b, :length])
        expected = _log_sum(scores) - scores[tuple(wanted[b, :length].tolist())]
        assert losses[b].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert probabilities[b].item() == pytest.approx(math.exp(-expected), rel=1e-3, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_the_decoded_path_is_the_likeliest_of_all(seed: int, lengths: list[int], tags: int) -> None:
    crf, emissions, _, mask = _case(seed, lengths, tags)
    for b, path in enumerate(crf.decode(emissions, mask)):
        scores = _path_scores(crf, emissions[b, : lengths[b]])
        assert scores[tuple(path)] == pytest.approx(max(scores.values()), abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_marginals_are_sums_over_all_paths_and_sum_to_one(seed: int, lengths: list[int], tags: int) -> None:
    crf, emissions, _, mask = _case(seed, lengths, tags)
    found = crf.marginals(emissions, mask)
    torch.testing.assert_close(found.sum(-1), mask.float(), rtol=1e-5, atol=1e-5)
    for b, length in enumerate(lengths):
        scores = _path_scores(crf, emissions[b, :length])
        total = _log_sum(scores)
        for t, tag in itertools.product(range(length), range(tags)):
            expected = math.fsum(math.exp(score - total) for path, score in scores.items() if path[t] == tag)
            assert found[b, t, tag].item() == pytest.approx(expected, abs=1e-4)


def _sticky_rules(tags: int, seed: int) -> Forbidden:
    """Random rules that leave at least the path that stays at tag 0."""
    generator = torch.Generator().manual_seed(seed)
    start, steps = (torch.rand(shape, generator=generator) < 0.5 for shape in ((tags,), (tags, tags)))
    start[0] = steps[0, 0] = False
    return Forbidden(start, steps)


@settings(deadline=None, max_examples=40)
@given(**SHAPES)
def test_a_decoded_path_is_the_likeliest_of_the_allowed_ones(seed: int, lengths: list[int], tags: int) -> None:
    crf, emissions, _, mask = _case(seed, lengths, tags)
    rules = _sticky_rules(tags, seed)
    for b, path in enumerate(crf.decode(emissions, mask, rules)):
        allowed = {
            other: score
            for other, score in _path_scores(crf, emissions[b, : lengths[b]]).items()
            if not rules.first[other[0]] and not any(rules.following[step] for step in itertools.pairwise(other))
        }
        assert allowed[tuple(path)] == pytest.approx(max(allowed.values()), abs=1e-4)


def test_bio_forbids_an_inside_that_nothing_began() -> None:
    tags = ["O", "B-a", "I-a", "B-b", "I-b"]
    rules = forbidden_in_bio(tags)
    allowed = {(a, b) for i, a in enumerate(tags) for j, b in enumerate(tags) if not rules.following[i, j]}
    assert {a for a, b in allowed if b == "I-a"} == {"B-a", "I-a"}
    assert {a for a, b in allowed if b == "I-b"} == {"B-b", "I-b"}
    assert all((a, b) in allowed for a in tags for b in ("O", "B-a", "B-b"))
    assert rules.first.tolist() == [False, False, True, False, True]


def test_bio_rules_decode_no_orphan() -> None:
    tags = ["O", "B-a", "I-a"]
    crf = CRF(len(tags))
    crf.reset(torch.Generator().manual_seed(0))
    emissions = torch.tensor([[[0.0, -1.0, 5.0], [2.0, 0.0, 0.0], [0.0, 0.5, 1.0]]])  # I-a, O, I-a by itself
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert crf.decode(emissions, mask) == [[2, 0, 2]]
    assert crf.decode(emissions, mask, forbidden_in_bio(tags)) == [[0, 0, 1]]


@pytest.mark.parametrize("lengths", [[6, 6], [6, 1, 3], [1]])
def test_loss_gradients_and_paths_equal_pytorch_crf(lengths: list[int]) -> None:
    torchcrf = pytest.importorskip("torchcrf")
    crf, emissions, wanted, mask = _case(7, lengths, 5)
    theirs = torchcrf.CRF(5, batch_first=True)
    with torch.no_grad():
        theirs.start_transitions.copy_(crf.start_C)
        theirs.end_transitions.copy_(crf.end_C)
        theirs.transitions.copy_(crf.transitions_CC)
    ours_in, theirs_in = emissions.clone().requires_grad_(), emissions.clone().requires_grad_()
    loss = crf.negative_log_likelihood(ours_in, wanted, mask)
    expected = -theirs(theirs_in, wanted, mask=mask, reduction="none")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-4, atol=1e-5)
    pairs = [
        (crf.transitions_CC, theirs.transitions),
        (crf.start_C, theirs.start_transitions),
        (crf.end_C, theirs.end_transitions),
    ]
    for ours, other in pairs:
        wanted_grad = torch.zeros_like(other) if other.grad is None else other.grad  # None: no word has a next one
        torch.testing.assert_close(ours.grad, wanted_grad, rtol=1e-4, atol=1e-5)
    assert crf.decode(emissions, mask) == theirs.decode(emissions, mask=mask)


def test_gradcheck_in_float64() -> None:
    crf, emissions, wanted, mask = _case(3, [4, 1, 2], 3, torch.float64)
    emissions.requires_grad_()

    def loss(emissions: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in crf.named_parameters()]
        inputs = (emissions, mask, wanted)
        return torch.func.functional_call(crf, dict(zip(names, weights, strict=True)), inputs)

    assert torch.autograd.gradcheck(loss, (emissions, *crf.parameters()))


def test_what_stands_behind_the_words_is_not_read() -> None:
    crf, emissions, wanted, mask = _case(5, [4, 2, 0], 3)
    spoilt, tags = emissions.clone(), wanted.clone()
    spoilt[~mask], tags[~mask] = math.nan, IGNORED
    spoilt.requires_grad_()
    loss = crf.negative_log_likelihood(spoilt, tags, mask)
    assert torch.equal(loss, crf.negative_log_likelihood(emissions, wanted, mask))
    loss.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in crf.parameters() if p.grad is not None)
    assert torch.isfinite(spoilt.grad).all()
    assert (spoilt.grad[~mask] == 0).all()
    assert crf.decode(spoilt, mask) == crf.decode(emissions, mask)
    assert torch.equal(crf.marginals(spoilt, mask), crf.marginals(emissions, mask))


@pytest.mark.parametrize("width", [0, 3])
def test_a_sentence_without_words_costs_nothing_and_has_no_tags(width: int) -> None:
    crf = CRF(3)
    crf.reset(torch.Generator().manual_seed(0))
    emissions = torch.randn(2, width, 3, requires_grad=True)
    mask = torch.zeros(2, width, dtype=torch.bool)
    loss = crf.negative_log_likelihood(emissions, mask.long(), mask)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert all(p.grad is not None and not p.grad.any() for p in crf.parameters())  # ranks without words take part
    assert crf.decode(emissions, mask) == [[], []]
    assert crf.marginals(emissions, mask).shape == (2, width, 3)


def test_a_sentence_costs_the_same_in_any_batch() -> None:
    crf, emissions, wanted, mask = _case(11, [5, 3, 1, 2], 4)
    together = crf.negative_log_likelihood(emissions, wanted, mask)
    for b, length in enumerate([5, 3, 1, 2]):
        alone = crf.negative_log_likelihood(
            emissions[b : b + 1, :length], wanted[b : b + 1, :length], mask[b : b + 1, :length]
        )
        torch.testing.assert_close(alone[0], together[b], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_and_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    crf, emissions, wanted, mask = _case(2, [60, 40], 7)
    crf, emissions = crf.to(dtype), emissions.to(dtype).requires_grad_()
    loss = crf.negative_log_likelihood(emissions, wanted, mask)
    exact = CRF(7).double()
    exact.load_state_dict(crf.state_dict())
    truth = exact.negative_log_likelihood(emissions.double(), wanted, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-4)
    loss.sum().backward()
    assert emissions.grad is not None
    assert emissions.grad.dtype == dtype
    assert crf.decode(emissions, mask) == exact.decode(emissions.double(), mask)


def test_long_sentences_stay_finite() -> None:
    crf, emissions, wanted, mask = _case(4, [2000], 3)
    loss = crf.negative_log_likelihood(emissions * 100, wanted, mask)
    assert torch.isfinite(loss).all()
    assert loss.item() > 0


def test_the_module_itself_gives_loss_or_path() -> None:
    crf, emissions, wanted, mask = _case(6, [3, 2], 3)
    assert torch.equal(crf(emissions, mask, wanted), crf.negative_log_likelihood(emissions, wanted, mask))
    rules = _sticky_rules(3, 0)
    assert crf(emissions, mask) == crf.decode(emissions, mask)
    assert crf(emissions, mask, forbidden=rules) == crf.decode(emissions, mask, rules)


def test_initial_values_come_from_the_generator_alone() -> None:
    first, second = CRF(9), CRF(9)
    first.reset(torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    second.to(torch.bfloat16).reset(torch.Generator().manual_seed(3))
    for ours, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours.bfloat16(), same)
        assert ours.abs().max() <= 0.1
        assert ours.std() > 0.03


@pytest.mark.gpu
def test_a_gpu_gives_the_same_loss_and_paths() -> None:
    crf, emissions, wanted, mask = _case(8, [9, 4, 0], 5)
    rules = _sticky_rules(5, 1)
    loss, paths = crf(emissions, mask, wanted), crf(emissions, mask, forbidden=rules)
    crf.cuda()
    inputs = emissions.cuda(), mask.cuda()
    torch.testing.assert_close(crf(*inputs, wanted.cuda()).cpu(), loss, rtol=1e-5, atol=1e-5)
    assert crf(*inputs, forbidden=rules) == paths
