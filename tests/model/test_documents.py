"""Documents in a row: each is computed as if it stood alone, by every kernel, and none sees another."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scaletrain.model import documents as documents_module
from scaletrain.model import gpt
from scaletrain.model.attention import Layout, causal_attention
from scaletrain.model.blocked_attention import CHUNK_TOKENS, QUERY_BLOCK, blocked_attention
from scaletrain.model.checkpointing import KEPT, apply_activation_checkpointing
from scaletrain.model.documents import (
    Documents,
    attend_varlen,
    document_bounds,
    document_mask,
    document_starts,
    prepare_documents,
)
from scaletrain.model.gpt import GPT, run_block
from tests.model.tiny import GPT2, KINDS, LLAMA, gradients, largest_difference, make_batch, make_model, number_documents

ROWS = ([17, 1, 22], [40], [1, 1, 5, 33])


def _alone(model: GPT, ids: Tensor, labels: Tensor, documents: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients, summed over a forward and backward pass for each document."""
    model.zero_grad()
    loss = 0.0
    for row in range(len(ids)):
        for number in documents[row].unique():
            inside = documents[row] == number
            part = model(ids[row, inside][None], labels[row, inside][None])
            part.backward()
            loss += part.item()
    return loss, gradients(model)


def _together(model: GPT, ids: Tensor, labels: Tensor, documents: Tensor) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(ids, labels, documents)
    loss.backward()
    return loss.item(), gradients(model)


@pytest.mark.parametrize("mode", ["none", "selective", "full", "every_2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_batch_equals_the_sum_of_its_documents(kind: str, mode: str) -> None:
    ids, labels = make_batch(KINDS[kind])
    documents = number_documents(*ROWS)
    expected, exact = _alone(make_model(KINDS[kind]), ids, labels, documents)
    model = make_model(KINDS[kind])
    apply_activation_checkpointing(model, mode)
    loss, found = _together(model, ids, labels, documents)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert found.keys() == exact.keys()
    assert largest_difference(found, exact) < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sets(st.integers(1, 23)), min_size=1, max_size=3), st.sampled_from(["gpt2", "llama"]))
def test_any_cuts_of_the_rows_equal_the_sum_of_the_documents(cuts: list[set[int]], kind: str) -> None:
    documents = number_documents(*([b - a for a, b in pairwise([0, *sorted(row), 24])] for row in cuts))
    ids, labels = make_batch(KINDS[kind], samples=len(cuts), tokens=24)
    expected, exact = _alone(make_model(KINDS[kind]), ids, labels, documents)
    loss, found = _together(make_model(KINDS[kind]), ids, labels, documents)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert largest_difference(found, exact) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_gradients_of_documents_are_near_the_float32_ones(kind: str) -> None:
    ids, labels = make_batch(KINDS[kind])
    documents = number_documents(*ROWS)
    rounded = make_model(KINDS[kind]).bfloat16()  # the same rounded weights in both
    expected, exact = _together(make_model(KINDS[kind]).bfloat16().float(), ids, labels, documents)
    loss, found = _together(rounded, ids, labels, documents)
    assert loss == pytest.approx(expected, rel=0.01)
    for name, gradient in exact.items():
        assert (found[name] - gradient).norm() < 0.06 * gradient.norm(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_changes_no_logits_of_another_document(kind: str, dtype: torch.dtype) -> None:
    model = make_model(KINDS[kind]).to(dtype)
    ids, _ = make_batch(KINDS[kind])
    documents = number_documents(*ROWS)
    before = model(ids, None, documents)
    for row in range(3):
        for number in documents[row].unique():
            inside = torch.zeros_like(ids, dtype=torch.bool)
            inside[row] = documents[row] == number
            changed = torch.where(inside, (ids + 1) % KINDS[kind].vocab_size, ids)
            after = model(changed, None, documents)
            assert torch.equal(before[~inside], after[~inside])
            assert (before[inside] != after[inside]).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_document_equal_rows_without_documents(kind: str, dtype: torch.dtype) -> None:
    ids, labels = make_batch(KINDS[kind])
    model = make_model(KINDS[kind]).to(dtype)
    expected = model(ids, labels)
    expected.backward()
    exact = gradients(model)
    loss, found = _together(make_model(KINDS[kind]).to(dtype), ids, labels, torch.full_like(ids, 3))
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in exact.items():
        if dtype == torch.bfloat16 and name != "positions.weight":  # those of a batch are summed in another order
            assert torch.equal(found[name], gradient), name
        assert largest_difference({name: found[name]}, exact) < (1e-5 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_changes_neither_loss_nor_gradients(dtype: torch.dtype) -> None:
    """A padded end is a document of its own, or part of the last one; a row may be nothing else."""
    ids, labels = make_batch(LLAMA)
    documents = number_documents([17, 23], [40], [40])
    labels[1, 30:] = labels[2] = -100
    padded_document = documents.clone()
    padded_document[1, 30:] = 1
    runs = []
    for pads, numbers in ((1, documents), (1, padded_document), (99, documents), (99, padded_document)):
        filled = torch.where(labels == -100, pads, ids)
        filled[0, :5] = ids[0, :5]  # no padding, although it has no labels
        runs.append(_together(make_model(LLAMA).to(dtype), filled, labels, numbers))
    tolerance = 1e-6 if dtype == torch.float32 else 0.01  # its kernels take documents of another shape
    for loss, found in runs[1:]:
        assert loss == pytest.approx(runs[0][0], rel=tolerance)
        assert largest_difference(found, runs[0][1]) < tolerance


def test_autocast_computes_documents_like_float32() -> None:
    ids, labels = make_batch(LLAMA)
    documents = number_documents(*ROWS)
    expected, exact = _together(make_model(LLAMA), ids, labels, documents)
    model = make_model(LLAMA)
    layouts: list[Layout] = []

    def watch(index: int, block: nn.Module, x: Tensor, layout: Layout) -> Tensor:
        layouts.append(layout)
        return run_block(index, block, x, layout)

    model.run_block = watch
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels, documents)
    loss.backward()
    assert layouts[0] is layouts[1]
    assert layouts[0].documents == Documents(layouts[0].documents.starts)  # bfloat16's kernel wants no mask
    assert loss.item() == pytest.approx(expected, rel=0.01)
    for name, gradient in exact.items():
        assert (gradients(model)[name] - gradient).norm() < 0.1 * gradient.norm(), name


def test_documents_of_another_shape_are_refused() -> None:
    ids, labels = make_batch(GPT2)
    with pytest.raises(AssertionError, match=r"documents torch.Size\(\[3, 39\]\) of 3 rows of 40"):
        make_model(GPT2)(ids, labels, number_documents([39], [39], [39]))


def _plain(qkv: Tensor, heads: int, kv_heads: int, starts: Tensor) -> Tensor:
    """The formula, with the whole matrix of scores."""
    q, k, v = torch.split(qkv.transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
    k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * qkv.shape[-1] ** -0.5
    place = torch.arange(qkv.shape[1])
    hidden = (place > place[:, None]) | (starts[:, None, :, None] > place)
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)


LENGTHS = st.lists(st.one_of(st.integers(1, 9), st.integers(1, QUERY_BLOCK + 40)), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=3), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.integers(0, 99))
def test_blocked_attention_and_its_gradient_equal_the_formula(
    rows: list[list[int]], shape: tuple[int, int], seed: int
) -> None:
    heads, kv_heads = shape
    tokens = max(sum(row) for row in rows)
    starts = document_starts(number_documents(*([*row, tokens - sum(row)] for row in rows)))
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(len(rows), tokens, heads + 2 * kv_heads, 8, dtype=torch.float64, generator=generator)
    ours, theirs = (qkv.clone().requires_grad_() for _ in range(2))
    y, expected = blocked_attention(ours, heads, kv_heads, starts), _plain(theirs, heads, kv_heads, starts)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-12)
    weights = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    # Key and value gradients are summed in float32, whatever the type.
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_blocked_attention_serves_documents_longer_than_a_chunk_and_more_than_a_chunk() -> None:
    starts = document_starts(number_documents([CHUNK_TOKENS + 60, 40], [1] * (CHUNK_TOKENS + 100)))
    qkv = torch.randn(2, CHUNK_TOKENS + 100, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = blocked_attention(qkv, 1, 1, starts)
    torch.testing.assert_close(y, _plain(qkv, 1, 1, starts), rtol=1e-9, atol=1e-12)


def test_a_document_of_one_token_attends_to_itself() -> None:
    qkv = torch.randn(2, 30, 6, 8, generator=torch.Generator().manual_seed(0))
    starts = torch.arange(30).expand(2, 30)
    for dtype in (torch.float32, torch.bfloat16):
        y = causal_attention(qkv.to(dtype), 2, 2, prepare_documents(starts, GPT2, dtype))
        torch.testing.assert_close(y, qkv[:, :, 4:].to(dtype), rtol=0, atol=0)


def test_a_document_begins_where_the_number_changes() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [4, 4, 4, 4, 9]])
    starts = document_starts(documents)
    assert starts.tolist() == [[0, 0, 2, 2, 2], [0, 0, 0, 0, 4]]
    assert document_bounds(starts).tolist() == [0, 2, 5, 9, 10]
    assert document_bounds(starts).dtype == torch.int32
    seen = document_mask(starts, torch.float32)[:, 0].exp()
    same = documents[:, :, None] == documents[:, None]
    assert torch.equal(seen, same.tril().float())


def test_each_kernel_gets_what_it_reads_and_nothing_else() -> None:
    starts = document_starts(number_documents([3, 2]))
    assert prepare_documents(starts, LLAMA, torch.bfloat16) == Documents(starts)
    for dtype in (torch.float32, torch.float64, torch.float16):
        prepared = prepare_documents(starts, LLAMA, dtype)
        assert prepared.mask is not None
        assert (prepared.mask.shape, prepared.mask.dtype, prepared.bounds) == ((1, 1, 5, 5), dtype, None)


def test_known_bounds_are_not_counted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting waits for the GPU."""
    monkeypatch.setattr(documents_module, "takes_varlen", lambda *_: True)
    monkeypatch.setattr(documents_module, "document_bounds", lambda _: pytest.fail("counted"))
    bounds, ids, labels = torch.tensor([0, 3, 5], dtype=torch.int32), *make_batch(LLAMA)
    documents = torch.zeros_like(ids)
    starts = document_starts(documents)
    assert prepare_documents(starts, LLAMA, torch.float16, bounds).bounds is bounds
    given: list[Tensor | None] = []

    def prepare(starts: Tensor, *others: Any) -> Documents:
        given.append(others[-1])
        return Documents(starts)

    monkeypatch.setattr(gpt, "prepare_documents", prepare)
    make_model(LLAMA).bfloat16()(ids, labels, documents, bounds)
    assert given == [bounds]


def test_attention_in_another_type_than_foreseen_keeps_the_documents_apart() -> None:
    starts = document_starts(number_documents([3, 1, 6]))
    qkv = torch.randn(1, 10, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = _plain(qkv, 4, 2, starts)
    foreseen = [prepare_documents(starts, LLAMA, dtype) for dtype in (torch.float32, torch.bfloat16)]
    for documents in (*foreseen, Documents(starts, bounds=document_bounds(starts))):
        torch.testing.assert_close(causal_attention(qkv, 4, 2, documents), expected)


def test_the_bounds_for_flash_attention_cut_the_batch_into_its_documents() -> None:
    """The CUDA kernel computes causal attention between each two neighbouring bounds; so does torch's here."""
    starts = document_starts(number_documents(*ROWS))
    qkv = torch.randn(3, 40, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = []
    for start, end in pairwise(document_bounds(starts).tolist()):
        q, k, v = torch.split(qkv.flatten(0, 1)[start:end].transpose(0, 1)[None], [4, 2, 2], dim=1)
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    torch.testing.assert_close(torch.cat(parts).view(3, 40, 4, 8), _plain(qkv, 4, 2, starts))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_flash_attention_of_documents_has_the_signature_that_we_call(heads: int, kv_heads: int) -> None:
    """On the meta device torch checks arguments and shapes of the operator and its gradient, and computes nothing."""
    qkv = torch.empty(2, 9, heads + 2 * kv_heads, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    y = attend_varlen(qkv, bounds, heads, kv_heads)
    assert (y.shape, y.dtype) == ((2, 9, heads, 16), torch.bfloat16)
    y.sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.shape == qkv.shape
    schema = documents_module.varlen_attention()._schema
    assert [argument.name for argument in schema.arguments[5:10]] == [
        "max_q",
        "max_k",
        "is_causal",
        "scale",
        "window_size",
    ]
    assert documents_module.varlen_attention().name() in KEPT
