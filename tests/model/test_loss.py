"""The fused head and loss: equal to plain cross-entropy in value and gradient, for every type and chunk size."""

import pytest
import torch
import torch.nn.functional as F

from scaletrain.model import chunks
from scaletrain.model.loss import IGNORE_INDEX, OutputHead, linear_cross_entropy


def _inputs(dtype: torch.dtype = torch.float32, tokens: int = 37, width: int = 16, vocab: int = 50):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab, (tokens,), generator=generator)
    labels[[0, 5, tokens - 1]] = IGNORE_INDEX
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [1, 8, 36, 37, 1000])
def test_loss_equals_cross_entropy_on_full_logits(chunk: int) -> None:
    hidden, weight, labels = _inputs()
    plain = F.cross_entropy(hidden @ weight.t(), labels, reduction="sum", ignore_index=IGNORE_INDEX)
    expected = torch.autograd.grad(plain * 0.3, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, labels, chunk)
    found = torch.autograd.grad(loss * 0.3, (hidden, weight))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_gradcheck_in_float64() -> None:
    hidden, weight, labels = _inputs(torch.float64, tokens=7, width=5, vocab=11)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, 3), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float64_as_plain_torch(dtype: torch.dtype) -> None:
    hidden, weight, labels = _inputs(dtype, tokens=256)
    exact_inputs = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    exact = F.cross_entropy(exact_inputs[0] @ exact_inputs[1].t(), labels, reduction="sum")
    plain = F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")
    loss = linear_cross_entropy(hidden, weight, labels, 100)
    assert abs(loss - exact) <= 1.5 * abs(plain - exact) + 1e-4 * exact
    truth = torch.autograd.grad(exact, exact_inputs)
    ours = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(plain, (hidden, weight))
    for ours_, theirs_, truth_ in zip(ours, theirs, truth, strict=True):
        assert ours_.dtype == dtype
        assert (ours_ - truth_).norm() <= 1.3 * (theirs_ - truth_).norm()


def test_no_gradients_are_made_when_none_are_wanted() -> None:
    hidden, weight, labels = _inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, 8)
    assert not loss.requires_grad
    frozen = linear_cross_entropy(hidden, weight.detach(), labels, 8)  # as under LoRA: only the hidden states learn
    assert frozen.item() == loss.item()
    (gradient,) = torch.autograd.grad(frozen, hidden)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, 8), hidden)[0]
    assert torch.equal(gradient, expected)


def test_huge_logits_give_a_finite_loss() -> None:
    hidden = torch.tensor([[300.0], [300.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(600.0)  # 0 for the sure and right token, 600 for the sure and wrong one
    loss.backward()
    assert torch.isfinite(hidden.grad).all()


def test_all_labels_ignored_give_loss_and_gradient_zero() -> None:
    hidden, weight, labels = _inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_head_under_autocast_computes_in_the_autocast_type() -> None:
    hidden, weight, labels = _inputs()
    head = OutputHead(16, 50, torch.nn.Parameter(weight.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(hidden[None], labels[None])
    loss.backward()
    expected = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels)
    assert loss.item() == expected.item()
    assert head.weight.grad.dtype == torch.float32


def test_gradients_of_some_words_at_a_time_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for words in (50, 16):
        monkeypatch.setitem(chunks.GRADIENT_WORDS, "cpu", words)
        hidden, weight, labels = _inputs()
        narrow = weight.detach().bfloat16().requires_grad_()
        linear_cross_entropy(hidden.detach().bfloat16(), narrow, labels, 8).backward()
        assert narrow.grad is not None
        found.append(narrow.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(("tokens", "most"), [(4096, 1984), (1984, 1984), (1985, 1984), (1, 1984), (0, 1984)])
def test_chunks_are_of_about_one_size_and_none_is_too_large(tokens: int, most: int) -> None:
    chunk = chunks.tokens_of_chunk(tokens, 8192, 2, "cpu")
    assert chunk <= most
    assert chunk == most or -(-tokens // chunk) * chunk - tokens < -(-tokens // most)
